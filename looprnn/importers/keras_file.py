"""A file of Keras, opened without trust: its configuration as plain JSON, its variables by layer.

    .keras           a zip of config.json, metadata.json and model.weights.h5 (Keras 3, and 2.12 on)
    .h5, .hdf5       model_config as an attribute, model_weights/LAYER/…/kernel (Keras 2 and 3)

Nothing of Keras runs, and nothing in the file does: Lambda layers and pickles stay text. Links,
virtual and external datasets, and sizes beyond what is stored are refused before anything is
allocated.
"""

import json
import math
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from looprnn import importers
from looprnn.errors import SpecError, WeightsError

Array = NDArray[Any]
Groups = dict[str, dict[str, Any]]  # path of a group of variables → name → h5py.Dataset
CONFIG_MAX: Final = 16 << 20  # bytes of JSON; a real model's is below one MiB
OBJECTS_MAX: Final = 10_000  # groups and datasets of one layer
EXPANSION_MAX: Final = 1100  # deflate makes at most 1032 bytes of one
CHUNK_MAX: Final = 1 << 20  # a chunk may be larger than its dataset, but not by more than this
UNREADABLE: Final = (  # what zipfile, zlib and h5py raise for bytes that are not as they should be
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, LookupError, ValueError,
)  # fmt: skip
WHOLE_MODEL: Final = "Import the file that model.save('model.keras') writes"


