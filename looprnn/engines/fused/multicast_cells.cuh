// The cells of multicast.cu: gates, states, the output, and the words of the next h.
#pragma once

// Until step t of xg is there; answers how many steps are: those known at once need no later look. By a whole warp.
__device__ __forceinline__ int await_x(const Layer& l, int t, int lane) {
    using projection::SIDE;
    const int spans = (l.time + l.times - 1) / l.times, span = min(t / l.times + lane, spans - 1);
    const u32 tiles = (l.batch * l.times + SIDE - 1) / SIDE * ((D * GATES * H + SIDE - 1) / SIDE);
    const u64 start = nanoseconds();
    while (true) {
        u32 count;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(l.ready + span) : "memory");
        const int more = __ffs(~__ballot_sync(~0u, count == tiles)) - 1;  // -1: all 32
        if (more != 0) return min((t / l.times + (more < 0 ? 32 : more)) * l.times, l.time);
        if (!__any_sync(~0u, late(start, l.timeout, l.error))) continue;
        *(volatile u32*)l.error = 1;
        return l.time;
    }
}

// Not by __ldg, which asks for memory that nobody writes meanwhile.
__device__ __forceinline__ void load_gates(float (&x)[4], const float* from) {
    if (GATES == 4)
        asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "l"(from));
    else
        for (int k = 0; k < GATES; k++) asm volatile("ld.global.f32 %0, [%1];" : "=f"(x[k]) : "l"(from + k));
}

// Rows row_of(0..CELLS - 1) of each group, one unit. A warp's lanes have rows four apart: other banks of the sums.
__device__ __forceinline__ void cells(const Layer& l, int warp, int lane) {
    Shared& s = l.s;
    const int own = lane % 16, unit = l.place * UNITS + own;
    const int base = warp * CELLS / 4 * 8 + warp * CELLS % 4, own_row = base + lane / 16 * 4;
    auto row_of = [&](int g, int i) { return l.first_row + g * NB + own_row + i; };
    for (int i = warp * 32 + lane; i < GROUPS * NB; i += 128) {
        const int row = l.first_row + i;
        s.length[i] = row >= l.batch ? 0 : l.lengths ? min(l.lengths[row], l.time) : l.time;
    }
    asm volatile("barrier.cta.sync 4, 128;" ::: "memory");
    auto length_of = [&](int g, int i) { return unit < H ? s.length[g * NB + own_row + i] : 0; };
    float h[GROUPS][CELLS], x[CELLS][4];
    auto c = [&](int g, int i) -> float& { return s.c[g][i][warp * 32 + lane]; };
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const bool live = row_of(g, i) < l.batch && unit < H;
            const size_t state = row_of(g, i) * l.state_stride + l.d * H + unit;
            h[g][i] = live && l.h_0 ? l.h_0[state] : 0.f;
            if (CELL == LSTM) c(g, i) = live && l.c_0 ? l.c_0[state] : 0.f;
        }
    const float bias = CELL == GRU && l.bias_n && unit < H ? l.bias_n[l.d * H + unit] : 0.f;
    // Without branches, so that the cells' chains of instructions run side by side: rows and units beyond the last
    // take the last one's x, and nothing of theirs is kept.
    auto element = [&](int g, int i, int t) {
        const int length = length_of(g, i), when = l.reverse && t < length ? length - 1 - t : t;
        return (((size_t)min(row_of(g, i), l.batch - 1) * l.time + when) * D + l.d) * H + min(unit, H - 1);
    };
    int known = l.ready ? 0 : l.time;  // so many steps of xg are there
    auto load_x = [&](int g, int t) {
        if (t >= known) known = await_x(l, t, lane);
#pragma unroll
        for (int i = 0; i < CELLS; i++) load_gates(x[i], l.xg + element(g, i, t) * GATES);
    };
    auto send = [&](int g, int t) {  // h(t)
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const u32 tagged = tagged_half(h[g][i], tag_of(t)), v = own % 8 ? pack_halves(h[g][i], 0.f) : tagged;
            *reinterpret_cast<unsigned short*>(s.sent[warp] + own / 8 * (CELLS * 32) + (lane / 16 * CELLS + i) * 16 + own % 8 * 2) = v;
        }
        __syncwarp();
        if (lane < CELLS * 4 && l.place != LOSE_BLOCK)
            write_word(reinterpret_cast<uint4*>(l.words_of(g, t) + l.place * TILE) + lane / (CELLS * 2) * NB + base +
                           lane / CELLS % 2 * 4 + lane % CELLS,
                       reinterpret_cast<const uint4*>(s.sent[warp])[lane]);
        __syncwarp();
    };
