// R·h of a warp's 4 units on the tensor cores: fp16 or bf16, summed in fp32.
//
// The A tile, m16n8k16, holds 4 slots of them: row = 4·slot + unit. LSTM: slots i f g o. GRU: r z n,
// one empty. RNN: slot s holds every fourth k tile of h, from the s-th on.
//
// h lies in tiles: [k tile][row][quad][4 units]. Quad q of a tile feeds the columns 2q, 2q+1, 2q+8,
// 2q+9, so one 8-byte load is a lane's whole B fragment; the lanes of rows that are not there hold 0
// and load nothing.
constexpr int H_TILES = CELL == RNN ? (QUADS + 15) / 16 * 4 : (H + 15) / 16;
constexpr int R_WORDS = CELL == RNN ? H_TILES / 4 : H_TILES;   // of 16 bytes, in each lane
constexpr bool DIAGONAL = CELL == RNN && NB <= 2;              // column = 4·row + slot
constexpr bool LANE_PER_GATE = NB == 1 && CELL != RNN;         // else a lane has a whole cell
constexpr int SLOT_LOW = 16, SLOT_HIGH = 1;                    // lane ^ these: slot ^ 1, slot ^ 2
constexpr int PART_QUADS = (WARPS + 3) / 4 * 4;                // a block's part of h: whole tiles
constexpr int QUAD_BYTES = NB * 8, H_QUADS = H_TILES * 4 > C * PART_QUADS ? H_TILES * 4 : C * PART_QUADS;
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

    // R·h → sum: one a slot, or this lane's slot's alone.
    template <class R>
    __device__ void product(R r, const unsigned char* h, float (&sum)[4]) {
        constexpr int TILES = DIAGONAL ? R_WORDS : H_TILES, STEP = (DIAGONAL ? 16 : 4) * QUAD_BYTES;
        const u32 from = shared_address(h) + (DIAGONAL ? place(n % 4 * 4 + q, n / 4 % NB) : place(q, n % NB));
        const bool loads = DIAGONAL || n < NB;
        float acc[4][4] = {};
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.shared.v2.u32 {%0, %1}, [%2];\n}"
                         : "+r"(b[k % 8].x), "+r"(b[k % 8].y) : "r"(from + k * STEP), "r"((u32)loads));
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
        } else if (LANE_PER_GATE) {
            const float high = __shfl_sync(~0u, v[2], lane & ~3);  // column 0 ends in the lanes with q = 0
            sum[0] = q == 0 ? v[0] : high;
        } else {
            const float low = __shfl_xor_sync(~0u, upper ? v[0] : v[1], 16);
            const float high = __shfl_xor_sync(~0u, upper ? v[2] : v[3], 16);
            sum[0] = upper ? low : v[0], sum[1] = upper ? v[1] : low;
            sum[2] = upper ? high : v[2], sum[3] = upper ? v[3] : high;
        }
    }
};
