// Hopper's matrix instruction with A in registers, as the four warps of a group give it together: NB is 8, 16 or 32.
#pragma once

// d [64, NB] += a [64, 16] · h [16, NB] of one tile; a warp's rows and columns are those of mma.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#if TYPE == 17
#define HALVES "k16.f32.bf16.bf16 "
#else
#define HALVES "k16.f32.f16.f16 "
#endif
#if NB == 8
#define PRODUCT_OF "m64n8" HALVES "{%0, %1, %2, %3}, {%4, %5, %6, %7}, %8"
#define SUMS D4(0)
#elif NB == 16
#define PRODUCT_OF "m64n16" HALVES "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12"
#define SUMS D4(0), D4(4)
#else
#define PRODUCT_OF "m64n32" HALVES "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, " \
                   "{%16, %17, %18, %19}, %20"
#define SUMS D4(0), D4(4), D4(8), D4(12)
#endif
__device__ __forceinline__ void multiply_tile(float (&d)[NB / 2], uint4 a, u64 h) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned." PRODUCT_OF ", p, 1, 1, 0;\n}"
                 : SUMS : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(h));
}
