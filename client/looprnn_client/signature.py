"""What a model takes and gives, and the check of every array against it.

B batch, T time, I input size. A state is [B, N, H]: N recurrences, layers times directions, of H
each; where their sizes differ, N is 1 and H the sum of all. h and c may differ in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from looprnn_client.arrays import check_finite, check_range, float32, int32, integers, mend_state
from looprnn_client.errors import BadInput, ServerError
from looprnn_client.explain import nearest
from looprnn_client.transport import Tensor

Dims = dict[str, tuple[int, ...]]

# The types and dims that looprnn gives each tensor, without B: T is -1, n is a size. A name that
# is not here is a later looprnn's, and left alone.
TAKES = {
    "input": ("TYPE_FP32 T n", "TYPE_INT32 T"),
    "lengths": ("TYPE_INT32 n",),
    "h_0": ("TYPE_FP32 n n",),
    "c_0": ("TYPE_FP32 n n",),
}
GIVES = {
    "output": ("TYPE_FP32 T n",),
    "output_reverse": ("TYPE_FP32 T n",),
    "h_n": ("TYPE_FP32 n n",),
    "c_n": ("TYPE_FP32 n n",),
    "head": ("TYPE_FP32 T n", "TYPE_FP32 n"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One model's arrays and limits.

    takes, gives: each input and output by name, its dims without B, and -1 where T stands.
    vocabulary: input is ids [B, T] below it; None where input is [B, T, I].
    time_max is None when the server names no limit; engine is None when unnamed.
    streaming: whether the model holds streams, to be called through `Client.stream`.
    """

    model: str
    takes: Mapping[str, tuple[int, ...]] = field(hash=False)
    gives: Mapping[str, tuple[int, ...]] = field(hash=False)
    vocabulary: int | None
    batch_max: int
    time_max: int | None
    engine: str | None
    streaming: bool = False

    @classmethod
    def from_config(cls, model: str, config: Mapping[str, Any]) -> Signature:
        """From Triton's ModelConfig as JSON. Raises ServerError when the contract is another."""
        try:
            takes, gives = _dims(config["input"], TAKES), _dims(config["output"], GIVES)
            notes = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
            signature = cls(
                model=model,
                # on the wire lengths is [B, 1]: Triton has no dims for one number a row
                takes=takes | ({"lengths": ()} if "lengths" in takes else {}),
                gives=gives,
                vocabulary=int(notes["vocabulary"]) if takes["input"] == (-1,) else None,
                batch_max=int(config.get("max_batch_size", 0)),
                time_max=int(notes["time_max"]) if "time_max" in notes else None,
                engine=notes.get("engine"),
                streaming=notes.get("streaming") == "true",
            )
            if (
                "output" not in gives
                or takes["h_0"] != gives["h_n"]
                or takes.get("c_0") != gives.get("c_n")
                or takes.get("lengths", (1,)) != (1,)
                or (signature.streaming and "lengths" not in takes)
                or signature.batch_max < 1
                or (signature.vocabulary is not None and signature.vocabulary < 1)
            ):
                raise ValueError(f"inputs {takes}, outputs {gives}, batch {signature.batch_max}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"{model!r} is not a model that looprnn made: its configuration does not fit "
                f"input [T, I] or [T] and output, h_n ({type(error).__name__}: {error})"
            ) from error
        return signature

    @property
    def inputs(self) -> int | None:
        """I; None where input is ids."""
        return self.takes["input"][1] if self.vocabulary is None else None

    @property
    def has_cell(self) -> bool:
        """Whether there are c_0 and c_n."""
        return "c_0" in self.takes

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names a caller may ask for."""
        return tuple(self.gives)

    def shape(self, name: str, batch: int, time: int) -> tuple[int, ...]:
        """The shape of an input or output, for an input of batch rows and time steps."""
        dims = self.takes[name] if name in self.takes else self.gives[name]
        return (batch, *(time if dim == -1 else dim for dim in dims))

    def check_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The outputs to ask for, each once; None is all of them. Raises BadInput."""
        if names is None:
            return self.outputs
        if isinstance(names, str):
            raise BadInput(f"outputs must be a list of names, got {names!r}; pass [{names!r}]")
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if name not in self.outputs:
                raise BadInput(
                    f"{self.model} has no output {name!r}; did you mean "
                    f"{nearest(str(name), self.outputs)!r}? It has: {', '.join(self.outputs)}"
                )
        if not wanted:
            raise BadInput("outputs is empty, so there is nothing to ask for; None asks for all")
        return wanted

    def check_inputs(
        self, x: object, h_0: object, c_0: object, lengths: object
    ) -> dict[str, Tensor]:
        """The arrays to send, by wire name. Raises BadInput, which names array and limit."""
        if c_0 is not None and not self.has_cell:
            raise BadInput(f"c_0 was given, but {self.model} has no cell state; leave c_0 out")
        if lengths is not None and "lengths" not in self.takes:
            raise BadInput(
                f"lengths was given, but {self.model} reads every row to its end; it needs a "
                "variant with lengths = true"
            )
        arrays: dict[str, Tensor] = {"input": self._check_input(x)}
        batch, time = arrays["input"].shape[:2]
        if lengths is not None:
            arrays["lengths"] = self._check_lengths(lengths, batch, time)
        for name, state in (("h_0", h_0), ("c_0", c_0)):
            if state is None:
                continue
            arrays[name] = array = float32(name, state)
            want = self.shape(name, batch, time)
            if array.shape != want:
                raise BadInput(
                    f"{name} is {list(array.shape)}, but {self.model} takes [B, N, H] = "
                    f"{list(want)} with this input, batch first{mend_state(array.shape, want)}"
                )
            check_finite(name, array)
        return arrays

    def _check_input(self, x: object) -> Tensor:
        """float32 [B, T, I], or ids as int32 [B, T]."""
        if self.vocabulary is None:
            numbers = float32("input", x)
            self._check_sizes(numbers.shape)
            check_finite("input", numbers)
            return numbers
        ids = integers("input", x, f"{self.model} takes ids, which are")
        self._check_sizes(ids.shape)
        limit = f"{self.model} has ids of 0..{self.vocabulary - 1}, padding included"
        check_range("input", ids, self.vocabulary - 1, limit)
        return int32(ids)

    def _check_sizes(self, got: tuple[int, ...]) -> None:
        axes, sizes = "B, T", f"1..{self.batch_max}, {self._times}"
        if self.inputs is not None:
            axes, sizes = f"{axes}, I", f"{sizes}, {self.inputs}"
        rank = len(self.takes["input"]) + 1
        says = f"input is {list(got)}, but {self.model} takes [{axes}] = [{sizes}]"
        if len(got) != rank:
            hint = "; one sequence is a batch of one: x[np.newaxis]" if len(got) == rank - 1 else ""
            raise BadInput(f"{says}{hint}")
        batch, time = got[:2]
        if self.inputs is not None and got[2] != self.inputs:
            raise BadInput(f"{says}; the last axis is the input size")
        if batch < 1:
            raise BadInput(f"{says}; there is no row to compute")
        if time < 1:
            raise BadInput(f"{says}; there is no step to compute")
        if batch > self.batch_max:
            raise BadInput(
                f"{says}; the batch comes first: send it in parts of at most {self.batch_max} rows"
            )
        if self.time_max is not None and time > self.time_max:
            raise BadInput(
                f"{says}; cut the sequence at {self.time_max} steps, and where every layer runs "
                "forward carry h_n (and c_n) on as h_0 (and c_0)"
            )

    def _check_lengths(self, lengths: object, batch: int, time: int) -> Tensor:
        """int32 [B, 1], as the wire has it."""
        array = integers("lengths", lengths, "steps are")
        if array.shape != (batch,):
            raise BadInput(
                f"lengths is {list(array.shape)}, but {self.model} takes [B] = [{batch}] with this "
                "input, the steps of each row"
            )
        check_range("lengths", array, time, f"a row of this input has 0..{time} steps")
        return int32(array)[:, None]

    @property
    def _times(self) -> str:
        return "1.." if self.time_max is None else f"1..{self.time_max}"


def _dims(rows: Sequence[Mapping[str, Any]], contract: Mapping[str, tuple[str, ...]]) -> Dims:
    """Dims without B, by name. JSON from protobuf writes its 64-bit numbers as strings."""
    found: Dims = {}
    for row in rows:
        if row["name"] not in contract:
            continue
        dims = tuple(int(dim) for dim in row["dims"])
        kinds = ["T" if dim == -1 else "n" if dim > 0 else str(dim) for dim in dims]
        if " ".join([row["data_type"], *kinds]) not in contract[row["name"]]:
            raise ValueError(f"{row['name']} is {row['data_type']} {list(dims)}")
        found[row["name"]] = dims
    return found
