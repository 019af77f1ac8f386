// One step of a layer's gates, after the matmul with R: the equations of cells.py, for both directions at once.
//
// B rows, T steps, H units, P what a step puts out (H without projection), G gates, D directions; d = blockIdx.z,
// b = blockIdx.x. Step s of the loop is step t = s of a forward direction and T - 1 - s of a reverse one, so a row
// that is shorter than T waits, its states as they are, until its own last step comes. States are [B, S] for the
// whole stack; this layer's begin at h and c, its directions side by side. xw is [B, T, D, H, G], h·R [D, B, H, G]:
// a unit's gates lie side by side, as the persistent kernels have them.

__device__ __forceinline__ float clipped(float x, float most) { return x < -most ? -most : x > most ? most : x; }

struct Row {
    int b, d, t, backward, steps;
    bool valid;
    long long at;  // of [B, T]
    __device__ __forceinline__ Row(const Step& o) {
        b = blockIdx.x, d = blockIdx.z;
        backward = o.backward >> d & 1;
        t = backward ? o.T - 1 - o.s : o.s;
        steps = o.lengths ? o.lengths[b] : o.T;
        valid = t < steps;
        at = (long long)b * o.T + t;
    }
};

// Past a row's length: 0, or the last output again, where that is known.
__device__ __forceinline__ float padded(const Step& o, const Row& row, float last) {
    return o.repeats && !row.backward && row.steps > 0 ? last : 0.f;
}

// The sum over a block, in all its threads; `parts` holds a float for each warp.
__device__ __forceinline__ float block_sum(float x, float* parts) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.f;
    for (int k = 0; k < blockDim.x / 32; k++) total += parts[k];
    return total;
}

// Mean and 1 / sqrt(variance + ε) of N floats, by a block.
__device__ __forceinline__ void moments(const float* x, int N, float* parts, float& mean, float& scale) {
    float sum = 0.f, squares = 0.f;
    for (int k = threadIdx.x; k < N; k += blockDim.x) sum += x[k];
    mean = block_sum(sum, parts) / N;
    for (int k = threadIdx.x; k < N; k += blockDim.x) squares += (x[k] - mean) * (x[k] - mean);
    scale = 1.f / sqrtf(block_sum(squares, parts) / N + 1e-5f);
}

#if LAYER_NORM
// x[row][d] = (x - mean) / sqrt(variance + ε) · scale[d] + bias[d], in place: x·W of a normalized layer; the block
// (row, d) of a grid over all B·T rows.
extern "C" __global__ void __launch_bounds__(256) norm_rows(const Norm o) {
    __shared__ float parts[8];
    float* x = o.x + ((long long)blockIdx.x * gridDim.y + blockIdx.y) * o.N;
    float mean, scale;
    moments(x, o.N, parts, mean, scale);
    for (int k = threadIdx.x; k < o.N; k += blockDim.x) {
        const int n = blockIdx.y * o.N + k;
        x[k] = (x[k] - mean) * scale * o.scale[n] + (o.bias ? o.bias[n] : 0.f);
    }
}
#endif

#if PROJECTION
// After the matmul with V: `full` holds the projected h of this step, [D, B, P].
extern "C" __global__ void __launch_bounds__(128) finish(const Step o) {
    const Row row(o);
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= o.P) return;
    float* h = o.h + row.b * o.h_row + row.d * o.P + j;
    if (row.valid) *h = o.projected[((long long)row.d * o.B + row.b) * o.P + j];
    o.y[row.at * o.y_row + row.d * o.P + j] = row.valid ? *h : padded(o, row, *h);
}
#endif

#if RESET_BEFORE
// A GRU that resets before the product: r·h for it, and z for later.
extern "C" __global__ void __launch_bounds__(128) reset(const Step o) {
    const Row row(o);
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= o.H) return;
    const long long unit = (long long)row.d * o.B + row.b;
    const float* hr = o.hr + (unit * o.H + j) * 2;
    const float* xw = o.xw + row.at * o.xw_row + (row.d * o.H + j) * 3;
    const float r = ACTIVATE_0(row.backward, CLIPPED(xw[0] + hr[0]));
    o.z[unit * o.H + j] = ACTIVATE_0(row.backward, CLIPPED(xw[1] + hr[1]));
    o.full[unit * o.H + j] = r * o.h[row.b * o.h_row + row.d * o.H + j];
}
#endif

