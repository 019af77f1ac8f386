// What the persistent kernels share: waits that give up, sends to other blocks' shared memory, gates.
// Self-contained: NVRTC compiles it without any CUDA header.
#pragma once
typedef unsigned int u32;
typedef unsigned long long u64;

#define RNN 0
#define LSTM 1
#define GRU 2
#ifndef APPROX
#define APPROX 0
#endif
#ifndef LOSE_BLOCK
#define LOSE_BLOCK ~0u
#endif

__device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

// The address in block `rank` of this cluster that `address` has here.
__device__ __forceinline__ u32 in_block(u32 address, u32 rank) {
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// One arrival; the barrier's phase is not complete before this many bytes have come too.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// One arrival; what this thread wrote before, and saw written, those who wait will see.
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// What the copy engine brought is visible to who sees the phase complete. Nothing else is waited for
// here: an acquire of the whole cluster would empty the L1 cache at each step.
__device__ __forceinline__ bool barrier_try(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return done;
}

// Whether a wait since `start` has passed the timeout, or another block has given up.
__device__ __forceinline__ bool late(u64 start, u64 timeout, const u32* error) {
    const u64 waited = nanoseconds() - start;  // `error` may lie in the host's memory: far away
    return waited > timeout || (waited > 20000 && *(const volatile u32*)error != 0);
}

// False once that was late.
__device__ __noinline__ bool barrier_wait_longer(u32 barrier, u32 parity, u64 timeout, u32* error) {
    const u64 start = nanoseconds();
    while (true) {
        if (__all_sync(~0u, barrier_try(barrier, parity))) return true;
        if (__any_sync(~0u, late(start, timeout, error))) break;
    }
    *(volatile u32*)error = 1;
    return false;
}

__device__ __forceinline__ bool barrier_wait(u32 barrier, u32 parity, u64 timeout, u32* error) {
    if (__all_sync(~0u, barrier_try(barrier, parity))) return true;
    return barrier_wait_longer(barrier, parity, timeout, error);
}

// The copy engine: shared memory to another block's, global memory to shared, and back. Addresses
// and bytes are multiples of 16; what was written before needs async_view() and a barrier.
#define COPY_TO_BLOCK "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
__device__ __forceinline__ void copy_to_block(u32 to, u32 barrier, u32 from, u32 bytes) {
    asm volatile(COPY_TO_BLOCK ::"r"(to), "r"(from), "r"(bytes), "r"(barrier) : "memory");
}

// By a whole warp, once: of an elected lane the compiler knows that it is one, and makes no loop over lanes.
__device__ __forceinline__ void warp_copy_to_block(u32 to, u32 barrier, u32 from, u32 bytes, bool wanted) {
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.u32 q, %4, 0;\nelect.sync _|p, 0xffffffff;\nand.pred p, p, q;\n"
        "@p " COPY_TO_BLOCK "\n}"
        ::"r"(to), "r"(from), "r"(bytes), "r"(barrier), "r"((u32)wanted) : "memory");
}

__device__ __forceinline__ void copy_in(u32 to, u32 barrier, const void* from, u32 bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// Global memory to the same place in every block of the cluster whose bit is set, and to the barrier there. By a
// whole warp, once.
__device__ __forceinline__ void warp_copy_to_all(u32 to, u32 barrier, const void* from, u32 bytes, u32 blocks, bool wanted) {
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.u32 q, %5, 0;\nelect.sync _|p, 0xffffffff;\nand.pred p, p, q;\n"
        "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;\n}"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"((unsigned short)blocks), "r"((u32)wanted) : "memory");
}

// That something was read: nothing is published, so no write of this thread is waited for.
__device__ __forceinline__ void arrive_in_block(u32 barrier, u32 rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(in_block(barrier, rank)) : "memory");
}

__device__ __forceinline__ void copy_out(void* to, u32 from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 ::"l"(to), "r"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copies_out_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until at most this many of this thread's committed copies out still read shared memory.
template <int N> __device__ __forceinline__ void copies_out_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void copies_out_done() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ void async_view() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Work that does not depend on the kernel before this one may stand above; no-op in a plain launch.
__device__ __forceinline__ void previous_kernel_done() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Of a group of four warps, registers for each thread: more than 128, or fewer, than the kernel began with.
template <int N> __device__ __forceinline__ void keep_registers() {
    if (N < 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
    else asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Around the matrix instructions of four warps: until at most N of the groups committed are under way.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define LOG2_E 1.4426950408889634f
// 1 / (1 + 2^-x): error 1e-7. Inf and -Inf give the limits.
__device__ __forceinline__ float sigmoid2(float x) {
    float e, y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.f + e));
    return y;
}

#if APPROX
__device__ __forceinline__ float tanh_of(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float sigmoid(float x) { return fmaf(.5f, tanh_of(.5f * x), .5f); }
// σ, or tanh where it is wanted: a lane's own choice.
__device__ __forceinline__ float gate_of(float x, bool as_tanh) {
    const float y = tanh_of(as_tanh ? x : .5f * x);
    return as_tanh ? y : fmaf(.5f, y, .5f);
}
#else
__device__ __forceinline__ float sigmoid(float x) { return sigmoid2(LOG2_E * x); }
__device__ __forceinline__ float tanh_of(float x) { return fmaf(2.f, sigmoid2(2.f * LOG2_E * x), -1.f); }
// σ, or tanh where it is wanted: a lane's own choice.
__device__ __forceinline__ float gate_of(float x, bool as_tanh) {
    const float k = as_tanh ? 2.f : 1.f;
    return fmaf(k, sigmoid2(k * LOG2_E * x), 1.f - k);
}
#endif

// Two halves of one word, the first in its low bits.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 word;
#if TYPE == 17
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#endif
    return word;
}

// d += a·b on the tensor cores: a 16×16, b 16×8, in halves; d in fp32.
__device__ __forceinline__ void mma(float (&d)[4], uint4 a, uint2 b) {
#if TYPE == 17
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
    asm volatile(MMA " {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}
