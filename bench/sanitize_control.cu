// Two warps hand a number a lane to and fro, rightly: by barrier.cta.sync on both sides, or, with ARRIVE, as PTX's own
// example of a producer and a consumer does. The second warp's sums are 4 · (31 - lane) + 6.
#define ARRIVE_OR_SYNC(id) asm volatile("barrier.cta." WORD " %0, 64;" ::"n"(id) : "memory")
#define SYNC(id) asm volatile("barrier.cta.sync %0, 64;" ::"n"(id) : "memory")
#if ARRIVE
#define WORD "arrive"
#else
#define WORD "sync"
#endif

extern "C" __global__ void handed_over(int* sums) {
    __shared__ int a[32];
    const int lane = threadIdx.x % 32;
    int sum = 0;
    for (int t = 0; t < 4; t++)
        if (threadIdx.x < 32) {
            if (t) SYNC(2);
            a[lane] = t + lane;
            ARRIVE_OR_SYNC(1);
        } else {
            SYNC(1);
            sum += a[31 - lane];
            if (t < 3) ARRIVE_OR_SYNC(2);
        }
    if (threadIdx.x >= 32) sums[lane] = sum;
}