#pragma unroll
    for (int g = 0; g < GROUPS; g++) send(g, 0);
    load_x(0, 0);

    auto run_turn = [&](int g, int t) {
        asm volatile("barrier.cta.sync 1, 384;" ::: "memory");
        // Who goes on without waiting says nothing more: the others would take it for a later turn's word.
        const bool lost = *(volatile u32*)&s.lost;
        if (REPLIES && warp == 0 && lane < C && !lost) arrive_in_block(shared_address(&s.read[(t * GROUPS + g) % STAGES]), lane);
        float v[CELLS][GATES], fresh[CELLS];
#pragma unroll
        for (int i = 0; i < CELLS; i++)
#pragma unroll
            for (int k = 0; k < GATES; k++) {
                const int at = k * S_GATE + (own_row + i) * S_UNIT + own;
                v[i][k] = s.sum[0][at] + s.sum[1][at];
            }
        if (t * GROUPS + g + 1 < l.turns()) asm volatile("barrier.cta.arrive 2, 384;" ::: "memory");
        // Each gate of all cells before the next one.
#define EACH_CELL _Pragma("unroll") for (int i = 0; i < CELLS; i++)
        EACH_CELL v[i][0] = sigmoid(v[i][0] + x[i][0]);
        EACH_CELL v[i][1] = sigmoid(v[i][1] + x[i][1]);
        if (CELL == LSTM) {
            EACH_CELL v[i][2] = tanh_of(v[i][2] + x[i][2]);
            EACH_CELL v[i][GATES - 1] = sigmoid(v[i][GATES - 1] + x[i][GATES - 1]);
            EACH_CELL v[i][2] = fmaf(v[i][1], c(g, i), v[i][0] * v[i][2]);
            EACH_CELL fresh[i] = v[i][GATES - 1] * tanh_of(v[i][2]);
        } else {
            EACH_CELL v[i][2] = tanh_of(fmaf(v[i][0], v[i][2] + bias, x[i][2]));
            EACH_CELL fresh[i] = fmaf(v[i][1], h[g][i] - v[i][2], v[i][2]);
        }
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            const bool within = t < length_of(g, i);
            h[g][i] = within ? fresh[i] : h[g][i];
            if (CELL == LSTM && within) c(g, i) = v[i][2];
        }
        if (t + 1 < l.time && !lost) send(g, t + 1);
#pragma unroll
        for (int i = 0; i < CELLS; i++) {
            float* const to = l.output + element(g, i, t);
            if (row_of(g, i) < l.batch && unit < H) *to = t < length_of(g, i) ? h[g][i] : 0.f;
        }
        load_x((g + 1) % GROUPS, min(t + (g + 1) / GROUPS, l.time - 1));
    };
    for (int t = 0; t < l.time; t++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) run_turn(g, t);
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int i = 0; i < CELLS; i++)
            if (row_of(g, i) < l.batch && unit < H) {
                const size_t to = row_of(g, i) * l.state_stride + l.d * H + unit;
                l.h_n[to] = h[g][i];
                if (CELL == LSTM) l.c_n[to] = c(g, i);
            }
}
