// The same product as matmul.cu's, of many rows, by tiles through a pipeline of copies.
//
// A block has a tile of S × S, and pieces of 32 of K, STAGES - 1 of them on their way. A copy takes 16 bytes, so a's
// rows begin at multiples of that. In shared memory, 16-byte chunk c of row r lies where neither copies nor fragments
// meet in a bank: at c ^ r % 8 in rows of 128 bytes, at c ^ r / 2 % 4 in rows of 64.

template <class T> __device__ __forceinline__ int at(int row, int chunk) {
    return sizeof(T) == 4 ? row * 32 + (chunk ^ row % 8) * 4 : row * 32 + (chunk ^ row / 2 % 4) * 8;
}

// Rows m0 … m0 + S - 1 of a matrix of `rows` rows, `row` elements apart, of which the first `columns` are read; zeros
// beyond.
template <int S, int THREADS, class T>
__device__ __forceinline__ void fetch(T* to, const T* from, int m0, int rows, long long row, int k0, int columns) {
    constexpr int CHUNK = 16 / sizeof(T), CHUNKS = 32 / CHUNK;
    #pragma unroll
    for (int i = 0; i < S * CHUNKS / THREADS; i++) {
        const int r = (threadIdx.x + i * THREADS) / CHUNKS, chunk = threadIdx.x % CHUNKS, k = k0 + chunk * CHUNK;
        const int left = m0 + r < rows ? columns - k : 0;
        const int bytes = left >= CHUNK ? 16 : left > 0 ? left * (int)sizeof(T) : 0;
        copy_async(to + at<T>(r, chunk), bytes ? from + (m0 + r) * row + k : from, bytes);
    }
}

#if WEIGHT == 0

// 8 threads along M, 16 along N, each with every eighth row and every sixteenth column.
template <int S> __device__ __forceinline__ void wide(const Matmul& o) {
    constexpr int STAGES = 3, TM = S / 8, TN = S / 16;
    __shared__ __align__(128) float as[STAGES][S * 32], ws[STAGES][S * 32];
    const int m0 = blockIdx.x * S, n0 = blockIdx.y * S, row = threadIdx.x / 16, column = threadIdx.x % 16;
    const int pieces = (o.K + 31) / 32;
    const float *const x = o.a + blockIdx.z * o.a_z, *const w = o.w + blockIdx.z * o.w_z;
    next_may_begin();
    float sum[TM][TN] = {};
    auto start = [&](int piece) {
        if (piece < pieces) {
            fetch<S, 128>(as[piece % STAGES], x, m0, o.M, o.a_row, piece * 32, o.K);
            fetch<S, 128>(ws[piece % STAGES], w, n0, o.N, o.w_row, piece * 32, o.w_row);
        }
        copies_end();
    };
    #pragma unroll
    for (int piece = 0; piece < STAGES - 1; piece++) start(piece);
    for (int piece = 0; piece < pieces; piece++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // the piece is here, and the one before it is used up
        start(piece + STAGES - 1);
        const float *const a = as[piece % STAGES], *const b = ws[piece % STAGES];
        #pragma unroll
        for (int chunk = 0; chunk < 8; chunk++) {
            float4 fa[TM], fb[TN];
            #pragma unroll
            for (int i = 0; i < TM; i++) fa[i] = *(const float4*)(a + at<float>(row + i * 8, chunk));
            #pragma unroll
            for (int j = 0; j < TN; j++) fb[j] = *(const float4*)(b + at<float>(column + j * 16, chunk));
            #pragma unroll
            for (int i = 0; i < TM; i++)
                #pragma unroll
                for (int j = 0; j < TN; j++) {
                    sum[i][j] += fa[i].x * fb[j].x;
                    sum[i][j] += fa[i].y * fb[j].y;
                    sum[i][j] += fa[i].z * fb[j].z;
                    sum[i][j] += fa[i].w * fb[j].w;
                }
        }
    }
    #pragma unroll
    for (int i = 0; i < TM; i++)
        #pragma unroll
        for (int j = 0; j < TN; j++) {
            const int m = m0 + row + i * 8, n = n0 + column + j * 16;
            if (m < o.M && n < o.N)
                o.c[blockIdx.z * o.c_z + m * o.c_row + n] = sum[i][j] + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
        }
}

