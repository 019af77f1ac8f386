// h through global memory without flags or fences. A word is 16 bytes, 8 units of a row, written and read
// at once; the lowest bit of its first unit is its tag, which alternates from use to use of its buffer, so
// that a word says of itself whether it came. Of 8 units one is rounded to a number with that bit.
#pragma once

__device__ __forceinline__ uint4 read_word(const uint4* from) {
    uint4 w;
    asm volatile("{\n.reg .b128 v;\nld.relaxed.gpu.global.b128 v, [%4];\n.reg .b64 a, b;\nmov.b128 {a, b}, v;\n"
                 "mov.b64 {%0, %1}, a;\nmov.b64 {%2, %3}, b;\n}"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(from) : "memory");
    return w;
}

__device__ __forceinline__ void write_word(uint4* to, uint4 w) {
    asm volatile("{\n.reg .b128 v;\n.reg .b64 a, b;\nmov.b64 a, {%1, %2};\nmov.b64 b, {%3, %4};\nmov.b128 v, {a, b};\n"
                 "st.relaxed.gpu.global.b128 [%0], v;\n}"
                 ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
}

// The nearest half to x whose lowest bit is the tag.
__device__ __forceinline__ u32 tagged_half(float x, u32 tag) {
    const u32 v = pack_halves(x, 0.f);
    float near;
#if TYPE == 17
    near = __uint_as_float(v << 16);
#else
    asm("cvt.f32.f16 %0, %1;" : "=f"(near) : "h"((unsigned short)v));
#endif
    return (v & 1) == tag ? v : fabsf(x) >= fabsf(near) ? v + 1 : v - 1;
}

// All so many blocks have come; one thread of each calls this. count[0] counts them, count[1] those that
// leave: the last of them zeroes both for the next launch, and is told so.
__device__ __forceinline__ void grid_meet(u64* count, u32 blocks, u64 timeout, u32* error) {
    u64 now;
    const u64 start = nanoseconds();
    asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(count) : "memory");
    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(count) : "memory");
    while (now < blocks && nanoseconds() - start < timeout);
    if (now < blocks) *(volatile u32*)error = 1;
}

__device__ __forceinline__ bool grid_leave(u64* count, u32 blocks) {
    u64 before;
    asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(count + 1) : "memory");
    if (before + 1 < blocks) return false;
    count[0] = count[1] = 0;
    return true;
}
