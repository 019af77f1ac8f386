// c[z][m][n] = Σ_k a[z][m][k] · w[z][n][k] + bias[z][n]
//
// a [Z, M, K] float, rounded to the weights' type as it is read; w [Z, N, w_row] weights, K padded with zeros to
// w_row, a multiple of 32; bias [Z, N] float or null; c [Z, M, N] float. Sums are float; no c overlaps an a.
// z is blockIdx.z. Each sum is taken in one order, whatever else the GPU does: answers repeat to the bit.

// Few rows: a warp for each column n, ROWS rows at a time; w is read once, from L2 when it was read a step ago.
template <int ROWS> __device__ __forceinline__ void narrow(const Matmul& o) {
    const int lane = threadIdx.x % 32, n = blockIdx.x * 4 + threadIdx.x / 32, m = blockIdx.y * ROWS;
    if (n >= o.N) return;  // whole warps
    const Weight* w = o.w + blockIdx.z * o.w_z + (long long)n * o.w_row;
    const float* a = o.a + blockIdx.z * o.a_z + m * o.a_row;
    const int rows = o.M - m < ROWS ? o.M - m : ROWS;
    float sum[ROWS];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0.f;
    #pragma unroll 4
    for (int k = lane; k < o.K; k += 32) {
        const float weight = widened(w[k]);
        #pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (r < rows) sum[r] += weight * widened(narrowed(a[r * o.a_row + k]));
    }
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float total = warp_sum(sum[r]);
        if (r < rows && lane == 0)
            o.c[blockIdx.z * o.c_z + (m + r) * o.c_row + n] = total + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
    }
}

extern "C" __global__ void __launch_bounds__(128) narrow1(const Matmul o) { narrow<1>(o); }
extern "C" __global__ void __launch_bounds__(128) narrow8(const Matmul o) { narrow<8>(o); }

#if WEIGHT == 0

// A tile of S × S by 128 threads, each S/8 × S/16 of it; K in pieces of 16, the next on its way while one is used.
template <int S> __device__ __forceinline__ void tile(const Matmul& o) {
    constexpr int K = 16, A = S * K / 128, W = S * K / 4 / 128, TM = S / 8, TN = S / 16;
    __shared__ float as[K][S + 4], ws[K][S + 4];
    const int tid = threadIdx.x, m0 = blockIdx.x * S, n0 = blockIdx.y * S, row = tid / 16, column = tid % 16;
    const float* a = o.a + blockIdx.z * o.a_z;
    const Weight* w = o.w + blockIdx.z * o.w_z;
    float next_a[A], sum[TM][TN] = {};
    float4 next_w[W];
    auto fetch = [&](int k0) {
        #pragma unroll
        for (int i = 0; i < A; i++) {
            const int m = m0 + (tid + i * 128) / K, k = k0 + tid % K;
            next_a[i] = m < o.M && k < o.K ? a[m * o.a_row + k] : 0.f;
        }
        #pragma unroll
        for (int i = 0; i < W; i++) {
            const int n = n0 + (tid + i * 128) / 4, k = k0 + tid % 4 * 4;
            next_w[i] = n < o.N ? *(const float4*)(w + (long long)n * o.w_row + k) : float4{0.f, 0.f, 0.f, 0.f};
        }
    };
    fetch(0);
    for (int k0 = 0; k0 < o.K; k0 += K) {
        #pragma unroll
        for (int i = 0; i < A; i++) as[tid % K][(tid + i * 128) / K] = next_a[i];
        #pragma unroll
        for (int i = 0; i < W; i++) {
            const int n = (tid + i * 128) / 4, k = tid % 4 * 4;
            ws[k][n] = next_w[i].x, ws[k + 1][n] = next_w[i].y, ws[k + 2][n] = next_w[i].z, ws[k + 3][n] = next_w[i].w;
        }
        __syncthreads();
        if (k0 + K < o.K) fetch(k0 + K);
        #pragma unroll
        for (int k = 0; k < K; k++) {
            #pragma unroll
            for (int i = 0; i < TM; i++)
                #pragma unroll
                for (int j = 0; j < TN; j++) sum[i][j] += as[k][row * TM + i] * ws[k][column * TN + j];
        }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < TM; i++)
        #pragma unroll
        for (int j = 0; j < TN; j++) {
            const int m = m0 + row * TM + i, n = n0 + column * TN + j;
            if (m < o.M && n < o.N)
                o.c[blockIdx.z * o.c_z + m * o.c_row + n] = sum[i][j] + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
        }
}