extern "C" __global__ void __launch_bounds__(128) wide32(const Matmul o) { wide<32>(o); }
extern "C" __global__ void __launch_bounds__(128) wide64(const Matmul o) { wide<64>(o); }

#else

// y [rows, K] = x [rows, I], rounded, and zeros from I on; a block a row.
extern "C" __global__ void __launch_bounds__(128) round_rows(const Round o) {
    const float* const x = o.x + (long long)blockIdx.x * o.I;
    Weight* const y = o.y + (long long)blockIdx.x * o.K;
    const bool aligned = o.I % 4 == 0;
    for (int k = threadIdx.x * 4; k < o.K; k += blockDim.x * 4) {
        float4 four{0.f, 0.f, 0.f, 0.f};
        if (aligned && k < o.I) four = *(const float4*)(x + k);
        if (!aligned) {
            four.x = k < o.I ? x[k] : 0.f, four.y = k + 1 < o.I ? x[k + 1] : 0.f;
            four.z = k + 2 < o.I ? x[k + 2] : 0.f, four.w = k + 3 < o.I ? x[k + 3] : 0.f;
        }
        uint2 half;
        half.x = narrowed(four.x) | (unsigned)narrowed(four.y) << 16;
        half.y = narrowed(four.z) | (unsigned)narrowed(four.w) << 16;
        *(uint2*)(y + k) = half;
    }
}

// The fragment of a tile of 16 × 16 at (row, chunk · 8), for multiply_add.
__device__ __forceinline__ void fragment(unsigned out[4], const Weight* a, int row, int chunk) {
    const int lane = threadIdx.x % 32;
    load_matrices(out, a + at<Weight>(row + lane % 16, chunk + lane / 16));
}
__device__ __forceinline__ void fragment(unsigned out[4], const float* a, int row, int chunk) {
    const int lane = threadIdx.x % 32, q = lane % 4;
    #pragma unroll
    for (int part = 0; part < 4; part++) {
        const int r = row + lane / 4 + part % 2 * 8, k = (chunk + part / 2) * 8 + q * 2;
        const float* const two = a + at<float>(r, k / 4) + k % 4;
        out[part] = narrowed(two[0]) | (unsigned)narrowed(two[1]) << 16;
    }
}