@dataclass(kw_only=True)
class Saved:
    """An open file. `budget` is what may still be read of it, in bytes."""

    origin: str
    version: str  # of Keras: "3.15.1", "2.2.4-tf", or "" where the file does not say
    config: Mapping[str, Any]
    root: Any  # the h5py.Group that holds the layers
    legacy: bool  # an .h5 of model.save: layers by their own names
    budget: int = field(default_factory=lambda: importers.BYTES_MAX)

    def groups(self, layer: str, counted: str) -> Groups:
        """The variables of one layer by group. `counted` is its place in a .keras: "lstm_1"."""
        if self.legacy:
            return self._named(layer)
        found: Groups = {}
        at = child(self.root, counted, self.origin)
        if at is not None:
            own = child(at, "vars", self.origin)
            name = text(attribute(own, "name", self.origin)) if own is not None else ""
            if name not in ("", layer):
                raise WeightsError(
                    f"{self.origin}: {counted} holds the weights of {name!r}, "
                    f"config.json says {layer!r}"
                )
            self._walk(at, (), found, set())
        return found

    def _walk(self, group: Any, path: tuple[str, ...], found: Groups, seen: set[int]) -> None:
        """Every vars/N below `group` by its path; a group that holds itself is met once."""
        for name in group:
            at = child(group, name, self.origin)
            if not isinstance(at, h5py.Group | h5py.Dataset):
                raise WeightsError(f"{self.origin}: {group.name}/{name} is no group and no array")
            address = h5py.h5o.get_info(at.id).addr
            if address in seen or len(seen) > OBJECTS_MAX:
                raise WeightsError(f"{self.origin}: {at.name} is a circle, or far too much")
            seen.add(address)
            if isinstance(at, h5py.Group):
                self._walk(at, (*path, name), found, seen)
            elif "seed_generator" not in path:  # the random state of Dropout, not a weight
                where = path[:-1] if path[-1:] == ("vars",) else path
                found.setdefault("/".join(where), {})[name] = at

    def _named(self, layer: str) -> Groups:
        found: Groups = {}
        group = child(self.root, layer, self.origin)
        for path in names(group, "weight_names", self.origin) if group is not None else []:
            at = group
            for part in path.split("/"):
                at = child(at, part, self.origin) if isinstance(at, h5py.Group) else None
            if not isinstance(at, h5py.Dataset):
                raise WeightsError(f"{self.origin}: {layer}: {path} is listed, but not there")
            parent, _, leaf = path.rpartition("/")
            if found.setdefault(parent, {}).setdefault(leaf.split(":")[0], at) is not at:
                raise WeightsError(f"{self.origin}: {layer}: {path} is there twice")
        return found

    def read(self, dataset: Any, shape: tuple[int | None, ...], label: str) -> Array:
        """The array, float32 or wider; `shape` has None where any size will do. Everything is
        checked before a byte is allocated.
        """
        where = f"{self.origin}: {label}"
        got = dataset.shape or ()
        if len(got) != len(shape) or any(
            w not in (None, n) for n, w in zip(got, shape, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise WeightsError(f"{where} is {list(got)}, wanted [{wanted}]")
        if dataset.is_virtual or dataset.external:
            raise WeightsError(f"{where} lies in another file; refused")
        if 0 in got:
            raise WeightsError(f"{where} is empty: {list(got)}")
        bfloat16 = text(attribute(dataset, "dtype", self.origin)) == "bfloat16"
        kind, size = dataset.dtype.kind, dataset.dtype.itemsize
        if not ((bfloat16 and size == 2) or (kind == "f" and size in (2, 4, 8))):
            raise WeightsError(f"{where} is {dataset.dtype}, wanted a floating type")
        stated, stored = math.prod(got) * size, dataset.id.get_storage_size()
        chunk = math.prod(dataset.chunks or (0,)) * size
        if stated > EXPANSION_MAX * stored or chunk > stated + CHUNK_MAX:
            raise WeightsError(f"{where} claims {max(stated, chunk)} bytes and stores {stored}")
        self.budget -= stated
        if self.budget < 0:
            raise WeightsError(f"{where}: the file claims more than {importers.BYTES_MAX} bytes")
        if bfloat16:  # the upper half of a float32
            raw = np.frombuffer(dataset[()].tobytes(), "<u2").astype(np.uint32) << 16
            return raw.view(np.float32).reshape(got)
        array: Array = dataset[()]
        return array.astype(np.float32) if size == 2 else array


def child(group: Any, name: Any, origin: str) -> Any:
    """group[name] or None, if it lies there itself: links lead out of the file or in circles."""
    link = name.encode() if isinstance(name, str) else name  # bytes, where they are no UTF-8
    if not name or not group.id.links.exists(link):
        return None
    if group.id.links.get_info(link).type != h5py.h5l.TYPE_HARD:
        raise WeightsError(f"{origin}: {group.name}/{name} is a link to elsewhere; refused")
    return group[name]


def attribute(at: Any, name: str, origin: str) -> Any:
    """The attribute, or None."""
    if name not in at.attrs:
        return None
    if at.attrs.get_id(name).get_storage_size() > CONFIG_MAX:
        raise WeightsError(f"{origin}: attribute {name} is larger than {CONFIG_MAX} bytes")
    return at.attrs[name]


def text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def names(group: Any, name: str, origin: str) -> list[str]:
    """A list of names; Keras splits what is longer than HDF5's header into name0, name1, …"""
    whole = attribute(group, name, origin)
    if whole is not None:
        return [text(item) for item in np.ravel(whole).tolist()]
    found: list[str] = []
    for k in range(OBJECTS_MAX):
        part = attribute(group, f"{name}{k}", origin)
        if part is None:
            break
        found += [text(item) for item in np.ravel(part).tolist()]
    return found


def parsed(source: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object."""
    if len(source) > CONFIG_MAX:
        raise WeightsError(f"{what} is larger than {CONFIG_MAX} bytes")
    try:
        config = json.loads(source)
    except RecursionError:
        raise WeightsError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise WeightsError(f"{what} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{what} is a JSON {type(config).__name__}, wanted an object")
    return config


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """The file, open for the time of the `with`. Raises WeightsError for all that is wrong with
    it.
    """
    try:
        with ExitStack() as held, path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            yield _native(path, held) if zipped else _legacy(path, held)
    except RecursionError:
        raise WeightsError(f"{path}: nested too deeply") from None
    except (WeightsError, SpecError) as error:
        told = str(error).startswith(str(path))
        raise type(error)(str(error) if told else f"{path}: {error}") from error.__cause__
    except UNREADABLE as error:
        raise WeightsError(f"{path}: not a readable file of Keras: {error}") from error


def _native(path: Path, held: ExitStack) -> Saved:
    archive = held.enter_context(zipfile.ZipFile(path))
    members = archive.namelist()
    for name in members:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise WeightsError(f"{path}: it holds {name!r}, a path that leads out; refused")
    if doubled := [name for name, times in Counter(members).items() if times > 1]:
        raise WeightsError(f"{path}: it holds {doubled[0]!r} twice")
    if sum(info.file_size for info in archive.infolist()) > importers.BYTES_MAX:
        raise WeightsError(f"{path}: it unpacks to more than {importers.BYTES_MAX} bytes")
    for wanted in ("config.json", "model.weights.h5"):
        if wanted not in members:
            raise WeightsError(
                f"{path}: no {wanted} in it, found {', '.join(members[:9]) or 'nothing'}. "
                f"{WHOLE_MODEL}"
            )
    config = parsed(_member(archive, "config.json"), f"{path}: config.json")
    about = (
        parsed(_member(archive, "metadata.json"), f"{path}: metadata.json")
        if "metadata.json" in members
        else {}
    )
    # On disk: h5py reads from there what is wanted, and memory holds the arrays alone.
    copy = Path(held.enter_context(tempfile.TemporaryDirectory())) / "model.weights.h5"
    left = archive.getinfo(copy.name).file_size
    with archive.open(copy.name) as packed, copy.open("wb") as unpacked:
        while block := packed.read(min(left, 1 << 20)):
            left -= unpacked.write(block)
    file = held.enter_context(h5py.File(copy, "r"))
    layers = child(file, "layers", str(path))
    if layers is None:  # Keras 2.12 and 2.13
        layers = child(file, "_layer_checkpoint_dependencies", str(path))
    if layers is None:
        raise WeightsError(f"{path}: model.weights.h5 has no layers")
    return Saved(
        origin=str(path),
        version=text(about.get("keras_version")),
        config=config,
        root=layers,
        legacy=False,
    )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(CONFIG_MAX + 1)


def _legacy(path: Path, held: ExitStack) -> Saved:
    origin = str(path)
    file = held.enter_context(h5py.File(path, "r"))
    config, root = attribute(file, "model_config", origin), child(file, "model_weights", origin)
    if config is None or root is None:
        raise WeightsError(
            f"{path}: weights alone, without the model's configuration. {WHOLE_MODEL}"
        )
    version = attribute(file, "keras_version", origin) or attribute(root, "keras_version", origin)
    return Saved(
        origin=origin,
        version=text(version),
        config=parsed(text(config), f"{path}: model_config"),
        root=root,
        legacy=True,
    )


def snake(name: str) -> str:
    """The name of a class as Keras counts layers in a .keras: SimpleRNN → simple_rnn."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
