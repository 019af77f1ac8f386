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
    constexpr int EACH = (C - 1 + 3) / 4;
    auto send = [&](int g, int buffer) {
        asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + g), "n"(THREADS) : "memory");
        if (lane != 0 || *(volatile u32*)&l.s.lost != 0) return;
        if (warp == 0) barrier_arrive(l.h_came + (g * BUFFERS + buffer) * 8);
        if (warp * EACH < C - 1) send_part<EACH>(l, g, buffer, warp * EACH);
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
