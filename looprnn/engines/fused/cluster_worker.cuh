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

    // A warp that lost a block goes on without waiting for h or x, so that no other warp waits for it for long.
    bool lost = l.rank == LOSE_BLOCK;
    auto wait = [&](u32 barrier, u32 parity) {
        if (!lost && !barrier_wait(barrier, parity, l.timeout, l.error)) lost = true;
        if (lost) *(volatile u32*)&s.lost = 1;
    };
    auto wait_for_h = [&](int g, int buffer, u32 parity) {  // and arms its barrier for the next time
        const u32 barrier = l.h_came + (g * BUFFERS + buffer) * 8;
        wait(barrier, parity);
        if (warp == 0 && tile.lane == 0 && !lost) barrier_expect(barrier, FROM_OTHERS);
    };
    auto stage = [&](int g, int buffer, float value) {
        if (tile.owner) Tile::put(s.h[g][buffer] + l.rank * PART, own_unit, tile.column, value);
    };
    constexpr int EACH = (C - 1 + WARPS - 1) / WARPS;  // without a courier: blocks a warp sends to
    auto send = [&](int g, int buffer) {
        hand_over(g, lost);
        if (COURIER) return;
        async_view();  // by those who send, after the barrier: it waits for this warp's own accesses
        if (!lost && warp * EACH < C - 1) send_part<EACH>(l, g, buffer, warp * EACH);
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
