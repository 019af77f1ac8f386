// A layer in one cooperative launch, for H too large for a cluster: a team of N blocks holds R in its
// registers, and h travels through global memory in words that say of themselves whether they came.
//
//   CELL                 LSTM 1, GRU 2 (reset after)
//   H UNITS              hidden size; units of a block: 8 or 16. A team has H / UNITS blocks
//   NB                   rows of a team: 1 to 64
//   DIRECTIONS           1 forward, 2 reverse, 3 both (teams alternate)
//   TYPE                 16 fp16, 17 bf16
//   LOSE_BLOCK           for the test of the timeout: this block of each team sends nothing
//
// 8 warps: UNITS / 4 A tiles (see tile_mma.cuh) times KS parts of K; the parts of a sum meet in shared
// memory. A word of h is 16 bytes, 8 units of a row, written and read at once; the lowest bit of its
// first unit is its tag, which alternates from use to use of its buffer, so a reader needs no flag and
// a writer no fence. That unit is rounded to a number with that bit: one unit in 8 has one bit less.
// Two buffers are enough for the reason that cluster.cu gives.
#include "persistent.cuh"
#include "words.cuh"

constexpr int GATES = CELL == LSTM ? 4 : 3, D = DIRECTIONS == 3 ? 2 : 1;
constexpr int TEAM = (H + UNITS - 1) / UNITS, MT = UNITS / 4, KS = 8 / MT, THREADS = 256;
constexpr int TILES = (H + 15) / 16, KT = (TILES + KS - 1) / KS;      // of K, of a warp
constexpr int NT = (NB + 7) / 8, COLUMNS = NT * 8 + 2;                // + 2: other banks
constexpr int WORDS = TEAM * UNITS / 8;                                // of a row of h
constexpr int CELLS = (UNITS * NB + THREADS - 1) / THREADS;            // of a thread
constexpr int ROUNDS = (WORDS * NB + THREADS - 1) / THREADS;           // words a thread reads
constexpr int TOGETHER = NB > 32 ? 4 : ROUNDS < 8 ? ROUNDS : 8;        // of them at once
constexpr int AHEAD = CELLS > 2 ? 1 : 2;                               // steps x is loaded ahead
static_assert(UNITS == 8 || UNITS == 16, "A tiles of 4 units times parts of K are 8 warps");
static_assert(1 <= NB && NB <= 64, "rows of a team");

