// A layer in one launch: a cluster of C blocks holds R on the chip, and only h travels, through
// distributed shared memory: each block sends its part to the others with the copy engine, and a
// barrier in each block's memory counts the bytes that came.
//
//   CELL RESET_BEFORE RELU   RNN 0, LSTM 1, GRU 2; the GRU's reset; the RNN's activation
//   H C WARPS                hidden size; blocks of a cluster; warps of a block, 4 units each
//   NB GROUPS                rows of a group (fp16: up to 8, fp32: 2); groups of a cluster, one after
//                            another: while the h of one travels, the others are computed
//   DIRECTIONS               1 forward, 2 reverse, 3 both (clusters alternate)
//   TYPE                     32 fp32, 16 fp16, 17 bf16
//   COURIER                  1: four more warps of each block send h and carry x and the output between
//                            shared and global memory, so that the workers never wait for either;
//                            for H and WARPS in multiples of 4. 0: each warp for itself
//   KREG                     16-byte words of R a lane keeps in registers; the rest: shared memory
//   APPROX                   tanh.approx (error 5e-4) instead of exponentials
//   LOSE_BLOCK               for the test of the timeout: this block of each cluster sends nothing
//
// A warp owns whole units, so a cell's sums end in one warp; c and h stay in registers in fp32. Two h
// buffers and two barriers a group are enough: a block sends h(t+1) once all of h(t) is here, and
// every block sent its part of h(t) after its warps had read h(t-1), whose buffer h(t+1) takes.
#include "persistent.cuh"

constexpr int GATES = CELL == RNN ? 1 : CELL == LSTM ? 4 : 3;
constexpr int D = DIRECTIONS == 3 ? 2 : 1;
constexpr int QUADS = C * WARPS, UNITS = WARPS * 4;
#if TYPE == 32
#include "tile_ffma.cuh"
#else
#include "tile_mma.cuh"
#endif
constexpr int R_SHARED = R_WORDS - KREG;
constexpr int BUFFERS = CELL == GRU && RESET_BEFORE ? 3 : 2;  // h, h, r∘h
constexpr u32 PART = PART_QUADS * QUAD_BYTES;                  // of h, from each block
constexpr u32 FROM_OTHERS = (C - 1) * PART;
constexpr int COURIERS = COURIER ? 4 : 0, WORKERS = WARPS * 32, THREADS = WORKERS + COURIERS * 32;
constexpr int AHEAD = 4;  // steps that x is fetched ahead, and outputs that may be under way
constexpr int X_ROW = UNITS * GATES + 4, Y_ROW = UNITS + 4;  // + 16 bytes: other banks
static_assert(QUADS * 4 >= H, "every unit has a warp");
static_assert(!COURIER || H % 4 == 0, "copies are of 16 bytes");
static_assert(!COURIER || WARPS % 4 == 0, "registers change hands between groups of four warps");

struct Shared {
    uint4 r[R_SHARED > 0 ? WARPS * R_SHARED * 32 : 1];
    unsigned char h[GROUPS][BUFFERS][H_QUADS * QUAD_BYTES];
    float x[COURIER ? GROUPS : 1][AHEAD][NB][COURIER ? X_ROW : 4];
    float y[COURIER ? GROUPS : 1][AHEAD][NB][COURIER ? Y_ROW : 4];
    u64 h_came[GROUPS][BUFFERS], x_came[GROUPS][AHEAD];
    u32 lost;
};

// What both kinds of warp know: the layer's arguments and this block's place in it.
struct Layer {
    Shared& s;
    const uint4* r;
    const float *xg, *bias_n;
    const int* lengths;
    const float *h_0, *c_0;
    float *output, *h_n, *c_n;
    u32* error;
    int batch, time;
    long long state_stride;
    u64 timeout;
    u32 rank;            // of this block in its cluster
    int d, first_row, first_unit;
    bool reverse;
    u32 h_came, x_came;  // addresses of the barriers

