"""Which layers of a Keras model make one stack, what becomes of the rest, and what is refused."""

import pytest
from keras_by_hand import H, I, drawn, layer, named, rnn, write
from keras_by_hand import called as call

from looprnn import importers
from looprnn.errors import SpecError, WeightsError


def two(tmp_path, between, kind="Functional", entries=None):
    """LSTM a → `between` → LSTM b, and the weights of both."""
    first = rnn("LSTM", "a", return_sequences=True)
    chain = [layer("InputLayer", "in"), first, between, rnn("LSTM", "b")]
    sources = [None, "in", "a", between["config"]["name"]]
    layers = [call(e, *([s] if s else [])) for e, s in zip(chain, sources, strict=True)]
    weights = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    return write(tmp_path / "two.h5", entries or layers, weights, kind=kind), layers


def test_several_stacks_are_listed_with_what_to_type(tmp_path):
    path, _ = two(tmp_path, layer("Conv1D", "conv"))
    with pytest.raises(WeightsError, match=r"(?s)several stacks.*--layer a: a \(LSTM\).*--layer b"):
        importers.read(path, name="x")
    with pytest.raises(WeightsError, match="no layer 'c'"):
        importers.read(path, name="x", layer="c")
    first, second = (importers.read(path, name="x", layer=n) for n in "ab")
    assert "not imported, after a (LSTM): conv (Conv1D)" in first.notes
    assert any("reads from conv (Conv1D), which is not imported" in n for n in second.notes)
    assert (first.spec.input_size, second.spec.input_size) == (I, H)


def test_a_lambda_is_named_and_never_run(tmp_path):
    code = layer("Lambda", "trick", function=["gAN9cQAu", None, None])
    path, _ = two(tmp_path, code)
    notes = importers.read(path, name="x", layer="b").notes
    assert "trick (Lambda): holds code, which was not run" in notes


def test_dropout_between_makes_one_stack(tmp_path):
    path, _ = two(tmp_path, layer("Dropout", "drop", rate=0.5))
    assert len(importers.read(path, name="x").spec.layers) == 2


def test_a_circle_is_refused(tmp_path):
    _, layers = two(tmp_path, layer("Dropout", "drop"))
    sequences = rnn("LSTM", "b", return_sequences=True)
    for turn in (
        [call(layers[2], "drop"), *layers[:2], layers[3]],
        [layers[0], call(layers[1], "b"), layers[2], call(sequences, "drop")],
    ):
        path, _ = two(tmp_path, layer("Dropout", "drop"), entries=turn)
        with pytest.raises(WeightsError, match="circle"):
            importers.read(path, name="x")


def test_a_missing_source_is_named(tmp_path):
    path, _ = two(tmp_path, layer("Dropout", "d"), entries=[call(rnn("LSTM", "a"), "nowhere")])
    with pytest.raises(WeightsError, match="a reads from 'nowhere', not a layer"):
        importers.read(path, name="x")


def test_a_reversed_sequence_under_a_mask_is_refused(tmp_path):
    layers = [
        layer("Masking", "m", mask_value=0.0),
        rnn("LSTM", "a", return_sequences=True, go_backwards=True),
        rnn("LSTM", "b"),
    ]
    weights = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    with pytest.raises(SpecError, match="b \\(LSTM\\): it reads a sequence that go_backwards left"):
        importers.read(write(tmp_path / "a.h5", layers, weights), name="x")


def functional(tmp_path, *layers, **weights):
    """Layers with what each reads, as (entry, *sources)."""
    entries = [call(entry, *sources) for entry, *sources in layers]
    held = {name: named(name, arrays) for name, arrays in weights.items()}
    return importers.read(write(tmp_path / "f.h5", entries, held, kind="Functional"), name="x")


def sequential(tmp_path, *layers, **weights):
    held = {
        name: given if isinstance(given, dict) else named(name, given)
        for name, given in weights.items()
    }
    return importers.read(write(tmp_path / "s.h5", list(layers), held), name="x")


IN, OTHER = layer("InputLayer", "in"), layer("InputLayer", "other")


def test_an_add_around_a_reversed_sequence_is_no_residual(tmp_path):
    one = rnn("LSTM", "a", return_sequences=True, go_backwards=True)
    add = layer("Add", "add")
    got = functional(tmp_path, (IN,), (one, "in"), (add, "in", "a"), a=drawn("LSTM", H))
    assert not got.spec.layers[0].residual
    assert "not imported, after a (LSTM): add (Add)" in got.notes


