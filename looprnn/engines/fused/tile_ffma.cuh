// R·h of a warp's 4 units in true fp32, without tensor cores.
//
// A lane holds 4 columns in 128 of every row, row = 4·slot + unit; the 32 parts of a sum meet in a
// butterfly that leaves each lane one sum: value = row·NB + batch row.
constexpr int ROWS = 4 * GATES, VALUES = (CELL == RNN ? 4 : 16) * NB, LANES = 32 / VALUES;
constexpr int SPANS = (H + 127) / 128;
constexpr int R_WORDS = SPANS * ROWS;          // of 16 bytes, in each lane
constexpr bool LANE_PER_GATE = CELL != RNN;
constexpr int SLOT_LOW = 8, SLOT_HIGH = 16;    // lane ^ these: slot ^ 1, slot ^ 2
constexpr int PART_QUADS = WARPS;
constexpr int H_QUADS = SPANS * 32 > QUADS ? SPANS * 32 : QUADS, QUAD_BYTES = 16 * NB;
static_assert(NB == 1 || NB == 2, "rows of a group");

struct Tile {
    const int lane, value = lane / LANES;
    const int column = value % NB, unit = value / NB % 4, slot = value / NB / 4;
    const bool owner = slot == 0 && lane % LANES == 0;

    __device__ static int place(int quad, int row) { return quad * QUAD_BYTES + row * 16; }
    __device__ static void put(unsigned char* h, int unit, int row, float value) {
        *reinterpret_cast<float*>(h + place(unit / 4, row) + unit % 4 * 4) = value;
    }

    template <class R>
    __device__ void product(R r, const unsigned char* h, float (&sum)[4]) {
        float v[VALUES] = {};
#pragma unroll
        for (int k = 0; k < SPANS; k++) {
            float4 x[NB];
#pragma unroll
            for (int b = 0; b < NB; b++) x[b] = *reinterpret_cast<const float4*>(h + place(k * 32 + lane, b));
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                const uint4 w = r(k * ROWS + row);
#pragma unroll
                for (int b = 0; b < NB; b++) {
                    float& y = v[row * NB + b];
                    y = fmaf(__uint_as_float(w.x), x[b].x, y), y = fmaf(__uint_as_float(w.y), x[b].y, y);
                    y = fmaf(__uint_as_float(w.z), x[b].z, y), y = fmaf(__uint_as_float(w.w), x[b].w, y);
                }
            }
        }
        // Each lane keeps the half of the values its bit names and gives the other half away.
#pragma unroll
        for (int level = 1; level <= 5; level++) {
            const int bit = 32 >> level, width = VALUES >> level;
            if (width == 0) v[0] += __shfl_xor_sync(~0u, v[0], bit);
            const bool high = lane & bit;
#pragma unroll
            for (int i = 0; i < VALUES / 2; i++)  // a constant bound: v stays in registers
                if (i < width) {
                    const float a = v[i], b = v[i + width];
                    v[i] = (high ? b : a) + __shfl_xor_sync(~0u, high ? a : b, bit);
                }
        }
        sum[0] = v[0];
    }
};
