"""How the warps of multicast.cu hand h on, as a model under random interleavings: no step reads
what is not there, or no longer, whoever is late. The kernel itself runs on a GPU alone.

A warp is a generator; at each `yield` any other may go on. Half of the product's warps are one
here, and half of the cells'. Waits are the kernel's: by parity, and by counts of arrivals.
"""

import random
from collections.abc import Iterator

import pytest

Warp = Iterator[None]
HALVES = (0, 1)  # of K; of a block's cells
COURIERS = 4  # more than have a tile here: some stand idle
STALL, PATIENCE = 300, 400_000  # turns of other warps


class Wrong(Exception):
    """What the kernel must never do."""


class Arrivals:
    """An mbarrier: a phase ends once so many have arrived and no copies are under way."""

    def __init__(self, count: int) -> None:
        self.count = self.pending = count
        self.under_way = self.phase = 0

    def change(self, arrivals: int = 0, copies: int = 0) -> None:
        self.pending -= arrivals
        self.under_way += copies
        if self.pending < 0:
            raise Wrong("an arrival that counts for the phase before")
        if self.pending == self.under_way == 0:
            self.phase, self.pending = self.phase + 1, self.count

    def wait(self, parity: int) -> Warp:
        while self.phase % 2 == parity:
            yield


class Named:
    """A barrier of a block, by its number, for four warps."""

    def __init__(self) -> None:
        self.came = self.phase = 0

    def arrive(self) -> None:
        self.came += 1
        if self.came == 4:
            self.came, self.phase = 0, self.phase + 1

    def sync(self) -> Warp:
        phase = self.phase
        self.arrive()
        while self.phase == phase:
            yield


class Block:
    def __init__(self, blocks: int, cluster: int, stages: int) -> None:
        self.h = [[-1] * blocks for _ in range(stages)]  # of which turn each tile is
        self.came = [[Arrivals(1) for _ in HALVES] for _ in range(stages)]
        self.read = [Arrivals(cluster) for _ in range(stages)]
        self.sums = [-1, -1]
        self.named = {1: Named(), 2: Named()}


class Model:
    def __init__(self, seed: int, groups: int, stages: int, without: str = "") -> None:
        self.random, self.groups, self.stages = random.Random(seed), groups, stages
        self.clusters, self.cluster, self.without = self.random.choice((2, 3)), 2, without
        self.size, self.turns = self.clusters * self.cluster, 9 * groups
        self.replies = stages < 2 * groups and without != "replies"
        self.blocks = [Block(self.size, self.cluster, stages) for _ in range(self.size)]
        # In memory: [group][of two buffers][tile][word] → tag and turn
        self.words = [
            [[[(0, -1)] * 2 for _ in range(self.size)] for _ in range(2)] for _ in range(groups)
        ]
        self.live: list[Warp] = []

    def run(self) -> None:
        for x in range(self.size):
            self.live += [self.courier(x, warp) for warp in range(COURIERS)]
            self.live += [role(x, half) for role in (self.product, self.cells) for half in HALVES]
        left = PATIENCE
        while self.live:
            warp = self.random.choice(self.live)
            if next(warp, "ended") == "ended":
                self.live.remove(warp)
            left -= 1
            if not left:
                raise Wrong("nobody can go on")

    def tag(self, t: int) -> int:
        return 1 if self.without == "tags" else (t >> 1 & 1) ^ 1

    def pause(self, most: int) -> Warp:
        for _ in range(self.random.randrange(most)):
            yield

    def courier(self, x: int, warp: int) -> Warp:
        own, share = self.blocks[x], self.size // self.cluster
        if warp >= share and self.without != "the idle couriers' leave":
            return
        for turn in range(self.turns):
            g, t, stage = turn % self.groups, turn // self.groups, turn % self.stages
            if self.random.random() < 0.1:
                yield from self.pause(STALL)
            if turn >= self.stages and self.without != "the courier's wait":
                before = (turn // self.stages - 1) % 2
                if self.replies:
                    yield from own.read[stage].wait(before)
                elif warp == 0:
                    for barrier in own.came[stage]:
                        yield from barrier.wait(before)
            if warp == 0:
                for half in HALVES:
                    own.came[stage][half].change(arrivals=1, copies=self.size // 2)
            for i in range(warp, share, COURIERS):
                tile = x % self.cluster * share + i
                words = self.words[g][t % 2][tile]
                while any(tag != self.tag(t) for tag, _ in words):
                    yield
                self.live.append(self.copy(x, words, tile, turn))
                yield

    def copy(self, x: int, words: list[tuple[int, int]], tile: int, turn: int) -> Warp:
        """By the copy engine: words at some time, to each block of the cluster at some other."""
        for k in HALVES:
            yield from self.pause(4)
            if words[k][1] != turn:
                raise Wrong("a copy of other words than those that came")
        first = x // self.cluster * self.cluster
        for k in self.random.sample(range(self.cluster), self.cluster):
            block, stage = self.blocks[first + k], turn % self.stages
            block.h[stage][tile] = turn
            block.came[stage][tile // (self.size // 2)].change(copies=-1)
            yield from self.pause(6)

    def product(self, x: int, half: int) -> Warp:
        own, tiles = self.blocks[x], self.size // 2
        for turn in range(self.turns):
            stage = turn % self.stages
            yield from own.came[stage][half].wait(turn // self.stages % 2)
            for tile in range(half * tiles, (half + 1) * tiles):
                if own.h[stage][tile] != turn:
                    raise Wrong("a product with another turn's h")
                yield
            if turn and self.without != "the cells' word that sums were taken":
                yield from own.named[2].sync()
            own.sums[half] = turn
            yield
            own.named[1].arrive()

    def cells(self, x: int, half: int) -> Warp:
        own = self.blocks[x]

        def send(g: int, t: int) -> None:
            self.words[g][t % 2][x][half] = self.tag(t), t * self.groups + g

        for g in range(self.groups):
            send(g, 0)
        for turn in range(self.turns):
            g, t = turn % self.groups, turn // self.groups
            if self.random.random() < 0.3:  # x is late
                yield from self.pause(STALL)
            yield from own.named[1].sync()
            if self.replies and half == 0:
                first = x // self.cluster * self.cluster
                for k in range(self.cluster):
                    self.blocks[first + k].read[turn % self.stages].change(arrivals=1)
            for k in HALVES:
                if own.sums[k] != turn:
                    raise Wrong("another turn's sums")
                yield
            if turn + 1 < self.turns and self.without != "the cells' word that sums were taken":
                own.named[2].arrive()
            if turn + self.groups < self.turns:
                send(g, t + 1)
            yield


@pytest.mark.parametrize(("groups", "stages"), [(1, 2), (2, 3), (2, 4), (4, 3), (4, 8)])
def test_every_turn_reads_its_own_h_and_sums(groups, stages):
    for seed in range(40):
        Model(seed, groups, stages).run()


@pytest.mark.parametrize(
    ("without", "groups", "stages"),
    [
        ("the cells' word that sums were taken", 1, 2),  # half of h may come without them
        ("the courier's wait", 1, 2),
        ("replies", 4, 3),
        ("the idle couriers' leave", 4, 3),  # who misses two phases waits for a third
        ("tags", 1, 2),
    ],
)
def test_what_the_protocol_cannot_do_without(without, groups, stages):
    with pytest.raises(Wrong):
        for seed in range(40):
            Model(seed, groups, stages, without).run()