// By WARPS warps, 2 along M. A is Weight where round_rows went before, float where a is read as it is.
template <int S, int WARPS, class A> __device__ __forceinline__ void wide(const Matmul& o, const A* all) {
    constexpr int STAGES = 3, M = S / 2, N = S * 2 / WARPS, TM = M / 16, TN = N / 8;
    __shared__ __align__(128) A as[STAGES][S * 32];
    __shared__ __align__(128) Weight ws[STAGES][S * 32];
    const int tid = threadIdx.x, lane = tid % 32, m0 = blockIdx.x * S, n0 = blockIdx.y * S;
    const int row = tid / 32 % 2 * M, column = tid / 64 * N, pieces = (o.K + 31) / 32;
    const A* const x = all + blockIdx.z * o.a_z;
    const Weight* const w = o.w + blockIdx.z * o.w_z;
    next_may_begin();
    float sum[TM][TN][4] = {};
    auto start = [&](int piece) {
        if (piece < pieces) {
            fetch<S, WARPS * 32>(as[piece % STAGES], x, m0, o.M, o.a_row, piece * 32, o.K);
            fetch<S, WARPS * 32>(ws[piece % STAGES], w, n0, o.N, o.w_row, piece * 32, o.w_row);
        }
        copies_end();
    };
    #pragma unroll
    for (int piece = 0; piece < STAGES - 1; piece++) start(piece);
    for (int piece = 0; piece < pieces; piece++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // the piece is here, and the one before it is used up
        start(piece + STAGES - 1);
        const A* const a = as[piece % STAGES];
        const Weight* const b = ws[piece % STAGES];
        #pragma unroll
        for (int chunk = 0; chunk < 4; chunk += 2) {
            unsigned fa[TM][4], fb[TN / 2][4];
            #pragma unroll
            for (int i = 0; i < TM; i++) fragment(fa[i], a, row + i * 16, chunk);
            #pragma unroll
            for (int j = 0; j < TN / 2; j++)
                load_matrices(fb[j], b + at<Weight>(column + j * 16 + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
            #pragma unroll
            for (int i = 0; i < TM; i++)
                #pragma unroll
                for (int j = 0; j < TN; j++) multiply_add(sum[i][j], fa[i], fb[j / 2] + j % 2 * 2);
        }
    }
    #pragma unroll
    for (int i = 0; i < TM; i++)
        #pragma unroll
        for (int j = 0; j < TN; j++)
            #pragma unroll
            for (int part = 0; part < 4; part++) {
                const int m = m0 + row + i * 16 + lane / 4 + part / 2 * 8;
                const int n = n0 + column + j * 8 + lane % 4 * 2 + part % 2;
                if (m < o.M && n < o.N)
                    o.c[blockIdx.z * o.c_z + m * o.c_row + n] =
                        sum[i][j][part] + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
            }
}

extern "C" __global__ void __launch_bounds__(128) wide32(const Matmul o) { wide<32, 4>(o, o.a); }
extern "C" __global__ void __launch_bounds__(128) wide64(const Matmul o) { wide<64, 4>(o, o.a); }
extern "C" __global__ void __launch_bounds__(256) rounded128(const Matmul o) { wide<128, 8>(o, (const Weight*)o.a); }

#if WARPGROUPS

// What rounded128 does, by two warp groups, 64 rows each; pieces of 64.
extern "C" __global__ void __launch_bounds__(256) grouped128(const Matmul o) {
    constexpr int S = 128, STAGES = 3, PIECE = S * 64;
    extern __shared__ __align__(1024) Weight stages[];  // [STAGES][a and w][PIECE]
    const int tid = threadIdx.x, m0 = blockIdx.x * S, n0 = blockIdx.y * S, pieces = (o.K + 63) / 64;
    const Weight* const w = o.w + blockIdx.z * o.w_z;
    next_may_begin();
    float sum[64] = {};
    auto rows = [&](Weight* to, const Weight* from, int first, int count, long long row, int k0) {
        #pragma unroll
        for (int i = 0; i < S * 8 / 256; i++) {
            const int r = (tid + i * 256) / 8, chunk = tid % 8, k = k0 + chunk * 8;
            const bool inside = first + r < count && k < o.w_row;
            copy_async(to + r * 64 + (chunk ^ r % 8) * 8, inside ? from + (first + r) * row + k : from, inside ? 16 : 0);
        }
    };
    auto start = [&](int piece) {
        if (piece < pieces) {
            Weight* const to = stages + piece % STAGES * 2 * PIECE;
            rows(to, (const Weight*)o.a, m0, o.M, o.a_row, piece * 64);
            rows(to + PIECE, w, n0, o.N, o.w_row, piece * 64);
        }
        copies_end();
    };
    #pragma unroll
    for (int piece = 0; piece < STAGES - 1; piece++) start(piece);
    for (int piece = 0; piece < pieces; piece++) {
        copies_wait<STAGES - 2>();
        copies_show();
        __syncthreads();  // the piece is here, and the one before it is used up
        const Weight* const from = stages + piece % STAGES * 2 * PIECE;
        const unsigned long long a = matrix(from + tid / 128 * 64 * 64), b = matrix(from + PIECE);
        group_begin();
        #pragma unroll
        for (int k = 0; k < 4; k++) multiply_group(sum, a + k * 2, b + k * 2);
        group_commit();
        start(piece + STAGES - 1);
        group_wait();
    }
    const float* const bias = o.bias ? o.bias + blockIdx.z * o.N : 0;
    const bool pairs = o.N % 2 == 0;  // then all rows begin at multiples of 8 bytes
    #pragma unroll
    for (int i = 0; i < 64; i += 2) {
        const int m = m0 + tid / 32 * 16 + tid % 32 / 4 + i / 2 % 2 * 8, n = n0 + i / 4 * 8 + tid % 4 * 2;
        if (m >= o.M || n >= o.N) continue;
        float* const c = o.c + blockIdx.z * o.c_z + m * o.c_row + n;
        const float first = sum[i] + (bias ? bias[n] : 0.f);
        if (pairs) *(float2*)c = float2{first, sum[i + 1] + (bias ? bias[n + 1] : 0.f)};
        else {
            c[0] = first;
            if (n + 1 < o.N) c[1] = sum[i + 1] + (bias ? bias[n + 1] : 0.f);
        }
    }
}

#endif

#endif
