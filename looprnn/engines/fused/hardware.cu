// What only this processor can say: conversions of the half types, the matrix instruction, a sum over a warp.
// Everything else is plain C++, so that a test can run it on a CPU with a file of its own in this one's place.

#if WEIGHT == 0  // float
typedef float Weight;
__device__ __forceinline__ float widened(Weight w) { return w; }
__device__ __forceinline__ Weight narrowed(float x) { return x; }
#elif WEIGHT == 1  // half
typedef unsigned short Weight;
__device__ __forceinline__ float widened(Weight w) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(w));
    return x;
}
__device__ __forceinline__ Weight narrowed(float x) {
    Weight w;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(w) : "f"(x));
    return w;
}
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else  // bfloat16
typedef unsigned short Weight;
__device__ __forceinline__ float widened(Weight w) { return __uint_as_float((unsigned)w << 16); }
__device__ __forceinline__ Weight narrowed(float x) {
    Weight w;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(w) : "f"(x));
    return w;
}
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif

#if WEIGHT != 0
// sum [16, 8] += a [16, 16] · b [16, 8], spread over a warp as PTX's m16n8k16 says.
__device__ __forceinline__ void multiply_add(float sum[4], const unsigned a[4], const unsigned b[2]) {
    asm(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#if WEIGHT != 0
// Four matrices of 8 × 8, as the fragments of multiply_add; lane 8·i + r names row r of matrix i.
__device__ __forceinline__ void load_matrices(unsigned out[4], const Weight* row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}
#endif

// The next kernel may begin, if it is one that waits for this one's end by itself: see cluster.cu.
__device__ __forceinline__ void next_may_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// 16 bytes on their way to shared memory, of which those after the first `bytes` become 0; a group ends at copies_end,
// and copies_wait<N> waits for all groups but the last N.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// The sum over a warp's 32 threads, in all of them, always in one order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int away = 16; away; away /= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int away = 16; away; away /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, away));
    return x;
}
