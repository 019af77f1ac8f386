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

#if WEIGHT != 0 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUPS 1  // Hopper's matrix instruction, which four warps give together and which reads shared memory itself

// Where it finds a matrix of rows of 64 halves, 128 bytes each, whose 16-byte chunk c of row r lies at c ^ r % 8;
// `rows` is aligned to 1024 bytes. 16 columns further on: 2 more.
__device__ __forceinline__ unsigned long long matrix(const Weight* rows) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(rows);
    return (unsigned long long)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// d [64, 128] += a [64, 16] · b [128, 16]ᵀ; thread t has rows t / 32 · 16 + t % 32 / 4 and 8 more, as multiply_add.
#if WEIGHT == 1
#define WGMMA "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16"
#else
#define WGMMA "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
#endif
__device__ __forceinline__ void multiply_group(float (&d)[64], unsigned long long a, unsigned long long b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n" WGMMA " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),
          "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b));
}
__device__ __forceinline__ void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// What this thread copied is seen by the matrix instruction, after a barrier.
__device__ __forceinline__ void copies_show() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

// The sum over a warp's 32 threads, in all of them, always in one order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int away = 16; away; away /= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int away = 16; away; away /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, away));
    return x;
}