    __device__ int length_of(int row) const { return row >= batch ? 0 : lengths ? min(lengths[row], time) : time; }
    __device__ size_t state(int row, int unit) const { return row * state_stride + d * H + unit; }
    // Of [B, T, D, H]: where a row's step t lies.
    __device__ size_t element(int row, int length, int t) const {
        const int when = reverse && t < length ? length - 1 - t : t;
        return (((size_t)row * time + when) * D + d) * H;
    }
};

// This block's part of h, from its place here to the same place in `COUNT` blocks, from the `first`-th
// after this one on; by one thread of a courier, or by a whole warp of workers. A block copies nothing
// to itself: its own warps wrote it there.
template <int COUNT> __device__ __forceinline__ void send_part(const Layer& l, int g, int buffer, int first) {
    const u32 part = shared_address(l.s.h[g][buffer]) + l.rank * PART;
    const u32 barrier = l.h_came + (g * BUFFERS + buffer) * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const bool wanted = (C - 1) % COUNT == 0 || first + i < C - 1;
        const u32 to = (l.rank + 1 + first + i) % C;
        if (!COURIER) warp_copy_to_block(in_block(part, to), in_block(barrier, to), part, PART, wanted);
        else if (wanted) copy_to_block(in_block(part, to), in_block(barrier, to), part, PART);
    }
}

// A group's part of h is in its place, and x is read: all workers call this, and the couriers wait for
// it. Without couriers it makes the part visible to the block, else a courier's arrival does; those
// who send it have yet to call async_view(). A lost warp, which waits for no h, waits here: a second
// arrival of its own would be taken for another warp's first. Its last arrival before it was lost is
// long over: it has waited for 20 µs at least since.
__device__ __forceinline__ void hand_over(int g, bool lost) {
    if (!COURIER) return __syncthreads();
    async_view();  // x and y are the copy engine's, too
    if (lost) asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
    else asm volatile("barrier.cta.arrive %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
}

#include "cluster_courier.cuh"
#include "cluster_worker.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrence(
    const uint4* __restrict__ r, const float* __restrict__ xg, const float* __restrict__ bias_n,
    const int* __restrict__ lengths, const float* h_0, const float* c_0, float* __restrict__ output,
    float* h_n, float* c_n, void*, u32* error, int batch, int time, long long state_stride, u64 timeout) {
    extern __shared__ __align__(128) unsigned char raw[];
    Shared& s = *reinterpret_cast<Shared*>(raw);
    const int tid = threadIdx.x, cluster = blockIdx.x / C, d = cluster % D;
    const u32 rank = cluster_rank(), h_came = shared_address(s.h_came), x_came = shared_address(s.x_came);
    const Layer layer{s, r, xg, bias_n, lengths, h_0, c_0, output, h_n, c_n, error, batch, time, state_stride,
                      timeout, rank, d, cluster / D * NB * GROUPS, (int)rank * UNITS, DIRECTIONS == 2 || d == 1,
                      h_came, x_came};
    u32* const zeros = reinterpret_cast<u32*>(s.h);
    for (u32 i = tid; i < (u32)((unsigned char*)s.h_came - s.h[0][0]) / 4; i += THREADS) zeros[i] = 0;
    if (tid == 0) {
        s.lost = 0;
        for (int i = 0; i < GROUPS * BUFFERS; i++) barrier_init(h_came + i * 8, COURIER ? 2 : 1);
        for (int i = 0; i < GROUPS * AHEAD; i++) barrier_init(x_came + i * 8, NB);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int i = 0; i < GROUPS * BUFFERS; i++) barrier_expect(h_came + i * 8, FROM_OTHERS);
    }
    async_view();
    __syncthreads();
    const int warp = __shfl_sync(~0u, tid / 32, 0);
    if (COURIER && warp >= WARPS) {
#if COURIER && WARPS > 4
        keep_registers<40>();
#endif
        previous_kernel_done();
        courier(layer, warp - WARPS, tid % 32);
        cluster_sync();  // no block leaves while others may still write to it
    } else {
#if COURIER && WARPS > 4  // what the couriers gave back, of 65536
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(WARPS == 8 ? 232 : WARPS == 12 ? 152 : 112));
#endif
        worker(layer, warp, Tile{tid % 32});
        cluster_sync();
    }
}