@pytest.mark.parametrize("sources", [("other", "a"), ("a", "a")])
def test_an_add_of_something_else_is_no_residual(tmp_path, sources):
    one, add = rnn("LSTM", "a", return_sequences=True), layer("Add", "add")
    weights = {"a": drawn("LSTM", H)}
    got = functional(tmp_path, (IN,), (OTHER,), (one, "in"), (add, *sources), **weights)
    assert not got.spec.layers[0].residual
    assert "not imported, after a (LSTM): add (Add)" in got.notes


def test_a_residual_whose_inside_is_read_too_is_imported_without(tmp_path):
    one, add = rnn("LSTM", "a", return_sequences=True), layer("Add", "add")
    dense = layer("Dense", "d", units=3, activation="linear")
    got = functional(
        tmp_path, (IN,), (one, "in"), (add, "in", "a"), (dense, "a"), a=drawn("LSTM", H)
    )
    assert not got.spec.layers[0].residual
    assert got.spec.head is None


def test_a_head_on_a_residual_and_last_step_is_no_head_on_h_n(tmp_path):
    one, add = rnn("LSTM", "a", return_sequences=True), layer("Add", "add")
    dense = layer("Dense", "d", units=3, activation="linear")
    path = [(IN,), (one, "in"), (add, "in", "a"), (dense, "add")]
    entries = [call(entry, *sources) for entry, *sources in path]
    head = drawn("SimpleRNN")[0][:H, :1].repeat(3, axis=1), drawn("SimpleRNN")[2].repeat(2)[:3]
    held = {"a": named("a", drawn("LSTM", H)), "d": {"d/kernel:0": head[0], "d/bias:0": head[1]}}
    got = importers.read(write(tmp_path / "f.h5", entries, held, kind="Functional"), name="x")
    assert got.spec.layers[0].residual
    assert got.spec.head.on == "output"


def test_a_layer_called_twice_is_imported_alone(tmp_path):
    one, two = rnn("LSTM", "a", return_sequences=True), rnn("LSTM", "b", return_sequences=True)
    shared = call(two, "a")
    shared["inbound_nodes"] += call(two, "other")["inbound_nodes"]
    entries = [call(IN), call(OTHER), call(one, "in"), shared]
    held = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    path = write(tmp_path / "f.h5", entries, held, kind="Functional")
    with pytest.raises(WeightsError, match="several stacks"):
        importers.read(path, name="x")
    notes = importers.read(path, name="x", layer="b").notes
    assert "b (LSTM) is called 2 times: one of them is imported, alone" in notes


def test_two_that_read_one_are_stacks_of_their_own(tmp_path):
    layers = [(IN,), (rnn("LSTM", "a", return_sequences=True), "in")]
    layers += [(rnn("LSTM", name), "a") for name in "bc"]
    held = {"a": drawn("LSTM"), "b": drawn("LSTM", H), "c": drawn("LSTM", H)}
    with pytest.raises(WeightsError, match=r"(?s)--layer a: .*--layer b: .*--layer c: "):
        functional(tmp_path, *layers, **held)


def test_a_mask_begun_between_two_layers_parts_them(tmp_path):
    one, mask = rnn("LSTM", "a", return_sequences=True), layer("Masking", "m", mask_value=0.0)
    with pytest.raises(WeightsError, match="several stacks"):
        sequential(tmp_path, one, mask, rnn("LSTM", "b"), a=drawn("LSTM"), b=drawn("LSTM", H))


def test_a_last_step_is_no_sequence_to_go_on_with(tmp_path):
    layers = [rnn("LSTM", "a"), layer("RepeatVector", "r", n=3), rnn("LSTM", "b")]
    with pytest.raises(WeightsError, match="several stacks"):
        sequential(tmp_path, *layers, a=drawn("LSTM"), b=drawn("LSTM", H))
    with pytest.raises(WeightsError, match="several stacks"):  # not a model Keras would build
        sequential(tmp_path, layers[0], layers[2], a=drawn("LSTM"), b=drawn("LSTM", H))


