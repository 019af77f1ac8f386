// The projection of all steps, in half types: x once rounded to the weights' type, then tiles through a pipeline.
//
// c[m][z][n] = Σ_k a[m][k] · w[z][n][k] + bias[z][n]; a [M, K] and w [Z, N, K] weights, K a multiple of 32, padded
// with zeros; bias [Z, N] float or null; c float. z is blockIdx.z.

// y [rows, K] = x [rows, I], rounded, and zeros from I on; a block a row.
extern "C" __global__ void __launch_bounds__(128) round_rows(const Round o) {
    for (int k = threadIdx.x; k < o.K; k += blockDim.x)
        o.y[(long long)blockIdx.x * o.K + k] = narrowed(k < o.I ? o.x[(long long)blockIdx.x * o.I + k] : 0.f);
}

// A tile of S × S by WARPS warps, 2 along M; K in pieces of 32, STAGES - 1 of them on their way. Rows of 64 bytes lie
// swizzled: 16-byte chunk c of row r is at c ^ (r / 2 % 4), so that neither copies nor fragments meet in a bank.
template <int S, int WARPS> __device__ __forceinline__ void wide(const Wide& o) {
    constexpr int K = 32, STAGES = 3, M = S / 2, N = S * 2 / WARPS, TM = M / 16, TN = N / 8;
    __shared__ __align__(128) Weight as[STAGES][S * K], ws[STAGES][S * K];
    const int tid = threadIdx.x, lane = tid % 32, m0 = blockIdx.x * S, n0 = blockIdx.y * S;
    const int row = tid / 32 % 2 * M, column = tid / 64 * N, pieces = o.K / K;
    const Weight* const w = o.w + blockIdx.z * o.w_z;
    float sum[TM][TN][4] = {};
    auto at = [](int r, int chunk) { return r * K + (chunk ^ (r / 2 % 4)) * 8; };
    auto fetch = [&](int piece) {
        if (piece < pieces) {
            #pragma unroll
            for (int i = 0; i < S * 4 / (WARPS * 32); i++) {
                const int r = (tid + i * WARPS * 32) / 4, chunk = tid % 4, k = piece * K + chunk * 8;
                const bool in_a = m0 + r < o.M, in_w = n0 + r < o.N;
                copy_async(&as[piece % STAGES][at(r, chunk)], o.a + (in_a ? m0 + r : 0) * (long long)o.K + k, in_a);
                copy_async(&ws[piece % STAGES][at(r, chunk)], w + (in_w ? n0 + r : 0) * (long long)o.K + k, in_w);
            }
        }
        copies_end();
    };
    #pragma unroll
    for (int piece = 0; piece < STAGES - 1; piece++) fetch(piece);
    for (int piece = 0; piece < pieces; piece++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // the piece is here, and the one before it is used up
        fetch(piece + STAGES - 1);
        const Weight *const a = as[piece % STAGES], *const b = ws[piece % STAGES];
        #pragma unroll
        for (int k = 0; k < K / 8; k += 2) {
            unsigned fa[TM][4], fb[TN / 2][4];
            #pragma unroll
            for (int i = 0; i < TM; i++) load_matrices(fa[i], a + at(row + i * 16 + lane % 16, k + lane / 16));
            #pragma unroll
            for (int j = 0; j < TN / 2; j++)
                load_matrices(fb[j], b + at(column + j * 16 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
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
                    o.c[m * o.c_row + blockIdx.z * o.c_z + n] =
                        sum[i][j][part] + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
            }
}

extern "C" __global__ void __launch_bounds__(128) wide32(const Wide o) { wide<32, 4>(o); }
extern "C" __global__ void __launch_bounds__(128) wide64(const Wide o) { wide<64, 4>(o); }
extern "C" __global__ void __launch_bounds__(256) wide128(const Wide o) { wide<128, 8>(o); }
