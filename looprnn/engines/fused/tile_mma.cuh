// R·h of a warp's 4 units on the tensor cores: fp16 or bf16, summed in fp32.
//
// The A tile, m16n8k16, holds 4 slots of them: row = 4·slot + unit. LSTM: slots i f g o. RNN: slot s
// holds every fourth k tile of h, from the s-th on. GRU: r z n.
//
// h lies in tiles: [k tile][row][quad][4 units]. Quad q of a tile feeds the columns 2q, 2q+1, 2q+8,
// 2q+9, so one 8-byte load is a lane's whole B fragment; the lanes of rows that are not there hold 0
// and load nothing.
//
// One row of LSTM or GRU (ALONE) is read 8 k tiles at a time, tile i in column i: shared memory has
// better to do than to serve every lane for every tile. The product with tile i sums into acc[i],
// where column i alone means something. Of a GRU's 8 tiles 6 go so, and its fourth slot has the
// rows of r, z, n for the other two: acc[g] for tile 6, acc[3 + g] for tile 7.
constexpr int H_TILES = CELL == RNN ? (QUADS + 15) / 16 * 4 : (H + 15) / 16;
constexpr bool DIAGONAL = CELL == RNN && NB <= 2;              // column = 4·row + slot
constexpr bool LANE_PER_GATE = NB == 1 && CELL != RNN;         // else a lane has a whole cell
constexpr bool ALONE = LANE_PER_GATE;
constexpr int EIGHTS = (H_TILES + 7) / 8, OF_EIGHT = CELL == GRU ? 6 : 8;  // products for 8 tiles
constexpr int LAST = H_TILES - (EIGHTS - 1) * 8, OF_LAST = LAST < OF_EIGHT ? LAST : OF_EIGHT;
// Of 16 bytes, in each lane.
constexpr int R_WORDS = CELL == RNN ? H_TILES / 4 : ALONE ? (EIGHTS - 1) * OF_EIGHT + OF_LAST : H_TILES;
constexpr int SLOT_LOW = 16, SLOT_HIGH = 1;                    // lane ^ these: slot ^ 1, slot ^ 2
constexpr int PART_QUADS = (WARPS + 3) / 4 * 4;                // a block's part of h: whole tiles
constexpr int READ_QUADS = ALONE ? EIGHTS * 32 : H_TILES * 4;
constexpr int QUAD_BYTES = NB * 8, H_QUADS = READ_QUADS > C * PART_QUADS ? READ_QUADS : C * PART_QUADS;
static_assert(1 <= NB && NB <= 8, "rows of a group");
static_assert(C == 1 || WARPS == PART_QUADS, "the parts of h lie side by side");

struct Tile {
    const int lane, q = lane % 4, n = lane / 4, upper = lane / 16;
    const int unit = n % 4;
    const int slot = LANE_PER_GATE ? upper + 2 * (q % 2) : 0;
    const int column = LANE_PER_GATE ? 0 : DIAGONAL ? q / 2 : 2 * q + upper;
    const bool owner = LANE_PER_GATE ? slot == 0 && q == 0
                       : DIAGONAL    ? upper == 0 && q % 2 == 0 && column < NB
                                     : column < NB;
    uint2 b[8] = {};

    // Bytes from the start of h, or of a block's part of it.
    __device__ static int place(int quad, int row) { return quad / 4 * 4 * QUAD_BYTES + row * 32 + quad % 4 * 8; }
    __device__ static void put(unsigned char* h, int unit, int row, float value) {
        *reinterpret_cast<unsigned short*>(h + place(unit / 4, row) + unit % 4 * 2) = pack_halves(value, 0.f);
    }

