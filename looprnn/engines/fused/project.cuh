// y [M, N] float = x [M, K] · w [N, K]ᵀ + bias [N] or null: the projection of many rows, by what Hopper alone has.
//
// x and w are halves. A block computes tiles of 128 × 128, one after another: one thread keeps the copy engine busy,
// PLACES pieces of 64 of K ahead, across tiles too; two groups of four warps take turns by tiles, so that one
// multiplies while the other stores what it has. Each sum is taken in one order, whatever else the GPU does: answers
// repeat to the bit.
//
// Row b · T + t of x and y is step t of row b of a batch. A tile has `times` steps, a power of two, of 128 / times rows.
// With `ready`, tiles come in the order of time, and ready[i] counts those of the i-th `times` steps that are stored.
//
// In shared memory all rows are 128 bytes, whose 16-byte chunk c lies at c ^ row % 8.
struct __align__(64) TensorMap { unsigned long long words[16]; };

namespace projection {

constexpr int SIDE = 128, PLACES = 6;
constexpr u32 ROW = 128, TILE = SIDE * ROW, SLAB = 16 * ROW;  // bytes: a piece of x or w, what a warp stores at once
struct Shared {
    unsigned char pieces[PLACES][2][TILE], slabs[8][2][SLAB];
    u64 full[PLACES], empty[PLACES];
};

// d [64, 128] += a [64, 16] · b [128, 16]ᵀ, or = where `add` is 0; four warps give it together, and it reads shared
// memory itself. Thread t has rows t / 32 · 16 + t % 32 / 4 and 8 more, and of each 8 columns two, at t % 4 · 2.
#if TYPE == 17
#define WGMMA "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
#else
#define WGMMA "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16"
#endif
#define TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
__device__ __forceinline__ void multiply(float (&d)[64], u64 a, u64 b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" WGMMA " {" TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)
                 "%60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;\n}\n"
                 : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48) : "l"(a), "l"(b), "r"(add));
}
// Where it finds rows in shared memory; 16 columns further on: 2 more, 64 rows: 512 more.
__device__ __forceinline__ u64 matrix(const void* rows) {
    return (shared_address(rows) & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Within a block: barrier_wait's order among clusters would drop the L1 cache each time.
__device__ __forceinline__ void wait(const u64& barrier, u32 parity) {
    asm volatile("{\n.reg .pred p;\nagain: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}"
                 ::"r"(shared_address(&barrier)), "r"(parity) : "memory");
}
__device__ __forceinline__ void box_in(void* to, const u64& barrier, const TensorMap& map, int column, int t, int b) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
                 ::"r"(shared_address(to)), "l"(&map), "r"(column), "r"(t), "r"(b), "r"(shared_address(&barrier)) : "memory");
}

// Past the L1 cache, where nothing would find it.
__device__ __forceinline__ void store(float* to, float4 v) {
    asm volatile("st.global.L1::no_allocate.v4.f32 [%0], {%1, %2, %3, %4};"
                 ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

struct Tile { int b, t, column; };
// In the order of time, all tiles of some steps come before the next steps'. Else tiles that follow each other have
// other rows and the same columns.
struct Tiles {
    int times, rows, spans, across, count;
    bool in_time;
    __device__ Tiles(int batch, int time, int times, int N, bool in_time)
        : times(times), rows((batch * times + SIDE - 1) / SIDE), spans((time + times - 1) / times),
          across((N + SIDE - 1) / SIDE), count(rows * spans * across), in_time(in_time) {}
    __device__ Tile operator[](int tile) const {
        const int row = in_time ? tile / across % rows : tile % (rows * spans) / spans;
        const int span = in_time ? tile / (across * rows) : tile % spans;
        return {row * (SIDE / times), span * times, (in_time ? tile % across : tile / (rows * spans)) * SIDE};
    }
};

// sum [64 · i + …] = the tile's, of its pieces from the `used`-th of this block on.
__device__ __forceinline__ void multiply_tile(Shared& s, float (&sum)[2][64], int used, int pieces, int lane) {
    for (int piece = 0; piece < pieces; piece++, used++) {
        const int stage = used % PLACES;
        wait(s.full[stage], used / PLACES & 1);
        const u64 a = matrix(s.pieces[stage][0]), b = matrix(s.pieces[stage][1]);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            multiply(sum[0], a + k * 2, b + k * 2, piece + k);
            multiply(sum[1], a + k * 2 + 512, b + k * 2, piece + k);
        }
        products_commit();
        if (piece == 0) continue;
        products_wait<1>();  // the piece before: this one goes on
        if (lane == 0) barrier_arrive(shared_address(&s.empty[(used - 1) % PLACES]));
    }
}

// A warp's sums, by way of shared memory: 16 rows of 32 columns in a slab, so that 8 lanes store 128 bytes of a row. In
// it chunk c of row r lies at c ^ r % 4 · 2, in other banks than its neighbours. INSIDE: no edge of y, and N is a
// multiple of 4.
template <bool INSIDE>
__device__ __forceinline__ void store_tile(Shared& s, const float (&sum)[2][64], float* y, const float* bias, Tile tile,
                                           int times, int batch, int time, int N, int warp, int lane) {
    unsigned char* const slabs = s.slabs[warp][0];
    const int r = lane / 4, n = tile.column + lane % 8 * 4, power = __ffs(times) - 1;
    const float4* const from = (const float4*)(slabs + lane / 8 * ROW + (lane % 8 ^ lane / 8 * 2) * 16);
    float* to[8];
    bool within[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = warp % 4 * 16 + lane / 8 + i / 4 * 64 + i % 4 * 4;
        const int b = tile.b + (row >> power), t = tile.t + (row & times - 1);
        to[i] = y + ((size_t)b * time + t) * N + n;
        within[i] = b < batch && t < time;
    }
#pragma unroll
    for (int part = 0; part < 4; part++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float* const two = sum[i / 4] + part * 16 + i % 4 * 4;
            float2* const at = (float2*)(slabs + i / 4 * SLAB + r * ROW + ((i % 4 ^ r % 4) * 2 + lane % 4 / 2) * 16 + lane % 2 * 8);
            at[0] = float2{two[0], two[1]};
            at[ROW] = float2{two[2], two[3]};  // 8 rows on
        }
        __syncwarp();
        const int left = N - n - part * 32;  // columns
        float4 add{0.f, 0.f, 0.f, 0.f};
        if (bias && INSIDE) add = *(const float4*)(bias + n + part * 32);
        if (bias && !INSIDE) {
            const float* const b = bias + n + part * 32;
            if (left > 0) add.x = b[0];
            if (left > 1) add.y = b[1];
            if (left > 2) add.z = b[2];
            if (left > 3) add.w = b[3];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 v = from[i * 4 * ROW / 16];
            float* const at = to[i] + part * 32;
            const float4 all{v.x + add.x, v.y + add.y, v.z + add.z, v.w + add.w};
            if (INSIDE) store(at, all);
            else if (within[i]) {
                if (left > 0) at[0] = all.x;
                if (left > 1) at[1] = all.y;
                if (left > 2) at[2] = all.z;
                if (left > 3) at[3] = all.w;
            }
        }
        __syncwarp();
    }
}

