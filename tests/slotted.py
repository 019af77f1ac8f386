"""What the tests of states share: specs that stream, streams that come and go, and a look into the
slots.
"""

import cuda_on_cpu
import numpy as np

from looprnn import engines, parity, reference
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.states import HostStates, beside
from looprnn.weights import load_weights

CAPACITY, ROWS, STEPS = 6, 5, 9


def spec(*layers, input_size=5, precision="fp32", **options):
    return RNNSpec(
        name="streamed",
        input_size=input_size,
        layers=layers,
        lengths=True,
        streaming=True,
        precision=precision,
        profile=Profile(batch=Range(1, 1, ROWS), time=Range(1, 4, STEPS)),
        weights=WeightSource(seed=3),
        **options,
    )


SPECS = {
    "two_layers": spec(*2 * [Layer(cell="lstm", hidden_size=11)], h_0=0.25, c_0=-0.5),
    "h_and_c_of_other_sizes": spec(Layer(cell="lstm", hidden_size=11, proj_size=7), c_0=0.75),
    "one_state": spec(Layer(cell="gru", hidden_size=13), h_0=-0.25, head=Head(size=3, on="last")),
    "ids": spec(Layer(cell="rnn", hidden_size=130), vocabulary=9),
}
# Whose states a persistent kernel rounds and moves, two layers of them in the last.
LARGE = {
    "fp16": spec(Layer(cell="lstm", hidden_size=256), input_size=64, precision="fp16", h_0=0.1),
    "bf16": spec(Layer(cell="gru", hidden_size=512), input_size=64, precision="bf16"),
    "stack": spec(*2 * [Layer(cell="lstm", hidden_size=128)], input_size=32, c_0=0.3),
    "grid": spec(Layer(cell="lstm", hidden_size=1024), input_size=64, precision="fp16"),
}


class Opener:
    """opened(spec) → States of CAPACITY slots, of one kind."""

    def __init__(self, engine, kind, folder, closing):
        self._engine, self._kind, self._folder, self._closing = engine, kind, folder, closing

    def __call__(self, one, kind=None):
        kind, weights = kind or self._kind, load_weights(one)
        if kind == "kernels":
            return cuda_on_cpu.SlotsOnCpu(one, weights, CAPACITY)
        session = self.session(one)
        if kind == "host":
            return HostStates(session, one, CAPACITY)
        states = self._closing.enter_context(beside(session, one, CAPACITY))
        assert states.place == "the memory of GPU 0"
        return states

    def session(self, one):
        engine, path = engines.get(self._engine), self._folder / "engine"
        weights = load_weights(one)
        engine.build(one, weights, path, progress=lambda *_: None, workspace=0)
        return self._closing.enter_context(engine.session(path, one))


def play(states, one, seed=0, streams=9, rounds=60):
    """Streams that come and go, cut at random, some at once: [(inputs, outputs)] of each, whole.

    Some begin with states of their own, some last one chunk and need no slot, chunks have padding.
    """
    rng = np.random.default_rng(seed)
    free, live, done = list(range(CAPACITY)), {}, []
    waiting = [draw(one, rng) for _ in range(streams)]
    for _ in range(rounds):
        while waiting and free and rng.random() < 0.6:
            live[free.pop(rng.integers(len(free)))] = {**waiting.pop(), "at": 0, "got": []}
        count = min(len(live), int(rng.integers(1, ROWS + 1)))
        slots = [int(k) for k in rng.permutation(sorted(live))[:count]]
        if not slots:
            continue
        advance(states, one, rng, live, slots)
        for slot in slots:
            if live[slot]["at"] == live[slot]["input"].shape[1]:
                done.append(live.pop(slot))
                free.append(slot)
    assert not live
    assert not waiting
    return done


def draw(one, rng):
    """A stream: input [1, T, …], and perhaps states that it begins with."""
    inputs = parity.draw_inputs(one, 1, int(rng.integers(1, 4 * STEPS)), int(rng.integers(1 << 30)))
    own = {n: a for n, a in inputs.items() if n.endswith("_0")} if rng.random() < 0.4 else {}
    return {"input": inputs["input"], "own": own}


def advance(states, one, rng, live, slots):
    """One run: a chunk of each of these streams."""
    rows = [live[slot] for slot in slots]
    steps = [
        min(int(rng.integers(0, STEPS + 1)), row["input"].shape[1] - row["at"]) for row in rows
    ]
    time = min(STEPS, max(steps) + int(rng.integers(0, 2)) or 1)
    size = (len(rows), *one.shapes(1, time)["input"][1:])
    inputs = {
        "input": np.zeros(size, one.dtype("input")),
        "lengths": np.array(steps, np.int32),
    }
    begin, end = [], []
    for b, (slot, row, n) in enumerate(zip(slots, rows, steps, strict=True)):
        inputs["input"][b, :n] = row["input"][0, row["at"] : row["at"] + n]
        first = row["at"] == 0 and not row["got"]
        last = row["at"] + n == row["input"].shape[1]
        begin.append(slot if not first else -1 if row["own"] else CAPACITY)
        end.append(-1 if last else slot)
    if -1 in begin:
        inputs |= one.defaults(len(rows), time) | inputs
        for b, row in enumerate(rows):
            if begin[b] == -1:
                for name, array in row["own"].items():
                    inputs[name][b] = array[0]
    wanted = one.output_names if rng.random() < 0.5 else ("output", f"{one.states[-1]}_n")
    outputs = states.run(inputs, wanted, begin, end)
    for b, (row, n) in enumerate(zip(rows, steps, strict=True)):
        assert not outputs["output"][b, n:].any(), "past a chunk's length"
        row["got"].append(outputs["output"][b, :n].copy())
        row["last"] = {name: outputs[name][b].copy() for name in wanted if name.endswith("_n")}
        row["at"] += n


def worst(one, done):
    """The largest difference of any stream from the reference of its whole sequence."""
    found, weights = [], load_weights(one)
    for row in done:
        inputs = {**one.defaults(*row["input"].shape[:2]), "input": row["input"], **row["own"]}
        want = reference.run(one, weights, inputs)
        found.append(parity.difference(np.concatenate(row["got"]), want["output"][0]))
        found += [parity.difference(array, want[name][0]) for name, array in row["last"].items()]
    assert len(found) > len(done) > 3
    return max(found)


def state(states, one, slot):
    """What lies in a slot: exported by a row of no step, which changes nothing."""
    inputs = {"input": one_step(one), "lengths": np.zeros(1, np.int32)}
    names = [f"{s}_n" for s in one.states]
    outputs = states.run(inputs, names, [slot], [slot if slot < CAPACITY else -1])
    return {name: outputs[name][0].copy() for name in names}


def one_step(one, value=None):
    x = parity.draw_inputs(one, 1, 1, 8)["input"]
    return x if value is None else np.full_like(x, value)


def filled(states, one):
    """Something else in every slot."""
    for slot in range(CAPACITY):
        inputs = {"input": one_step(one), "lengths": np.zeros(1, np.int32)}
        for s in one.states:
            inputs[f"{s}_0"] = np.random.default_rng(slot).standard_normal(
                (1, *one.state_dims(s)), np.float32
            )
        states.run(inputs, [], [-1], [slot])
    return [state(states, one, slot) for slot in range(CAPACITY)]


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)
