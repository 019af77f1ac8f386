// A layer in one cooperative launch, for H too large for a cluster and many rows: a team of clusters
// holds R in its registers. h travels through global memory, and each of its words enters a cluster
// once: one block sees it come and has it copied to all of them.
//
//   CELL                 LSTM 1, GRU 2 (reset after)
//   H C                  hidden size; blocks of a cluster: 8 or 16. A block has 16 units, a team is
//                        as many clusters as H needs
//   NB GROUPS            rows of a group: 8, 16 or 32; groups of a team, which take turns
//   STAGES               places for a group's h in shared memory. From two a group on, nobody needs to say
//                        that a place was read: who sends the next h but one has the next of everybody
//   DIRECTIONS           1 forward, 2 reverse, 3 both
//   APART                0: teams of both directions alternate; 1: a launch is of one direction, all its teams
//   TYPE                 16 fp16, 17 bf16
//   LOSE_BLOCK           for the test of the timeout: this block of each team sends nothing
//
// A turn is one group's step. Three kinds of warp hand it on, each ahead of the next:
//   couriers   4 warps: each watches the words of some blocks of the team (words.cuh) and, as a block's
//              words came, copies them to every block of the cluster by multicast
//   product    8 warps: R·h, R from registers, h from shared memory, by the matrix instruction of four
//              warps or, for 8 rows, of one; each four warps have half of K, their sums meet in shared memory
//   cells      4 warps: gates, h and c, the output; write the words of the next h
// With `ready`, the grid has more clusters than the teams: they compute xg meanwhile (project.cuh), step by step, and
// the cells wait for the steps they come to.
// In global memory two buffers of h a group are enough for the reason that cluster.cu gives.
#include "persistent.cuh"
#include "tile_wgmma.cuh"
#include "words.cuh"
#include "project.cuh"

constexpr int GATES = CELL == LSTM ? 4 : 3, D = DIRECTIONS == 3 ? 2 : 1;
constexpr int UNITS = 16, TEAM = (H + UNITS * C - 1) / (UNITS * C) * C, TILES = (H + 15) / 16;
constexpr int SHARE = TEAM / C;  // blocks of the team that a block watches
constexpr int KT = TEAM / 2;     // tiles of K (a block's units each) of four warps
constexpr int TILE = NB * 32;    // bytes of h of one block: [2 · 8 units][row][8 units]
constexpr int CELLS = NB / 8;    // of a thread in each group
constexpr int S_UNIT = UNITS + 4, S_GATE = NB * S_UNIT + 4;  // of the sums: other banks
constexpr int PRODUCT = 256, THREADS = 512;
constexpr bool REPLIES = STAGES < 2 * GROUPS;  // blocks say that they have read a place
// R's words and 48 more; what the three kinds of warp have together is 512 for each of 128 threads.
constexpr int PRODUCT_REGISTERS = KT * 4 + 48, COURIER_REGISTERS = 24;
constexpr int REST = 512 - 2 * PRODUCT_REGISTERS - COURIER_REGISTERS, CELL_REGISTERS = REST < 232 ? REST : 232;
static_assert(NB == 8 || NB == 16 || NB == 32, "columns of the matrix instruction");

struct Shared {
    unsigned char h[STAGES][TEAM * TILE];
    unsigned char sent[4][CELLS * 64];  // of each warp of cells: [2 · 8 units][row][8 units]
    float sum[2][4 * S_GATE];           // [half of K][gate][row][unit]
    float c[GROUPS][CELLS][128];        // of each thread of cells
    int length[GROUPS * NB];
    u64 came[STAGES][2], read[STAGES];   // [half of K]
    u32 lost;
};

// What all warps know: the layer's arguments and this block's place in it.
struct Layer {
    Shared& s;
    const uint4* r;
    const float* xg;
    const float* bias_n;
    const u32* ready;  // of project.cuh, or null: all of xg is there
    int times;
    const int* lengths;
    const float *h_0, *c_0;
    float *output, *h_n, *c_n;
    unsigned char* words;  // [GROUPS][2][TEAM][TILE]
    u32* error;
    int batch, time;
    long long state_stride;
    u64 timeout;
    u32 rank;    // in the cluster
    int place;   // in the team
    int d, first_row;
    bool reverse;

    __device__ int turns() const { return time * GROUPS; }
    __device__ unsigned char* words_of(int g, int t) const { return words + (g * 2 + (t & 1)) * TEAM * TILE; }
};

__device__ __forceinline__ u32 tag_of(int t) { return (t >> 1 & 1) ^ 1; }

// As barrier_wait, in place: no call may stand between matrix instructions under way.
__device__ __forceinline__ void wait(const Layer& l, const u64& barrier, u32 parity, bool& lost) {
    const u32 at = shared_address(&barrier);
    u64 start = 0;
    while (!lost && !__all_sync(~0u, barrier_try(at, parity))) {
        if (start == 0) start = nanoseconds();
        lost = __any_sync(~0u, late(start, l.timeout, l.error));
        if (lost) *(volatile u32*)l.error = 1;
    }
}