// What the threads of a block do for it: all of them begin(), then one fetches, and 256 from the first on, of 232
// registers, compute. `first` is the block's place among `blocks` that share the tiles.
struct Work {
    Shared& s;
    const TensorMap &x, &w;
    const float* bias;
    float* y;
    u32* ready;  // or null: nobody waits for single steps
    int batch, time, times, N, K, first, blocks;

    __device__ Tiles tiles() const { return Tiles(batch, time, times, N, ready != nullptr); }
    __device__ int pieces() const { return (K + 63) / 64; }

    __device__ __forceinline__ void begin() const {
        if (threadIdx.x == 0) {
            for (int i = 0; i < PLACES; i++) {
                barrier_init(shared_address(&s.full[i]), 1);
                barrier_init(shared_address(&s.empty[i]), 4);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
    }

    __device__ __forceinline__ void fetch() const {
        const Tiles tiles = this->tiles();
        int used = 0;
        for (int i = first; i < tiles.count; i += blocks) {
            const Tile tile = tiles[i];
            for (int piece = 0; piece < pieces(); piece++, used++) {
                const int place = used % PLACES;
                if (used >= PLACES) wait(s.empty[place], used / PLACES - 1 & 1);
                barrier_expect(shared_address(&s.full[place]), 2 * TILE);
                box_in(s.pieces[place][0], s.full[place], x, piece * 64, tile.t, tile.b);
                box_in(s.pieces[place][1], s.full[place], w, piece * 64, tile.column, 0);
            }
        }
    }

    __device__ __forceinline__ void compute(int warp, int lane) const {
        const Tiles tiles = this->tiles();
        const int group = warp / 4;
        float sum[2][64];
        for (int turn = group; first + turn * blocks < tiles.count; turn += 2) {
            const int next = first + (turn + 1) * blocks;
            // A barrier tells one phase from the next, not from the one after: who waits for pieces comes in turn.
            if (turn > 0) asm volatile("barrier.cta.sync %0, 256;" ::"r"(1 + turn % 2) : "memory");
            multiply_tile(s, sum, turn * pieces(), pieces(), lane);
            if (next < tiles.count) asm volatile("barrier.cta.arrive %0, 256;" ::"r"(2 - turn % 2) : "memory");
            products_wait<0>();
            if (lane == 0) barrier_arrive(shared_address(&s.empty[((turn + 1) * pieces() - 1) % PLACES]));
            const Tile tile = tiles[first + turn * blocks];
            const bool inside = tile.b + SIDE / times <= batch && tile.t + times <= time && tile.column + SIDE <= N;
            if (N % 4 == 0 && inside) store_tile<true>(s, sum, y, bias, tile, times, batch, time, N, warp, lane);
            else store_tile<false>(s, sum, y, bias, tile, times, batch, time, N, warp, lane);
            if (!ready) continue;
            asm volatile("barrier.cta.sync %0, 128;" ::"r"(3 + group) : "memory");
            if (threadIdx.x % 128 == 0)
                asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(ready + tile.t / times) : "memory");
        }
    }
};
}  // namespace projection
