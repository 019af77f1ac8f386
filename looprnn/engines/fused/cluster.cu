// A layer in one launch: a cluster of C blocks holds R on the chip, and only h travels, through
// distributed shared memory: each block sends its part to all of them with the copy engine, and a
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
#ifndef APPROX
#define APPROX 0
#endif
#ifndef LOSE_BLOCK
#define LOSE_BLOCK ~0u
#endif
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
constexpr int COURIERS = COURIER ? 4 : 0, WORKERS = WARPS * 32, THREADS = WORKERS + COURIERS * 32;
constexpr int AHEAD = 4;  // steps that x is fetched ahead, and outputs that may be under way
constexpr int X_ROW = UNITS * GATES + 4, Y_ROW = UNITS + 4;  // + 16 bytes: other banks
static_assert(QUADS * 4 >= H, "every unit has a warp");
static_assert(!COURIER || H % 4 == 0, "copies are of 16 bytes");
static_assert(!COURIER || WARPS % 4 == 0, "registers change hands between groups of four warps");

struct Shared {
    uint4 r[R_SHARED > 0 ? WARPS * R_SHARED * 32 : 1];
    unsigned char h[GROUPS][BUFFERS][H_QUADS * QUAD_BYTES];
    unsigned char part[GROUPS][BUFFERS][PART];
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

// This block's part of h to `COUNT` blocks, from the `first`-th after this one on; by one thread.
template <int COUNT> __device__ __forceinline__ void send_part(const Layer& l, int g, int buffer, int first) {
    const u32 h = shared_address(l.s.h[g][buffer]) + l.rank * PART, part = shared_address(l.s.part[g][buffer]);
    const u32 barrier = l.h_came + (g * BUFFERS + buffer) * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        if (C % COUNT && first + i >= C) return;
        const u32 to = (l.rank + first + i) % C;
        copy_to_block(in_block(h, to), in_block(barrier, to), part, PART);
    }
}

// A group's part of h is staged, and x is read: all workers call this, and the courier's waits for it.
__device__ __forceinline__ void hand_over(int g) {
    async_view();
    if (COURIER) asm volatile("barrier.cta.arrive %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
    else __syncthreads();
}

// Sends h as soon as it is staged, then the output of the same step; fetches x ahead.
__device__ __forceinline__ void courier(const Layer& l, int warp, int lane) {
    const int units = min(UNITS, H - l.first_unit), carried = warp + 4 * lane;  // a row a lane
    int length[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) length[g] = carried < NB ? l.length_of(l.first_row + g * NB + carried) : 0;
    auto fetch_x = [&](int g, int t) {
        if (carried >= NB || t >= l.time) return;
        const u32 barrier = l.x_came + (g * AHEAD + t % AHEAD) * 8;
        const u32 bytes = t < length[g] && units > 0 ? units * GATES * 4 : 0;
        barrier_expect(barrier, bytes);
        if (bytes)
            copy_in(shared_address(l.s.x[g][t % AHEAD][carried]), barrier,
                    l.xg + (l.element(l.first_row + g * NB + carried, length[g], t) + l.first_unit) * GATES, bytes);
    };
    for (int t = 0; t < AHEAD; t++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) fetch_x(g, t);
    cluster_sync();
    constexpr int EACH = (C + 3) / 4;
    auto send = [&](int g, int buffer) {
        asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
        if (lane == 0 && warp * EACH < C && *(volatile u32*)&l.s.lost == 0) send_part<EACH>(l, g, buffer, warp * EACH);
    };
    for (int t = 0; t < l.time; t++) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (CELL == GRU && RESET_BEFORE) send(g, 2);
            copies_out_read<2 * GROUPS - 1>();  // y's place of step t - 2 is free before h(t+1) is sent
            if (t + 1 < l.time) send(g, (t + 1) & 1);
            else asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
            const int row = l.first_row + g * NB + carried;
            if (carried < NB && row < l.batch && units > 0)
                copy_out(l.output + l.element(row, length[g], t) + l.first_unit,
                         shared_address(l.s.y[g][t % AHEAD][carried]), units * 4);
            copies_out_commit();
            fetch_x(g, t + AHEAD);
        }
    }
    copies_out_done();
}

