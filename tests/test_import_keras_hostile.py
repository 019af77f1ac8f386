"""Files of Keras that are broken or mean harm: each is refused by name, before memory is spent."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from keras_by_hand import h5py

from looprnn import importers
from looprnn.errors import WeightsError

I, H = 5, 3  # noqa: E741
CONFIG = {
    "class_name": "Sequential",
    "config": {
        "layers": [{"class_name": "LSTM", "config": {"name": "l", "units": H}}],
    },
}
RNG = np.random.default_rng(1)
ARRAYS = [RNG.uniform(-1, 1, s).astype(np.float32) for s in ((I, 4 * H), (H, 4 * H), (4 * H,))]
VARS = "layers/lstm/cell/vars"


def weights(path, change=None):
    """model.weights.h5 of Keras 3, changed."""
    with h5py.File(path, "w") as file:
        group = file.create_group(VARS)
        for k, array in enumerate(ARRAYS):
            group[str(k)] = array
        if change is not None:
            change(file)
    return path.read_bytes()


@pytest.fixture
def write(tmp_path):
    """A .keras of one LSTM: members replaced, or left out where None; its weights changed."""

    def make(change=None, compress=zipfile.ZIP_STORED, **members):
        path = tmp_path / "m.keras"
        held = {
            "config.json": json.dumps(CONFIG),
            "metadata.json": '{"keras_version": "3.15.1"}',
            "model.weights.h5": weights(tmp_path / "w.h5", change),
        }
        with zipfile.ZipFile(path, "w", compress) as archive:
            for name, content in {**held, **members}.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    return make


def refused(path, words, layer=None):
    with pytest.raises(WeightsError, match=words) as error:
        importers.read(path, name="x", layer=layer)
    assert str(path) in str(error.value)


def test_the_sound_file_is_read(write):
    assert importers.read(write(), name="x").spec.layers[0].hidden_size == H


def test_the_random_state_of_dropout_is_no_weight(write):
    def change(file):
        file["layers/lstm/cell/seed_generator/vars/0"] = np.array([1, 2], np.uint32)

    assert importers.read(write(change), name="x")


def test_what_an_archive_must_not_hold(write):
    for name in ("../evil", "/etc/evil", "a\\..\\evil", "assets/../../evil"):
        refused(write(**{name: "x"}), "leads out; refused")
    refused(write(**{"config.json": None}), r"no config.json in it.*model.save\('model.keras'\)")
    refused(write(**{"model.weights.h5": None}), "no model.weights.h5 in it")


def test_one_name_twice(write):
    path = write()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    refused(path, "'config.json' twice")


def test_a_zip_bomb(write, monkeypatch):
    path = write(**{"assets/zeros": bytes(50 << 20)}, compress=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(importers, "BYTES_MAX", 40 << 20)
    assert path.stat().st_size < 1 << 20
    refused(path, "unpacks to more than 41943040 bytes")


def test_an_archive_that_lies_about_a_size(write):
    path = write()
    size = zipfile.ZipFile(path).getinfo("model.weights.h5").file_size
    small, true = (n.to_bytes(4, "little") for n in (size // 2, size))
    path.write_bytes(path.read_bytes().replace(true * 2, small * 2))  # compressed, uncompressed
    refused(path, "not a readable file of Keras")


def test_configurations(write, monkeypatch):
    deep = '{"config": ' + "[" * 200_000 + "]" * 200_000 + "}"
    for content, words in (
        ("{", "config.json is not JSON"),
        (b"\xff\xfe\x00", "config.json is not JSON"),
        ("[]", "is a JSON list, wanted an object"),
        (deep, "nested too deeply"),
        ("{}", "class_name should be of type str"),
        (json.dumps({**CONFIG, "class_name": "MyModel"}), "MyModel.*order of its layers is code"),
        (json.dumps({**CONFIG, "config": {"layers": [3]}}), "layer 0: class_name should be"),
        (json.dumps(CONFIG).replace("3", '"3"'), "units should be of type int"),
        (json.dumps(CONFIG).replace("3", "4"), r"kernel is \[5, 12\], wanted \[any, 16\]"),
    ):
        refused(write(**{"config.json": content}), words)
    monkeypatch.setattr("looprnn.importers.keras_file.CONFIG_MAX", 64)
    refused(write(), "larger than 64 bytes")


def replaced(k, **options):
    def change(file):
        del file[f"{VARS}/{k}"]
        if options:
            file[VARS].create_dataset(str(k), **options)

    return change


def linked(link):
    def change(file):
        del file[f"{VARS}/0"]
        file[f"{VARS}/0"] = link

    return change


def virtual(file):
    del file[f"{VARS}/0"]
    layout = h5py.VirtualLayout(shape=(I, 4 * H), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "kernel", shape=(I, 4 * H))
    file[VARS].create_virtual_dataset("0", layout)


def circle(file):
    file[f"{VARS}/again"] = file["layers/lstm"]


def group_for_array(file):
    del file[f"{VARS}/0"]
    file[VARS].create_group("0")


def misnamed(file):
    file.create_group("layers/lstm/vars").attrs["name"] = "another"


KERNEL = {"shape": (I, 4 * H), "dtype": "f4"}
HARMS = {
    "soft_link": (linked(h5py.SoftLink("/elsewhere")), "link to elsewhere"),
    "external_link": (linked(h5py.ExternalLink("/etc/o.h5", "/k")), "link to elsewhere"),
    "virtual": (virtual, "lies in another file"),
    "external_storage": (replaced(0, **KERNEL, external=[("raw", 0, 240)]), "in another file"),
    "circle": (circle, "is a circle"),
    "a_group_for_an_array": (group_for_array, "l: no kernel"),
    "missing": (replaced(2), "l: no bias; found 0, 1"),
    "left_over": (lambda file: file[VARS].create_dataset("3", data=[1.0]), "vars/3 left over"),
    "left_over_elsewhere": (
        lambda file: file.create_dataset("layers/lstm/lora/vars/0", data=[1.0]),
        "weights in lora left over"),
    "another_layer": (misnamed, "lstm holds the weights of 'another', config.json says 'l'"),
    "misshapen": (replaced(1, data=np.ones((H, 4), "f4")), r"recurrent_kernel is \[3, 4\]"),
    "a_scalar": (replaced(1, data=np.float32(1)), r"recurrent_kernel is \[\], wanted"),
    "integers": (replaced(0, data=np.ones((I, 4 * H), "i8")), "kernel is int64, wanted a floating"),
    "strings": (replaced(0, shape=(I, 4 * H), dtype=h5py.string_dtype()), "is object, wanted"),
    "not_finite": (replaced(0, data=np.full((I, 4 * H), np.nan, "f4")), "weight_ih_l0 holds NaN"),
    "no_rows": (replaced(0, shape=(0, 4 * H), dtype="f4"), "is empty"),
    "declared_huge": (replaced(0, shape=(10**12, 4 * H), dtype="f4"), "claims .* and stores 0"),
    "chunk_huge": (replaced(0, data=ARRAYS[0], maxshape=(None, None), chunks=(2048, 1024),
                            compression="gzip"), "claims 8388608 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_weights(write, harm):
    change, words = HARMS[harm]
    path = write(change)
    tracemalloc.start()
    refused(path, words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def legacy(path, arrays):
    """An .h5 of model.save."""
    config = json.loads(json.dumps(CONFIG))
    config["config"]["layers"][0]["config"]["units"] = len(arrays[1])
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        names = ("kernel", "recurrent_kernel", "bias")
        for name, array in zip(names, arrays, strict=True):
            file[f"model_weights/l/l/{name}:0"] = array
        file["model_weights/l"].attrs["weight_names"] = [f"l/{name}:0" for name in names]
    return path


def test_more_arrays_than_one_file_may_hold(tmp_path, monkeypatch):
    path = legacy(tmp_path / "m.h5", ARRAYS)
    assert importers.read(path, name="x")
    monkeypatch.setattr(importers, "BYTES_MAX", ARRAYS[0].nbytes)
    refused(path, "l: recurrent_kernel: the file claims more than 240 bytes")


def test_a_listed_weight_that_is_not_there(tmp_path):
    path = legacy(tmp_path / "m.h5", ARRAYS)
    with h5py.File(path, "r+") as file:
        file.move("model_weights/l/l/bias:0", "model_weights/l/l/biases:0")
    refused(path, "l/bias:0 is listed, but not there")


def test_memory_stays_below_two_and_a_half_files(tmp_path):
    big = [np.ones(s, np.float32) for s in ((256, 2048), (512, 2048), (2048,))]
    path = legacy(tmp_path / "m.h5", big)
    tracemalloc.start()
    importers.read(path, name="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * path.stat().st_size


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_truncated_anywhere(write, tmp_path, suffix):
    whole = write().read_bytes()
    if suffix == "h5":
        whole = weights(tmp_path / "w.h5", lambda file: file.attrs.update(model_config="{}"))
    path = tmp_path / f"cut.{suffix}"
    for cut in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:cut])
        refused(path, "Keras|weights alone")


def test_weights_alone_say_which_file_is_needed(tmp_path):
    path = tmp_path / "m.weights.h5"
    weights(path)
    refused(path, r"weights alone, .*model.save\('model.keras'\)")


def test_half_precision_is_widened(write):
    halves = [array.astype(np.float16) for array in ARRAYS]

    def change(file):
        for k, array in enumerate(halves):
            del file[f"{VARS}/{k}"]
            file[f"{VARS}/{k}"] = array

    got = importers.read(write(change), name="x").weights["weight_ih_l0"]
    np.testing.assert_array_equal(got, halves[0].T.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32(write):
    rounded = [(array.view(np.uint32) >> 16).astype(np.uint16) for array in ARRAYS]

    def change(file):
        for k, array in enumerate(rounded):
            del file[f"{VARS}/{k}"]
            file[f"{VARS}/{k}"] = array.view("V2")
            file[f"{VARS}/{k}"].attrs["dtype"] = "bfloat16"

    got = importers.read(write(change), name="x").weights["weight_ih_l0"]
    np.testing.assert_array_equal(got, (ARRAYS[0].view(np.uint32) >> 16 << 16).view(np.float32).T)