    // h of this lane's column → b[which].
    __device__ __forceinline__ void load(int which, u32 from, bool loads) {
        asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.shared.v2.u32 {%0, %1}, [%2];\n}"
                     : "+r"(b[which].x), "+r"(b[which].y) : "r"(from), "r"((u32)loads));
    }

    // One row's, 8 tiles at a time → this lane's slot's sum.
    template <class R>
    __device__ __forceinline__ void product_of_one(R r, const unsigned char* h, float (&sum)[4]) {
        const u32 from = shared_address(h) + lane * 8;
        float acc[OF_EIGHT][4] = {};
        uint2 all[EIGHTS];
#pragma unroll
        for (int m = 0; m < EIGHTS; m++)
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(all[m].x), "=r"(all[m].y) : "r"(from + m * 256));
#pragma unroll
        for (int k = 0; k < R_WORDS; k++) mma(acc[k % OF_EIGHT], r(k), all[k / OF_EIGHT]);
        // Column c lies in the lanes with q = c / 2: `low` of slots 0 and 1, `high` of 2 and 3.
        float low = 0.f, high = 0.f;
#pragma unroll
        for (int i = 0; i < OF_EIGHT; i += 2) {
            const float a = acc[i][0] + acc[i + 1][1], b = acc[i][2] + acc[i + 1][3];
            low = q == i / 2 ? a : low, high = q == i / 2 ? b : high;
        }
        float of_r = 0.f, of_n = 0.f;
        if (CELL == GRU) {  // columns 6 and 7, in the fourth slot's lanes
            if (q == 3) low = upper ? acc[1][2] + acc[4][3] : 0.f, high = 0.f;
            const int fourth = 16 | (lane & 12) | 3;
            of_r = __shfl_sync(~0u, acc[0][2] + acc[3][3], fourth);
            of_n = __shfl_sync(~0u, acc[2][2] + acc[5][3], fourth);
        }
        const bool odd = q % 2;  // even lanes take the sum of low, odd ones that of high
        float own = (odd ? high : low) + __shfl_xor_sync(~0u, odd ? low : high, 1);
        own += __shfl_xor_sync(~0u, own, 2);
        sum[0] = CELL != GRU ? own : odd ? own + of_n : upper ? own : own + of_r;
    }

    // R·h → sum: one a slot, or this lane's slot's alone.
    template <class R>
    __device__ __forceinline__ void product(R r, const unsigned char* h, float (&sum)[4]) {
        if (ALONE) return product_of_one(r, h, sum);
        constexpr int TILES = DIAGONAL ? R_WORDS : H_TILES, STEP = (DIAGONAL ? 16 : 4) * QUAD_BYTES;
        const u32 from = shared_address(h) + (DIAGONAL ? place(n % 4 * 4 + q, n / 4 % NB) : place(q, n % NB));
        const bool loads = DIAGONAL || n < NB;
        float acc[4][4] = {};
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            load(k % 8, from + k * STEP, loads);
            mma(acc[k % 4], r(CELL == RNN && !DIAGONAL ? k / 4 : k), b[k % 8]);
        }
        if (CELL == RNN && !DIAGONAL) {  // lower lanes have slots 0 and 2 of both columns, upper 1 and 3
            const float even = upper ? acc[1][0] + acc[3][2] : acc[0][0] + acc[2][2];
            const float odd = upper ? acc[1][1] + acc[3][3] : acc[0][1] + acc[2][3];
            sum[0] = (upper ? odd : even) + __shfl_xor_sync(~0u, upper ? even : odd, 16);
            return;
        }
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = (acc[0][i] + acc[1][i]) + (acc[2][i] + acc[3][i]);
        if (DIAGONAL) {
            float part = upper ? (q % 2 ? v[3] : v[1]) : (q % 2 ? v[2] : v[0]);
            part += __shfl_xor_sync(~0u, part, 16);
            sum[0] = part + __shfl_xor_sync(~0u, part, 1);
        } else {
            const float low = __shfl_xor_sync(~0u, upper ? v[0] : v[1], 16);
            const float high = __shfl_xor_sync(~0u, upper ? v[2] : v[3], 16);
            sum[0] = upper ? low : v[0], sum[1] = upper ? v[1] : low;
            sum[2] = upper ? high : v[2], sum[3] = upper ? v[3] : high;
        }
    }
};
