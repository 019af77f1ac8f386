// What stands in for hardware.cu and CUDA when a test runs the step kernels on a CPU: each thread of a block is a
// fiber, all of them run up to the next barrier in turn. A block whose threads wait at different barriers is a bug.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time
#define __align__(n) __attribute__((aligned(n)))

struct dim3 { unsigned x, y, z; };
struct float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static dim3 blockIdx, blockDim, gridDim, threadIdx;

struct Fiber { ucontext_t context; char stack[1 << 15]; int waits; bool done; };
static Fiber fibers[256];
static ucontext_t scheduler;
static unsigned current;
static unsigned slots[256][8];

static void wait_for_all(int kind) {
    const unsigned self = current;
    fibers[self].waits = kind;
    swapcontext(&fibers[self].context, &scheduler);
}
static void __syncthreads() { wait_for_all(1); }
static void next_may_begin() {}
static float float_of(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static unsigned bits_of(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }

template <class Op> static float over_warp(float x, Op op) {
    const unsigned self = current, first = self / 32 * 32;
    slots[self][0] = bits_of(x);
    wait_for_all(2);
    float all = float_of(slots[first][0]);
    for (int k = 1; k < 32; k++) all = op(all, float_of(slots[first + k][0]));
    wait_for_all(3);
    return all;
}
static float warp_sum(float x) { return over_warp(x, [](float a, float b) { return a + b; }); }
static float warp_max(float x) { return over_warp(x, [](float a, float b) { return fmaxf(a, b); }); }

#if WEIGHT == 0
typedef float Weight;
static float widened(Weight w) { return w; }
static Weight narrowed(float x) { return x; }
#else
typedef unsigned short Weight;
#if WEIGHT == 1
static float widened(Weight w) { _Float16 h; memcpy(&h, &w, 2); return (float)h; }
static Weight narrowed(float x) { _Float16 h = (_Float16)x; Weight w; memcpy(&w, &h, 2); return w; }
#else
static float widened(Weight w) { return float_of((unsigned)w << 16); }
static Weight narrowed(float x) { unsigned b = bits_of(x); return (b + 0x7fff + ((b >> 16) & 1)) >> 16; }
#endif
// PTX, m16n8k16: lane 4·g + q holds a[g][2q…], a[g + 8][2q…] and both 8 columns on; b[2q…][g] and 8 rows on;
// sum[g][2q…] and sum[g + 8][2q…].
static void multiply_add(float sum[4], const unsigned a[4], const unsigned b[2]) {
    const unsigned self = current, first = self / 32 * 32, g = self % 32 / 4, q = self % 4;
    memcpy(slots[self], a, 16), memcpy(slots[self] + 4, b, 8);
    wait_for_all(4);
    auto half = [](unsigned two, int which) { return widened((Weight)(which ? two >> 16 : two)); };
    for (int part = 0; part < 4; part++) {
        const int row = g + part / 2 * 8, column = q * 2 + part % 2;
        for (int k = 0; k < 16; k++) {
            const unsigned in_a = slots[first + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            const unsigned in_b = slots[first + column * 4 + k % 8 / 2][4 + k / 8];
            sum[part] += half(in_a, k % 2) * half(in_b, k % 2);
        }
    }
    wait_for_all(5);
}
static void load_matrices(unsigned out[4], const Weight* row) {
    const unsigned self = current, first = self / 32 * 32, lane = self % 32;
    memcpy(slots[self], row, 16);
    wait_for_all(6);
    for (int i = 0; i < 4; i++) out[i] = slots[first + i * 8 + lane / 4][lane % 4];
    wait_for_all(7);
}
#endif
static void copy_async(void* to, const void* from, int bytes) {
    memset(to, 0, 16);
    memcpy(to, from, bytes);
}
static void copies_end() {}
template <int N> static void copies_wait() {}

template <class Kernel> static void run_grid(Kernel kernel, const unsigned* grid, unsigned threads) {
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {threads, 1, 1};
    if (threads > 256) abort();
    static Kernel* now;
    now = &kernel;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                for (unsigned k = 0; k < threads; k++) {
                    Fiber& fiber = fibers[k];
                    fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack;
                    fiber.context.uc_stack.ss_size = sizeof fiber.stack;
                    fiber.context.uc_link = &scheduler;
                    makecontext(&fiber.context, (void (*)())(+[] { (*now)(); fibers[current].done = true; }), 0);
                }
                for (bool alive = true; alive;) {
                    int kind = 0;
                    alive = false;
                    for (current = 0; current < threads; current++) {
                        if (fibers[current].done) continue;
                        threadIdx = {current, 0, 0};
                        const unsigned self = current;
                        swapcontext(&scheduler, &fibers[self].context);
                        if (fibers[self].done) continue;
                        alive = true;
                        if (kind && kind != fibers[self].waits) fprintf(stderr, "threads wait apart\n"), abort();
                        kind = fibers[self].waits;
                    }
                }
            }
}