// grid (B, ⌈H / 128⌉, D); with layer_norm (B, 1, D), for a block must see its whole row.
extern "C" __global__ void __launch_bounds__(LAYER_NORM ? 256 : 128) step(const Step o) {
    const Row row(o);
    const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    const long long unit = (long long)row.d * o.B + row.b;
    float* const h = o.h + row.b * o.h_row + row.d * o.P;
    float* const y = o.y + row.at * o.y_row + row.d * o.P;
    if (!row.valid) {
        for (int j = first; j < o.H && !PROJECTION; j += stride) y[j] = padded(o, row, h[j]);
        return;  // whole blocks
    }
    const float* const xw = o.xw + row.at * o.xw_row + row.d * GATES * o.H;
    const float* const hr = o.hr + unit * (RESET_BEFORE ? 1 : GATES) * o.H;
    const bool backward = row.backward;
#if CELL_RNN
    for (int j = first; j < o.H; j += stride) y[j] = h[j] = ACTIVATE_0(backward, CLIPPED(xw[j] + hr[j]));
#elif CELL_GRU
    for (int j = first; j < o.H; j += stride) {
        const float* const x = xw + j * 3;
#if RESET_BEFORE
        const float z = o.z[unit * o.H + j], reset = hr[j];
#else
        const float r = ACTIVATE_0(backward, CLIPPED(x[0] + hr[j * 3]));
        const float z = ACTIVATE_0(backward, CLIPPED(x[1] + hr[j * 3 + 1]));
        const float reset = r * (hr[j * 3 + 2] + (o.bias_n ? o.bias_n[row.d * o.H + j] : 0.f));
#endif
        const float n = ACTIVATE_1(backward, CLIPPED(x[2] + reset));
        y[j] = h[j] = (1.f - z) * n + z * h[j];
    }
#else
    float* const c = o.c + row.b * o.c_row + row.d * o.H;
    float* const full = o.full + unit * o.H;  // o · h(c) where a projection follows; o itself while c is normalized
    const float* const p = o.peepholes + row.d * 3 * o.H;
#if LAYER_NORM
    __shared__ float parts[8];
    float mean, scale;
    moments(hr, 4 * o.H, parts, mean, scale);
    const float* const norm = o.norm_hr + row.d * 4 * o.H;
#define SUM(gate) (xw[j * 4 + gate] + (hr[j * 4 + gate] - mean) * scale * norm[j * 4 + gate])
#else
#define SUM(gate) (xw[j * 4 + gate] + hr[j * 4 + gate])
#endif
    for (int j = first; j < o.H; j += stride) {
        const float old = c[j];
        const float i = ACTIVATE_0(backward, CLIPPED(SUM(0) + (PEEPHOLES ? p[j] * old : 0.f)));
        const float f =
            COUPLED ? 1.f - i : ACTIVATE_0(backward, CLIPPED(SUM(1) + (PEEPHOLES ? p[o.H + j] * old : 0.f)));
        const float g = ACTIVATE_1(backward, CLIPPED(SUM(2)));
        const float now = CELL_CLIPPED(f * old + i * g);
        const float out = ACTIVATE_0(backward, CLIPPED(SUM(3) + (PEEPHOLES ? p[2 * o.H + j] * now : 0.f)));
        c[j] = now;
        const float next = LAYER_NORM ? out : out * ACTIVATE_2(backward, now);
        if (LAYER_NORM || PROJECTION) full[j] = next;
        else y[j] = h[j] = next;
    }
#if LAYER_NORM
    float c_mean, c_scale;
    moments(c, o.H, parts, c_mean, c_scale);  // each thread reads the units that it wrote
    const float *const weight = o.norm_c + row.d * o.H, *const shift = o.shift_c + row.d * o.H;
    for (int j = first; j < o.H; j += stride) {
        const float next = full[j] * ACTIVATE_2(backward, (c[j] - c_mean) * c_scale * weight[j] + shift[j]);
        if (PROJECTION) full[j] = next;
        else y[j] = h[j] = next;
    }
#endif
#endif
}