// The other warps: 4 units each.
__device__ __forceinline__ void worker(const Layer& l, int warp, Tile tile) {
    Shared& s = l.s;
    uint4 in_registers[KREG];
    const uint4* mine = l.r + (((size_t)l.d * C + l.rank) * WARPS + warp) * R_WORDS * 32 + tile.lane;
    uint4* in_shared = s.r + warp * R_SHARED * 32 + tile.lane;
#pragma unroll
    for (int k = 0; k < KREG; k++) in_registers[k] = mine[k * 32];
    for (int k = 0; k < R_SHARED; k++) in_shared[k * 32] = mine[(KREG + k) * 32];
    auto word_of_r = [&](int k) { return k < KREG ? in_registers[k < KREG ? k : 0] : in_shared[(k - KREG) * 32]; };
    previous_kernel_done();  // the weights do not depend on it: they were loaded while it still ran

    for (int i = warp * 32 + tile.lane; i < GROUPS * NB * H; i += WORKERS) {
        const int row = l.first_row + i / H, unit = i % H;
        const float value = l.h_0 && row < l.batch ? l.h_0[l.state(row, unit)] : 0.f;
        Tile::put(s.h[i / H / NB][0], unit, i / H % NB, value);
    }
    // This lane's cell in each group, or its gate of it.
    const int own_unit = warp * 4 + tile.unit, unit = l.first_unit + own_unit;
    const bool reads_x = tile.column < NB && tile.slot < GATES && unit < H;
    int length[GROUPS];
    bool owner[GROUPS];
    float h[GROUPS], c[GROUPS], x[2][GROUPS][LANE_PER_GATE ? 1 : GATES] = {};
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int row = l.first_row + g * NB + tile.column;
        const bool live = tile.column < NB && row < l.batch && unit < H;
        owner[g] = live && tile.owner;
        length[g] = live ? l.length_of(row) : 0;
        h[g] = live && l.h_0 ? l.h_0[l.state(row, unit)] : 0.f;
        c[g] = live && CELL == LSTM && l.c_0 ? l.c_0[l.state(row, unit)] : 0.f;
    }
    const float bias = CELL == GRU && !RESET_BEFORE && l.bias_n && unit < H ? l.bias_n[l.d * H + unit] : 0.f;
    auto load_x = [&](int g, int cur, int t) {  // without a courier, two steps ahead
        if (t >= length[g] || !reads_x) return;
        const size_t at = l.element(l.first_row + g * NB + tile.column, length[g], t) + unit;
#pragma unroll
        for (int k = 0; k < (LANE_PER_GATE ? 1 : GATES); k++) x[cur][g][k] = __ldg(l.xg + at * GATES + tile.slot + k);
    };
    if (!COURIER)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) load_x(g, 0, 0), load_x(g, 1, 1);
    cluster_sync();

    // A warp that lost a block goes on without waiting, so that no other warp waits for it.
    bool lost = l.rank == LOSE_BLOCK;
    auto wait = [&](u32 barrier, u32 parity) {
        if (!lost && !barrier_wait(barrier, parity, l.timeout, l.error)) lost = true;
        if (lost) *(volatile u32*)&s.lost = 1;
    };
    auto wait_for_h = [&](int g, int buffer, u32 parity) {  // and arms its barrier for the next time
        const u32 barrier = l.h_came + (g * BUFFERS + buffer) * 8;
        wait(barrier, parity);
        if (warp == 0 && tile.lane == 0 && !lost) barrier_expect(barrier, C * PART);
    };
    auto stage = [&](int g, int buffer, float value) {
        if (tile.owner) Tile::put(s.part[g][buffer], own_unit, tile.column, value);
    };
    constexpr int EACH = (C + WARPS - 1) / WARPS;  // without a courier: blocks a warp sends to
    auto send = [&](int g, int buffer) {
        hand_over(g);
        if (!COURIER && tile.lane == 0 && !lost && warp * EACH < C) send_part<EACH>(l, g, buffer, warp * EACH);
    };

    auto run_step = [&](int g, int cur, int t) {
        if (COURIER) wait(l.x_came + (g * AHEAD + t % AHEAD) * 8, t / AHEAD & 1);
        if (t > 0) wait_for_h(g, cur, (t - 1) / 2 & 1);
        if (COURIER && reads_x) {
            const float* from = s.x[g][t % AHEAD][tile.column] + own_unit * GATES + tile.slot;
            if (GATES == 4 && !LANE_PER_GATE)
                *reinterpret_cast<float4*>(x[cur][g]) = *reinterpret_cast<const float4*>(from);
            else
#pragma unroll
                for (int k = 0; k < (LANE_PER_GATE ? 1 : GATES); k++) x[cur][g][k] = from[k];
        }
        float sum[4], fresh;
        tile.product(word_of_r, s.h[g][cur], sum);
        const float* xs = x[cur][g];
        const bool within = t < length[g];
        if (CELL == RNN) {
            const float v = sum[0] + xs[0];
            fresh = RELU ? fmaxf(v, 0.f) : tanh_of(v);
        } else if (CELL == LSTM) {
            float next, yo;
            if (LANE_PER_GATE) {  // means something in slot 0, the owner's
                const float y = gate_of(sum[0] + xs[0], tile.slot == 2);
                const float yf = __shfl_xor_sync(~0u, y, SLOT_LOW), yg = __shfl_xor_sync(~0u, y, SLOT_HIGH);
                yo = __shfl_xor_sync(~0u, y, SLOT_LOW | SLOT_HIGH);
                next = fmaf(yf, c[g], y * yg);
            } else {
                const float yi = sigmoid(sum[0] + xs[0]), yf = sigmoid(sum[1] + xs[1]);
                yo = sigmoid(sum[3] + xs[3]);
                next = fmaf(yf, c[g], yi * tanh_of(sum[2] + xs[2]));
            }
            fresh = yo * tanh_of(next);
            if (within) c[g] = next;
        } else {
            const float gate = sigmoid(sum[0] + xs[0]);  // r; with a lane per gate z in slot 1
            const float z = LANE_PER_GATE ? __shfl_xor_sync(~0u, gate, SLOT_LOW) : sigmoid(sum[1] + xs[1]);
            float inside;
            if (RESET_BEFORE) {
                stage(g, 2, gate * h[g]);
                send(g, 2);
                wait_for_h(g, 2, t & 1);
                tile.product(word_of_r, s.h[g][2], sum);
                inside = LANE_PER_GATE ? sum[0] : sum[2];
            } else
                inside = LANE_PER_GATE ? __shfl_xor_sync(~0u, gate, SLOT_HIGH) * (sum[0] + bias)
                                       : gate * (sum[2] + bias);
            float n = tanh_of((LANE_PER_GATE ? xs[0] : xs[2]) + inside);
            if (LANE_PER_GATE) n = __shfl_xor_sync(~0u, n, SLOT_HIGH);
            fresh = fmaf(z, h[g] - n, n);
        }
        if (within) h[g] = fresh;
        stage(g, cur ^ 1, h[g]);
        if (COURIER && tile.owner) s.y[g][t % AHEAD][tile.column][own_unit] = within ? h[g] : 0.f;
        if (COURIER || t + 1 < l.time) send(g, cur ^ 1);
        if (!COURIER) {
            if (owner[g])
                l.output[l.element(l.first_row + g * NB + tile.column, length[g], t) + unit] = within ? h[g] : 0.f;
            load_x(g, cur, t + 2);
        }
    };
    for (int t = 0; t < l.time; t += 2) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) run_step(g, 0, t);
        if (t + 1 < l.time)
#pragma unroll
            for (int g = 0; g < GROUPS; g++) run_step(g, 1, t + 1);
    }
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (owner[g]) {
            const size_t to = l.state(l.first_row + g * NB + tile.column, unit);
            l.h_n[to] = h[g];
            if (CELL == LSTM) l.c_n[to] = c[g];
        }
}

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
        for (int i = 0; i < GROUPS * BUFFERS; i++) barrier_init(h_came + i * 8, 1);
        for (int i = 0; i < GROUPS * AHEAD; i++) barrier_init(x_came + i * 8, NB);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int i = 0; i < GROUPS * BUFFERS; i++) barrier_expect(h_came + i * 8, C * PART);
    }
    async_view();
    __syncthreads();
    const int warp = __shfl_sync(~0u, tid / 32, 0);
    if (COURIER && warp >= WARPS) {
#if COURIER && WARPS > 4
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
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