__device__ __forceinline__ void courier(const Layer& l, int warp, int lane) {
    constexpr int EACH = (NB * 2 + 31) / 32;  // words a lane watches
    bool lost = false;
    // Who copies nothing waits for nothing: nobody would wait for it, and a barrier it came to two phases late has the
    // parity of one yet to end.
    for (int turn = 0; warp < SHARE && turn < l.turns(); turn++) {
        const int g = turn % GROUPS, t = turn / GROUPS, stage = turn % STAGES;
        if (turn >= STAGES) {
            const u32 before = turn / STAGES - 1 & 1;
            if (REPLIES) wait(l, l.s.read[stage], before, lost);
            else if (warp == 0) wait(l, l.s.came[stage][lane % 2], before, lost);  // else it would count for that phase
        }
        if (warp == 0 && lane < 2 && !lost) barrier_expect(shared_address(&l.s.came[stage][lane]), KT * TILE);
        for (int i = warp; i < SHARE; i += 4) {
            const int tile = l.rank * SHARE + i;
            const unsigned char* from = l.words_of(g, t) + tile * TILE;
            u64 start = 0;
            u32 tries = 0;
            while (!lost) {
                bool came = true;
#pragma unroll
                for (int k = 0; k < EACH; k++)
                    if (NB >= 16 || lane < NB * 2)
                        came &= (read_word(reinterpret_cast<const uint4*>(from) + k * 32 + lane).x & 1) == tag_of(t);
                if (__all_sync(~0u, came)) break;
                if (++tries % 256 == 0) {  // the clock is slow to read
                    if (start == 0) start = nanoseconds();
                    lost = __any_sync(~0u, late(start, l.timeout, l.error));
                    if (lost) *(volatile u32*)l.error = 1;
                }
            }
            asm volatile("fence.proxy.async.global;" ::: "memory");
            warp_copy_to_all(shared_address(l.s.h[stage] + tile * TILE), shared_address(&l.s.came[stage][tile / KT]),
                             from, TILE, (1u << C) - 1, !lost);
        }
    }
    // Copies that nobody waited for must land before a block leaves.
    for (const u64 start = nanoseconds(); (lost || *(volatile u32*)&l.s.lost) && nanoseconds() - start < 20000;);
}

// h of two tiles and 8 rows as mma's b, first and second; each lane names one of the 32 rows of 8 units.
__device__ __forceinline__ uint4 two_tiles(u32 from) {
    uint4 b;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w) : "r"(from) : "memory");
    return b;
}

__device__ __forceinline__ void product(const Layer& l, int warp, int lane) {
    const int half = warp / 4, q = lane % 4, n = lane / 4;
    uint4 a[KT];
    const uint4* mine = l.r + (((size_t)l.d * TEAM + l.place) * 4 + warp % 4) * TILES * 32 + lane;
#pragma unroll
    for (int k = 0; k < KT; k++) a[k] = half * KT + k < TILES ? mine[(half * KT + k) * 32] : make_uint4(0, 0, 0, 0);
    bool lost = false;
    for (int turn = 0; turn < l.turns(); turn++) {
        const int stage = turn % STAGES;
        const u32 from = shared_address(l.s.h[stage] + half * KT * TILE);
        wait(l, l.s.came[stage][half], turn / STAGES & 1, lost);
        if (lost) *(volatile u32*)&l.s.lost = 1;
        float acc[NB / 2] = {};
#if NB == 8
        // Two tiles of h at once; sums of four chains: an instruction's answer takes four times its turn.
        float chains[4][4] = {};
#pragma unroll
        for (int k = 0; k < KT; k += 2) {
            const uint4 two = two_tiles(from + k * TILE + lane * 16);
            mma(chains[k % 4], a[k], make_uint2(two.x, two.y));
            mma(chains[k % 4 + 1], a[k + 1], make_uint2(two.z, two.w));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) acc[i] = chains[0][i] + chains[1][i] + (chains[2][i] + chains[3][i]);
#else
        // Rows of 8 units: 8 of them are a matrix of 128 bytes; the next 8 rows, and the next 8 units.
        const u64 h = (from & 0x3ffff) >> 4 | (u64)NB << 16 | (u64)8 << 32;
        products_begin();
#pragma unroll
        for (int k = 0; k < KT; k++) multiply_tile(acc, a[k], h + k * (TILE / 16));
        products_commit();
        products_wait<0>();
#endif
        // The cells have taken the sums before: of this half of h alone nothing may have waited for them.
        if (turn) asm volatile("barrier.cta.sync 2, 384;" ::: "memory");
        float* to = l.s.sum[half] + n / 4 * S_GATE + q * 2 * S_UNIT + warp % 4 * 4 + n % 4;
#pragma unroll
        for (int i = 0; i < NB / 2; i++) to[i / 2 % 2 * 2 * S_GATE + (i / 4 * 8 + i % 2) * S_UNIT] = acc[i];
        asm volatile("barrier.cta.arrive 1, 384;" ::: "memory");
    }
}