#else

// A tile of S × S by 4 warps, each S/2 × S/2 of it in m16n8k16; K in pieces of 32. Rows of 40 halves keep the
// fragments' loads free of bank conflicts.
template <int S> __device__ __forceinline__ void tile(const Matmul& o) {
    constexpr int K = 32, LD = K + 8, A = S * K / 128, W = S * K / 8 / 128, TM = S / 32, TN = S / 16;
    __shared__ __align__(16) Weight as[S][LD], ws[S][LD];
    const int tid = threadIdx.x, lane = tid % 32, m0 = blockIdx.x * S, n0 = blockIdx.y * S;
    const int row = tid / 64 * (S / 2) + lane / 4, column = tid / 32 % 2 * (S / 2) + lane / 4, q = lane % 4 * 2;
    const float* a = o.a + blockIdx.z * o.a_z;
    const Weight* w = o.w + blockIdx.z * o.w_z;
    float next_a[A], sum[TM][TN][4] = {};
    uint4 next_w[W];
    auto fetch = [&](int k0) {
        #pragma unroll
        for (int i = 0; i < A; i++) {
            const int m = m0 + (tid + i * 128) / K, k = k0 + tid % K;
            next_a[i] = m < o.M && k < o.K ? a[m * o.a_row + k] : 0.f;
        }
        #pragma unroll
        for (int i = 0; i < W; i++) {
            const int n = n0 + (tid + i * 128) / 4, k = k0 + tid % 4 * 8;
            next_w[i] = n < o.N ? *(const uint4*)(w + (long long)n * o.w_row + k) : uint4{0, 0, 0, 0};
        }
    };
    fetch(0);
    for (int k0 = 0; k0 < o.K; k0 += K) {
        #pragma unroll
        for (int i = 0; i < A; i++) as[(tid + i * 128) / K][tid % K] = narrowed(next_a[i]);
        #pragma unroll
        for (int i = 0; i < W; i++) *(uint4*)&ws[(tid + i * 128) / 4][tid % 4 * 8] = next_w[i];
        __syncthreads();
        if (k0 + K < o.K) fetch(k0 + K);
        #pragma unroll
        for (int k = 0; k < K; k += 16) {
            unsigned fa[TM][4], fb[TN][2];
            #pragma unroll
            for (int i = 0; i < TM; i++)
                #pragma unroll
                for (int part = 0; part < 4; part++)
                    fa[i][part] = *(const unsigned*)&as[row + i * 16 + part % 2 * 8][k + q + part / 2 * 8];
            #pragma unroll
            for (int j = 0; j < TN; j++)
                #pragma unroll
                for (int part = 0; part < 2; part++)
                    fb[j][part] = *(const unsigned*)&ws[column + j * 8][k + q + part * 8];
            #pragma unroll
            for (int i = 0; i < TM; i++)
                #pragma unroll
                for (int j = 0; j < TN; j++) multiply_add(sum[i][j], fa[i], fb[j]);
        }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < TM; i++)
        #pragma unroll
        for (int j = 0; j < TN; j++)
            #pragma unroll
            for (int part = 0; part < 4; part++) {
                const int m = m0 + row + i * 16 + part / 2 * 8;
                const int n = n0 + tid / 32 % 2 * (S / 2) + j * 8 + q + part % 2;
                if (m < o.M && n < o.N)
                    o.c[blockIdx.z * o.c_z + m * o.c_row + n] =
                        sum[i][j][part] + (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f);
            }
}

#endif

extern "C" __global__ void __launch_bounds__(128) tile32(const Matmul o) { tile<32>(o); }
extern "C" __global__ void __launch_bounds__(128) tile64(const Matmul o) { tile<64>(o); }
