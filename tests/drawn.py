"""Random specs over the whole space, for hypothesis."""

from dataclasses import replace

from hypothesis import strategies as st

from looprnn import parity
from looprnn.spec import ACTIVATIONS, ROLES, Activation, Head, Layer, RNNSpec, WeightSource

SIZES = st.integers(1, 6)
# Of moderate slope, and for gates bounded too: an unbounded gate multiplies the state at every
# step, and then no two ways of computing agree.
GATE = st.sampled_from(
    [Activation(k) for k in ("sigmoid", "hard_sigmoid", "softsign")]
    + [Activation("hard_sigmoid", 1 / 6), Activation("scaled_tanh", 0.5, 0.7)]
)
ANY = st.sampled_from(
    [Activation(k, 0.4, 0.3) if ACTIVATIONS[k] is None else Activation(k) for k in ACTIVATIONS]
)


def agree(spec: RNNSpec, found: dict[str, float]) -> bool:
    """Within the tolerance, or ten times it where a few units are normalized: that divides by their
    deviation, which may be small, and enlarges what rounding left. The smallest bug is 0.07.
    """
    times = 10 if any(layer.layer_norm for layer in spec.layers) else 1
    return all(parity.agrees(value / times) for value in found.values())


@st.composite
def layers(draw: st.DrawFn, inputs: int, last: bool) -> Layer:
    """A layer that reads `inputs` at each step."""
    cell = draw(st.sampled_from(list(ROLES)))
    lstm, hidden = cell == "lstm", draw(SIZES)
    skip = draw(st.booleans()) and draw(st.booleans())
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    both = direction == "bidirectional"
    merges = ["concat", "sum", "mul", "average", *(["none"] if last else [])]
    maybe = st.none() | st.floats(0.25, 2.0)
    norm = lstm and not skip and draw(st.booleans())
    acts = st.tuples(*[GATE if r == "sigmoid" else ANY for r in ROLES[cell]])
    usual = draw(st.booleans())
    layer = Layer(
        cell=cell,
        hidden_size=inputs if skip else hidden,
        skip_input=skip,
        direction=direction,
        activations=() if usual else draw(acts),
        activations_reverse=() if usual or draw(st.booleans()) else draw(acts),
        merge=draw(st.sampled_from(merges)) if both else "concat",
        bias=draw(st.booleans()),
        peepholes=lstm and draw(st.booleans()),
        coupled=lstm and draw(st.booleans()),
        proj_size=draw(st.integers(1, hidden - 1))
        if lstm and not skip and hidden > 1 and draw(st.booleans())
        else None,
        clip=draw(maybe),
        cell_clip=draw(maybe) if lstm else None,
        reset=draw(st.sampled_from(["after", "before"])) if cell == "gru" else "after",
        layer_norm=norm,
    )
    fits = layer.output_size == inputs and layer.merge != "none"
    return replace(layer, residual=fits and draw(st.booleans()))


@st.composite
def specs(draw: st.DrawFn) -> RNNSpec:
    """A valid spec of one to three layers."""
    inputs = draw(SIZES)
    count, stack, into = draw(st.integers(1, 3)), [], inputs
    for k in range(count):
        layer = draw(layers(into, k + 1 == count))
        stack.append(layer)
        into = layer.output_size
    lengths = draw(st.booleans())
    head = draw(st.none() | st.builds(
        Head, size=SIZES, on=st.sampled_from(["output", "last"]), bias=st.booleans(),
        activation=st.sampled_from(["none", "sigmoid", "softmax"]),
    ))  # fmt: skip
    if head and head.on == "output" and stack[-1].merge == "none":
        head = None
    paddings = ["zero"] if any(layer.residual for layer in stack) else ["zero", "repeat"]
    return RNNSpec(
        name="drawn",
        input_size=inputs,
        layers=tuple(stack),
        vocabulary=draw(st.none() | st.integers(1, 9)),
        head=head,
        lengths=lengths,
        padding=draw(st.sampled_from(paddings)) if lengths else "zero",
        weights=WeightSource(seed=draw(st.integers(0, 2**32 - 1))),
    )