#include "multicast_cells.cuh"

// By one warp of a block that is through. The last one of all leaves `ready` as it was found: also where a block was
// lost and the projection went on alone.
__device__ __forceinline__ void leave(u64* count, u32 blocks, u32* ready, int spans, int lane) {
    if (!__shfl_sync(~0u, lane == 0 && grid_leave(count, blocks), 0) || !ready) return;
    for (int i = lane; i < spans; i += 32) ready[i] = 0;
}

// A block of the grid beyond the teams.
__device__ __forceinline__ void project_xg(const projection::Work& work, u64* count, u32 leaving) {
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    work.begin();
    if (warp >= 8) {
        keep_registers<24>();
        if (threadIdx.x == 256) work.fetch();
    } else {
        keep_registers<232>();
        work.compute(warp, lane);
        asm volatile("barrier.cta.sync 5, 256;" ::: "memory");
        if (warp == 0) leave(count, leaving, work.ready, work.tiles().spans, lane);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrence_multicast(
    const uint4* __restrict__ r, float* xg, const float* __restrict__ bias_n,
    const int* __restrict__ lengths, const float* h_0, const float* c_0, float* __restrict__ output,
    float* h_n, float* c_n, void* scratch, u32* error, int batch, int time, long long state_stride, u64 timeout,
    u32* ready, int times, int blocks, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
    const float* bias, int K, int direction) {
    extern __shared__ __align__(1024) unsigned char raw[];
    constexpr int WAYS = APART ? 1 : D;  // directions of this launch
    const int teams = (batch + NB * GROUPS - 1) / (NB * GROUPS) * WAYS, place = blockIdx.x % TEAM;
    u64* const count = reinterpret_cast<u64*>(scratch);
    const u32 leaving = teams * TEAM + blocks;
    if (blockIdx.x >= teams * TEAM) {
        // Some of each cluster: clusters share a way to the L2 cache.
        const int i = blockIdx.x - teams * TEAM, first = i % C * ((gridDim.x - teams * TEAM) / C) + i / C;
        if (first < blocks)
            project_xg({*reinterpret_cast<projection::Shared*>(raw), x, w, bias, xg, ready, batch, time, times,
                        D * GATES * H, K, first, blocks},
                       count, leaving);
        return;
    }
    Shared& s = *reinterpret_cast<Shared*>(raw);
    const int tid = threadIdx.x, team = blockIdx.x / TEAM, d = APART ? direction : team % D;
    unsigned char* words = reinterpret_cast<unsigned char*>(scratch) + 128 + (size_t)team * GROUPS * 2 * TEAM * TILE;
    const Layer layer{s, r, xg, bias_n, ready, times, lengths, h_0, c_0, output, h_n, c_n, words, error, batch, time,
                      state_stride, timeout, cluster_rank(), place, d, team / WAYS * NB * GROUPS,
                      DIRECTIONS == 2 || d == 1};
    constexpr int OWN = TILE / 16;
    for (int i = tid; i < GROUPS * 2 * OWN; i += THREADS)
        write_word(reinterpret_cast<uint4*>(words + (size_t)(i / OWN) * TEAM * TILE + place * TILE) + i % OWN,
                   make_uint4(0, 0, 0, 0));
    if (tid == 0) {
        s.lost = 0;
        for (int i = 0; i < STAGES * 2; i++) barrier_init(shared_address(s.came[0] + i), 1);
        for (int i = 0; i < STAGES; i++) barrier_init(shared_address(s.read + i), C);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    const int warp = __shfl_sync(~0u, tid / 32, 0), lane = tid % 32;
    if (warp < 8) {
        keep_registers<PRODUCT_REGISTERS>();
        product(layer, warp, lane);
        cluster_sync();  // no block leaves while others may still write to it
    } else if (warp < 12) {
        keep_registers<CELL_REGISTERS>();
        previous_kernel_done();
        if (tid == PRODUCT) grid_meet(count, teams * TEAM, timeout, error);
        asm volatile("barrier.cta.sync 3, 256;" ::: "memory");
        cells(layer, warp - 8, lane);
        cluster_sync();
    } else {
        keep_registers<COURIER_REGISTERS>();
        asm volatile("barrier.cta.sync 3, 256;" ::: "memory");
        courier(layer, warp - 12, lane);
        cluster_sync();
    }
    if (warp == PRODUCT / 32) leave(count, leaving, ready, ready ? (time + times - 1) / times : 0, lane);
}
