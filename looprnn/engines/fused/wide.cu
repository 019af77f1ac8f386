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
template <int M, int N> __device__ __forceinline__ void wide(const Matmul& o) {
    constexpr int STAGES = 3, TM = M / 8, TN = N / 16;
    __shared__ __align__(128) float as[STAGES][M * 32], ws[STAGES][N * 32];
    const int m0 = blockIdx.x * M, n0 = blockIdx.y * N, row = threadIdx.x / 16, column = threadIdx.x % 16;
    const int pieces = (o.K + 31) / 32;
    const float *const x = o.a + blockIdx.z * o.a_z, *const w = o.w + blockIdx.z * o.w_z;
    next_may_begin();
    float sum[TM][TN] = {};
    auto start = [&](int piece) {
        if (piece < pieces) {
            fetch<M, 128>(as[piece % STAGES], x, m0, o.M, o.a_row, piece * 32, o.K);
            fetch<N, 128>(ws[piece % STAGES], w, n0, o.N, o.w_row, piece * 32, o.w_row);
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

extern "C" __global__ void __launch_bounds__(128) wide16(const Matmul o) { wide<16, 16>(o); }
extern "C" __global__ void __launch_bounds__(128) wide32(const Matmul o) { wide<32, 32>(o); }
extern "C" __global__ void __launch_bounds__(128) wide32x64(const Matmul o) { wide<32, 64>(o); }
extern "C" __global__ void __launch_bounds__(128) wide64(const Matmul o) { wide<64, 64>(o); }

#else

// y [rows, K] = x [rows, I], rounded, and zeros from I on; 8 of a row a thread.
extern "C" __global__ void __launch_bounds__(256) round_rows(const Round o) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    const int each = o.K / 8, k = i % each * 8;
    next_may_begin();
    if (i / each >= o.rows) return;
    const float* const x = o.x + i / each * o.I + k;
    float4 from[2] = {};
    #pragma unroll
    for (int j = 0; j < 2; j++) {
        const int left = o.I - k - j * 4;
        if (o.I % 4 == 0 && left > 0) from[j] = *(const float4*)(x + j * 4);
        if (o.I % 4 != 0) {
            if (left > 0) from[j].x = x[j * 4];
            if (left > 1) from[j].y = x[j * 4 + 1];
            if (left > 2) from[j].z = x[j * 4 + 2];
            if (left > 3) from[j].w = x[j * 4 + 3];
        }
    }
    uint4 half;
    half.x = narrowed(from[0].x) | (unsigned)narrowed(from[0].y) << 16;
    half.y = narrowed(from[0].z) | (unsigned)narrowed(from[0].w) << 16;
    half.z = narrowed(from[1].x) | (unsigned)narrowed(from[1].y) << 16;
    half.w = narrowed(from[1].z) | (unsigned)narrowed(from[1].w) << 16;
    *(uint4*)(o.y + i * 8) = half;
}

// A tile of 32 × 64 by 8 warps, each with every eighth piece of 32 of K, which it loads into registers itself: all of
// it is on its way at once. Lane 4 · g + q has k = 8 · q … of a piece: a sum may take them in any order, if a and w agree.
extern "C" __global__ void __launch_bounds__(256) split32x64(const Matmul o) {
    __shared__ __align__(16) float parts[8][32][36];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int m0 = blockIdx.x * 32, n0 = blockIdx.y * 64;
    const float* const x = o.a + blockIdx.z * o.a_z;
    const Weight* const w = o.w + blockIdx.z * o.w_z;
    next_may_begin();
    float sum[2][8][4] = {};
    #pragma unroll 2
    for (int k0 = 0; k0 < o.w_row; k0 += 256) {
        const int k = k0 + warp * 32 + q * 8;
        float4 a[4][2];
        uint4 b[8];
        #pragma unroll
        for (int j = 0; j < 8; j++) {
            const int n = n0 + j * 8 + g;
            b[j] = n < o.N && k < o.w_row ? *(const uint4*)(w + (long long)n * o.w_row + k) : uint4{0, 0, 0, 0};
        }
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const int m = m0 + i / 2 * 8 + g, at = k + i % 2 * 4;
            a[i / 2][i % 2] = m < o.M && at < o.K ? *(const float4*)(x + m * o.a_row + at) : float4{0.f, 0.f, 0.f, 0.f};
        }
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 upper = a[i / 2 * 2][i % 2], lower = a[i / 2 * 2 + 1][i % 2];  // rows g and g + 8
            unsigned fa[4];
            fa[0] = narrowed(upper.x) | (unsigned)narrowed(upper.y) << 16;
            fa[1] = narrowed(lower.x) | (unsigned)narrowed(lower.y) << 16;
            fa[2] = narrowed(upper.z) | (unsigned)narrowed(upper.w) << 16;
            fa[3] = narrowed(lower.z) | (unsigned)narrowed(lower.w) << 16;
            #pragma unroll
            for (int j = 0; j < 8; j++) {
                const unsigned fb[2] = {i % 2 ? b[j].z : b[j].x, i % 2 ? b[j].w : b[j].y};
                multiply_add(sum[i / 2][j], fa, fb);
            }
        }
    }
    #pragma unroll
    for (int half = 0; half < 2; half++) {  // of the columns
        if (half) __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; i++)
            parts[warp][i / 16 * 16 + i % 4 / 2 * 8 + g][i / 4 % 4 * 8 + q * 2 + i % 2] = sum[i / 16][half * 4 + i / 4 % 4][i % 4];
        __syncthreads();
        for (int i = threadIdx.x; i < 32 * 32; i += 256) {
            const int m = m0 + i / 32, n = n0 + half * 32 + i % 32;
            if (m >= o.M || n >= o.N) continue;
            float total = o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f;
            #pragma unroll
            for (int part = 0; part < 8; part++) total += parts[part][i / 32][i % 32];
            o.c[blockIdx.z * o.c_z + m * o.c_row + n] = total;
        }
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

#endif