struct Shared {
    unsigned char h[KS * KT + 1][NB * 32];  // [tile of 16 units][row][16]
    float part[KS][UNITS * 4][COLUMNS];     // [part of K][4·unit of 4 … see the A tile][row]
    unsigned short sent[NB][UNITS];
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrence_grid(
    const uint4* __restrict__ r, const float* __restrict__ xg, const float* __restrict__ bias_n,
    const int* __restrict__ lengths, const float* h_0, const float* c_0, float* __restrict__ output,
    float* h_n, float* c_n, void* scratch, u32* error, int batch, int time, long long state_stride, u64 timeout) {
    extern __shared__ __align__(128) unsigned char raw[];
    Shared& s = *reinterpret_cast<Shared*>(raw);
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, q = lane % 4, n = lane / 4;
    const int team = blockIdx.x / TEAM, rank = blockIdx.x % TEAM, d = team % D, first_row = team / D * NB;
    const bool reverse = DIRECTIONS == 2 || d == 1;
    const int tile_m = warp / KS, part = warp % KS;  // this warp's A tile, and part of K

    uint4 a[KT];
    const uint4* mine = r + ((size_t)d * TEAM * MT + rank * MT + tile_m) * TILES * 32 + lane;
#pragma unroll
    for (int k = 0; k < KT; k++) {
        const int tile = part * KT + k;
        a[k] = tile < TILES ? mine[tile * 32] : make_uint4(0, 0, 0, 0);
    }
    uint4* const words = reinterpret_cast<uint4*>(scratch) + 1 + (size_t)team * 2 * NB * WORDS;  // [2][row][word]
    for (int i = tid; i < 2 * NB * UNITS / 8; i += THREADS)
        write_word(words + i / (UNITS / 8) * WORDS + rank * (UNITS / 8) + i % (UNITS / 8), make_uint4(0, 0, 0, 0));
    for (u32 i = tid; i < sizeof(s.h) / 4; i += THREADS) reinterpret_cast<u32*>(s.h)[i] = 0;
    __syncthreads();
    previous_kernel_done();
    for (int i = tid; i < NB * H; i += THREADS) {
        const int row = i / H, unit = i % H;
        if (h_0 && first_row + row < batch)
            *reinterpret_cast<unsigned short*>(s.h[unit / 16] + row * 32 + unit % 16 * 2) =
                pack_halves(h_0[(first_row + row) * state_stride + d * H + unit], 0.f);
    }

    // This thread's cells: unit cell % UNITS, row cell / UNITS.
    float h[CELLS], c[CELLS], x[AHEAD][CELLS][GATES] = {};
    int length[CELLS];
    bool live[CELLS];
#pragma unroll
    for (int i = 0; i < CELLS; i++) {
        const int cell = i * THREADS + tid, unit = rank * UNITS + cell % UNITS, row = first_row + cell / UNITS;
        live[i] = cell < UNITS * NB && row < batch && unit < H;
        length[i] = !live[i] ? 0 : lengths ? min(lengths[row], time) : time;
        const size_t state = row * state_stride + d * H + unit;
        h[i] = live[i] && h_0 ? h_0[state] : 0.f;
        c[i] = live[i] && CELL == LSTM && c_0 ? c_0[state] : 0.f;
    }
    const int own_unit = rank * UNITS + tid % UNITS;  // THREADS is a multiple of UNITS: of every cell
    const float bias = CELL == GRU && bias_n && own_unit < H ? bias_n[d * H + own_unit] : 0.f;
    auto element = [&](int i, int t) {
        const int row = first_row + (i * THREADS + tid) / UNITS;
        const int when = reverse && t < length[i] ? length[i] - 1 - t : t;
        return (((size_t)row * time + when) * D + d) * H + own_unit;
    };
    auto load_x = [&](int cur, int t) {
#pragma unroll
        for (int i = 0; i < CELLS; i++)
            if (t < length[i]) {
                const float* from = xg + element(i, t) * GATES;
                if (GATES == 4) *reinterpret_cast<float4*>(x[cur][i]) = __ldg(reinterpret_cast<const float4*>(from));
                else
                    for (int k = 0; k < GATES; k++) x[cur][i][k] = __ldg(from + k);
            }
    };
    for (int t = 0; t < AHEAD; t++) load_x(t, t);
    bool lost = false;
    __syncthreads();
    if (tid == 0) grid_meet(reinterpret_cast<u64*>(scratch), gridDim.x, timeout, error);
    __syncthreads();

    // Until h(t) is here, all of it, in shared memory.
    auto receive = [&](int t) {
        const uint4* from = words + (t & 1) * NB * WORDS;
        const u32 tag = ((t - 1) >> 1 & 1) ^ 1;
        u64 start = 0;
        u32 tries = 0;
        for (int first = tid; first < WORDS * NB; first += TOGETHER * THREADS) {
            uint4 got[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                const int word = first + i * THREADS, row = word / WORDS, at = word % WORDS;
                if (word >= WORDS * NB) break;
                if (i == 0) got[0] = read_word(from + word);
                else if (i == 1)  // the others once one has come: the L2 cache has no time for questions
#pragma unroll
                    for (int k = 1; k < TOGETHER; k++)
                        if (first + k * THREADS < WORDS * NB) got[k] = read_word(from + first + k * THREADS);
                while ((got[i].x & 1) != tag && !lost) {
                    got[i] = read_word(from + word);
                    if (++tries % 256 == 0) {  // the clock is slow to read
                        if (start == 0) start = nanoseconds();
                        lost = late(start, timeout, error);
                        if (lost) *(volatile u32*)error = 1;
                    }
                }
                *reinterpret_cast<uint4*>(s.h[at / 2] + row * 32 + at % 2 * 16) = got[i];
            }
        }
    };

    uint2 b[8] = {};
    auto run_step = [&](int cur, int t) {
        if (t > 0) {
            receive(t);
            __syncthreads();
        }
        constexpr int CHAINS = NT == 1 ? 4 : 1;
        float acc[NT][CHAINS][4] = {};
        const u32 from = shared_address(s.h[part * KT]) + n * 32 + q * 8;
#pragma unroll
        for (int k = 0; k < KT; k++)
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint2& v = b[(k * NT + j) % 8];
                asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.shared.v2.u32 {%0, %1}, [%2];\n}"
                             : "+r"(v.x), "+r"(v.y)
                             : "r"(from + k * NB * 32 + j * 256), "r"((u32)(NB % 8 == 0 || j * 8 + n < NB)));
                mma(acc[j][k % CHAINS], a[k], v);
            }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = acc[j][0][i];
                if (CHAINS == 4) v = (v + acc[j][CHAINS / 3][i]) + (acc[j][CHAINS / 2][i] + acc[j][CHAINS - 1][i]);
                s.part[part][tile_m * 16 + n + i / 2 * 8][j * 8 + q * 2 + i % 2] = v;
            }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const int cell = i * THREADS + tid, own = cell % UNITS, row = cell / UNITS;
            if (cell >= UNITS * NB) break;
            float sum[GATES];
