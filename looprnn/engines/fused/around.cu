// What stands around the recurrences: embedding, joined directions, residuals and the head.

// y[row] = table[ids[row]]; a block a row. An id outside the table sets the flag and reads row 0.
extern "C" __global__ void __launch_bounds__(128) embed(const Embed o) {
    const int id = o.ids[blockIdx.x];
    const bool known = id >= 0 && id < o.vocabulary;
    if (!known && threadIdx.x == 0) *o.failed = 256;
    for (int k = threadIdx.x; k < o.I; k += blockDim.x)
        o.y[(long long)blockIdx.x * o.I + k] = o.table[(long long)(known ? id : 0) * o.I + k];
}

// y [B, T, P] from the halves a and b of two directions, whose rows are a_row apart, and the residual x; grid
// (B·T, ⌈P / 128⌉).
// join 0: a, 1: a + b, 2: a · b, 3: (a + b) / 2. With a residual, 0 past a row's length.
extern "C" __global__ void __launch_bounds__(128) join(const Join o) {
    const int j = blockIdx.y * blockDim.x + threadIdx.x, b = blockIdx.x / o.T, t = blockIdx.x % o.T;
    if (j >= o.P) return;
    const long long k = (long long)blockIdx.x * o.P + j, from = blockIdx.x * o.a_row + j;
    float value = o.a[from];
    if (o.join == 1) value = value + o.b[from];
    if (o.join == 2) value = value * o.b[from];
    if (o.join == 3) value = (value + o.b[from]) * 0.5f;
    if (o.x) value = o.lengths && t >= o.lengths[b] ? 0.f : value + o.x[k];
    o.y[k] = value;
}

// The head's activation, in place on y [rows, N]; a block a row; T 0 where rows have no steps.
// kind 0: none, 1: sigmoid, 2: softmax. With lengths, 0 past a row's.
extern "C" __global__ void __launch_bounds__(128) head(const Head o) {
    __shared__ float parts[4];
    float* const y = o.y + (long long)blockIdx.x * o.N;
    if (o.lengths && (int)(blockIdx.x % o.T) >= o.lengths[blockIdx.x / o.T]) {
        for (int k = threadIdx.x; k < o.N; k += blockDim.x) y[k] = 0.f;
        return;  // whole blocks
    }
    if (o.kind == 1)
        for (int k = threadIdx.x; k < o.N; k += blockDim.x) y[k] = 1.f / (1.f + expf(-y[k]));
    if (o.kind != 2) return;
    float most = y[0], sum = 0.f;
    for (int k = threadIdx.x; k < o.N; k += blockDim.x) most = fmaxf(most, y[k]);
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = most;
    __syncthreads();
    most = fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3]));
    __syncthreads();
    for (int k = threadIdx.x; k < o.N; k += blockDim.x) sum += y[k] = expf(y[k] - most);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = parts[0] + parts[1] + parts[2] + parts[3];
    for (int k = threadIdx.x; k < o.N; k += blockDim.x) y[k] /= sum;
}