def both(name="b", merge="concat", **config):
    inner = rnn("LSTM", "lstm", **config)
    entry = layer("Bidirectional", name, layer=inner, merge_mode=merge)
    halves = named(f"{name}/forward_lstm", drawn("LSTM"))
    return entry, halves | named(f"{name}/backward_lstm", drawn("LSTM"))


def test_two_outputs_are_not_one_input(tmp_path):
    entry, held = both(merge=None, return_sequences=True)
    with pytest.raises(WeightsError, match="several stacks"):
        sequential(tmp_path, entry, rnn("LSTM", "a"), b=held, a=drawn("LSTM", H))


def test_a_convolution_ends_a_mask(tmp_path):
    layers = [layer("Masking", "m"), layer("Conv1D", "c"), rnn("LSTM", "a")]
    assert not sequential(tmp_path, *layers, a=drawn("LSTM")).spec.lengths
    layers[1] = layer("BatchNormalization", "c")
    assert sequential(tmp_path, *layers, a=drawn("LSTM")).spec.lengths


def test_a_bidirectional_of_keras_2_writes_zeros_past_the_end(tmp_path):
    mask = layer("Masking", "m")
    entry, held = both(return_sequences=True)
    assert sequential(tmp_path, mask, entry, b=held).spec.padding == "zero"


def test_a_layer_that_answers_its_last_state_alone_repeats_nothing(tmp_path):
    mask = layer("Masking", "m")
    entry, held = both()
    assert sequential(tmp_path, mask, entry, b=held).spec.padding == "zero"
    one = rnn("LSTM", "a")
    assert sequential(tmp_path, mask, one, a=drawn("LSTM")).spec.padding == "zero"
    every = rnn("LSTM", "a", return_sequences=True)
    assert sequential(tmp_path, mask, every, a=drawn("LSTM")).spec.padding == "repeat"


@pytest.mark.parametrize("more", [(), (layer("Dense", "e", units=1),)])
def test_only_a_final_dense_is_a_head(tmp_path, more):
    dense = layer("Dense", "d", units=1, activation="linear", use_bias=False)
    held = {"a": drawn("LSTM"), "d": {"d/kernel:0": drawn("SimpleRNN")[1][:, :1]}}
    got = sequential(tmp_path, rnn("LSTM", "a"), dense, *more, **held)
    assert (got.spec.head is None) == bool(more)


def test_a_head_on_a_product_of_directions_is_named(tmp_path):
    entry, held = both(merge="mul")
    dense = layer("Dense", "d", units=1, use_bias=False)
    got = sequential(tmp_path, entry, dense, b=held, d={"d/kernel:0": drawn("SimpleRNN")[1][:, :1]})
    assert got.spec.head is None
    assert "not imported, after b (Bidirectional): d (Dense)" in got.notes


def test_both_directions_of_a_reversed_sequence_are_refused(tmp_path):
    entry, held = both()
    back = rnn("LSTM", "a", return_sequences=True, go_backwards=True)
    with pytest.raises(SpecError, match="left reversed in time, in both directions"):
        sequential(tmp_path, back, entry, a=drawn("LSTM"), b=held)


def test_a_forward_layer_that_goes_backwards_is_refused(tmp_path):
    entry, held = both(go_backwards=True)
    with pytest.raises(SpecError, match="b's forward layer has go_backwards"):
        sequential(tmp_path, entry, b=held)


def test_a_mask_of_ones_own_is_lengths_for_all_layers_or_none(tmp_path):
    """As Keras 3 writes calls: {"args": […], "kwargs": {"mask": …}}."""

    def tensor(name):
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}

    one, two = rnn("LSTM", "a", return_sequences=True), rnn("LSTM", "b")
    entries = [call(IN), call(OTHER), call(one, "in"), call(two, "a")]
    weights = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    masked = {"kwargs": {"mask": tensor("other")}}
    entries[3]["inbound_nodes"] = [{"args": [tensor("a")], **masked}]
    with pytest.raises(SpecError, match=r"b \(LSTM\) alone is called with a mask"):
        importers.read(write(tmp_path / "f.h5", entries, weights, kind="Functional"), name="x")
    entries[2]["inbound_nodes"] = [{"args": [tensor("in")], **masked}]
    got = importers.read(write(tmp_path / "f.h5", entries, weights, kind="Functional"), name="x")
    assert got.spec.lengths
    assert got.notes[0].startswith("a (LSTM) is called with a mask: send `lengths`")