#pragma unroll
            for (int g = 0; g < GATES; g++) {
                sum[g] = 0.f;
#pragma unroll
                for (int k = 0; k < KS; k++) sum[g] += s.part[k][own / 4 * 16 + g * 4 + own % 4][row];
            }
            const float* xs = x[cur % AHEAD][i];
            const bool within = t < length[i];
            float fresh;
            if (CELL == LSTM) {
                const float yi = sigmoid(sum[0] + xs[0]), yf = sigmoid(sum[1] + xs[1]);
                const float next = fmaf(yf, c[i], yi * tanh_of(sum[2] + xs[2]));
                fresh = sigmoid(sum[GATES - 1] + xs[GATES - 1]) * tanh_of(next);
                if (within) c[i] = next;
            } else {
                const float reset = sigmoid(sum[0] + xs[0]), z = sigmoid(sum[1] + xs[1]);
                const float candidate = tanh_of(fmaf(reset, sum[2] + bias, xs[2]));
                fresh = fmaf(z, h[i] - candidate, candidate);
            }
            if (within) h[i] = fresh;
            s.sent[row][own] = pack_halves(h[i], 0.f);
        }
        __syncthreads();
        if (t + 1 < time && rank != LOSE_BLOCK)
            for (int i = tid; i < NB * UNITS / 8; i += THREADS) {
                const int row = i / (UNITS / 8), at = i % (UNITS / 8);
                uint4 word = *reinterpret_cast<const uint4*>(s.sent[row] + at * 8);
                word.x = (word.x & ~1u) | ((t >> 1 & 1) ^ 1);
                write_word(words + ((t + 1 & 1) * NB + row) * WORDS + rank * (UNITS / 8) + at, word);
            }
#pragma unroll
        for (int i = 0; i < CELLS; i++)
            if (live[i]) output[element(i, t)] = t < length[i] ? h[i] : 0.f;
        load_x(cur % AHEAD, t + AHEAD);
    };
    for (int t = 0; t < time; t += 2) {
        run_step(0, t);
        if (t + 1 < time) run_step(1, t + 1);
    }
#pragma unroll
    for (int i = 0; i < CELLS; i++)
        if (live[i]) {
            const size_t to = (first_row + (i * THREADS + tid) / UNITS) * state_stride + d * H + own_unit;
            h_n[to] = h[i];
            if (CELL == LSTM) c_n[to] = c[i];
        }
    if (tid == 0) grid_leave(reinterpret_cast<u64*>(scratch), gridDim.x);
}
