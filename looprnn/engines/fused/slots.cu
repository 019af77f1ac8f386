// States in slots that outlast a run: read before the layers, written after them. A row of the table is h [H] and
// c [C] side by side. Row b of a run begins at slot begin[b], or at its own h_0 and c_0 where that is -1, and ends
// in slot end[b], or in none where that is -1; no slot that one row writes is read by another. h and c [B, …] are
// what the layers read and write. Grid (B, ⌈(H + C) / 128⌉).

struct Element {
    int b, k, width;
    float* now;
    float first;
    __device__ __forceinline__ Element(const Slots& o) {
        b = blockIdx.x, k = blockIdx.y * blockDim.x + threadIdx.x, width = o.H + o.C;
        if (!inside()) return;
        const bool is_c = k >= o.H;
        const long long at = is_c ? (long long)b * o.C + k - o.H : (long long)b * o.H + k;
        now = (is_c ? o.c : o.h) + at;
        first = o.begin[b] < 0 ? (is_c ? o.c_0 : o.h_0)[at] : o.table[o.begin[b] * (long long)width + k];
    }
    __device__ __forceinline__ bool inside() const { return k < width; }
};

extern "C" __global__ void __launch_bounds__(128) gather(const Slots o) {
    const Element e(o);
    if (e.inside()) *e.now = e.first;
}

// Rows of no step end as they began to the last bit, whatever the layers compute in. A run that failed writes nothing.
extern "C" __global__ void __launch_bounds__(128) scatter(const Slots o) {
    const Element e(o);
    if (!e.inside() || *o.failed) return;
    if (o.lengths[e.b] == 0) *e.now = e.first;
    if (o.end[e.b] >= 0) o.table[o.end[e.b] * (long long)e.width + e.k] = *e.now;
}
