"""What a model remembers after reading, and what a read returns.

Shape legend: B rows of a batch · T tokens · R rows of a memory · c taps of a row · D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refine.errors import ModelError
from refine.models.token_mixer import LayerMemory, at_least_float32
from refine.system.files import file_beside
from refine.system.readers import in_form, mapping, parsed_json

FORMAT = "refine-memory"
FORMAT_VERSION = 1
HEADER = ("signature", "dtype", "kinds", "shapes")


class Memory:
    """The memory of R sequences: one LayerMemory for each layer, and the position of each row.

    `positions` [R] int64, on the CPU: tokens read so far. `signature` names the architecture, `dtype` is that of the
    model's weights: a model refuses a memory that differs in either. Immutable; all methods return new objects.
    """

    def __init__(self, layers: Sequence[LayerMemory], positions: Tensor, signature: str, dtype: torch.dtype) -> None:
        self.layers = list(layers)
        self.positions = positions.to("cpu", torch.int64)
        self.signature = signature
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"Memory({self.rows} rows, {self.nbytes} bytes, {self.dtype}, {self.device}, {self.signature})"

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return self.positions.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and layers [bytes]; what rows share counts once. It grows with the tokens read only by
        the keys and values of full attention."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def device(self) -> torch.device:
        """Where the tensors are (`positions` stays on the CPU)."""
        return self.layers[0].device

    def detach(self) -> Memory:
        """The same memory without the graph of the read."""
        return self._each(lambda layer: layer.map(Tensor.detach), self.positions)

    def select(self, index: Tensor | Sequence[int] | slice) -> Memory:
        """Rows index[0], index[1], ... (negative ones count from the end; repeats allowed), with gradient.

        Raises ModelError if an index is out of range.
        """
        if isinstance(index, slice):
            index = range(self.rows)[index]
        wanted = torch.as_tensor(
            list(index) if not isinstance(index, Tensor) else index.cpu(), dtype=torch.int64
        ).reshape(-1)
        if wanted.numel() and not (-self.rows <= int(wanted.min()) and int(wanted.max()) < self.rows):
            raise ModelError(f"row {wanted.tolist()} asked for, but the memory has {self.rows} rows")
        wanted = wanted % self.rows
        return self._each(lambda layer: layer.select(wanted), self.positions[wanted])

    def repeat(self, n: int) -> Memory:
        """Row r becomes rows r*n .. r*n + n - 1, with gradient."""
        return self._each(lambda layer: layer.repeat(n), self.positions.repeat_interleave(n))

    def to(self, *target: torch.device | str | torch.dtype) -> Memory:
        """On another device and/or for a model in another dtype; states stay at least float32."""
        dtype, device = self.dtype, self.device
        for wanted in target:
            if isinstance(wanted, torch.dtype):
                dtype = wanted
            else:
                device = torch.device(wanted)

        def moved(tensor: Tensor) -> Tensor:
            if dtype == self.dtype or not tensor.is_floating_point():
                return tensor.to(device)
            held_in_states = tensor.dtype == at_least_float32(self.dtype)
            return tensor.to(device, at_least_float32(dtype) if held_in_states else dtype)

        layers = [layer.map(moved) for layer in self.layers]
        return Memory(layers, self.positions, self.signature, dtype)

    @staticmethod
    def cat(memories: Sequence[Memory]) -> Memory:
        """The rows of all `memories`, one after the other. Raises ModelError if they are not of one model."""
        first = memories[0]
        for other in memories[1:]:
            if (other.signature, other.dtype) != (first.signature, first.dtype):
                raise ModelError(f"cannot join memories of different models: {first!r} and {other!r}")
        layers = [type(parts[0]).cat(parts) for parts in zip(*(memory.layers for memory in memories), strict=True)]
        return Memory(layers, torch.cat([memory.positions for memory in memories]), first.signature, first.dtype)

    def save(self, path: str | Path, weights: str = "") -> None:
        """Write one safetensors file. An interrupted write leaves no partial file at `path`.

        `weights`: names the weights that read the text, as a hash of their files; `load` can ask for the same ones.
        """
        tensors = {"positions": self.positions}
        for number, layer in enumerate(self.layers):
            for name, tensor in layer.tensors().items():
                tensors[f"layers.{number}.{name}"] = tensor.detach().contiguous().clone()
        header = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "signature": self.signature,
            "dtype": str(self.dtype).removeprefix("torch."),
            "kinds": json.dumps([type(layer).__name__ for layer in self.layers]),
            "shapes": json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()}),
        }
        if weights:
            header["weights"] = weights
        with file_beside(path) as beside:
            save_file(tensors, beside, metadata=header)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu", weights: str = "") -> Memory:
        """Read a saved memory. Raises ModelError: a file that is missing, damaged, newer or not a memory, a tensor that
        is missing, not expected, or of another shape than was saved, or a memory of other weights than `weights`."""
        with in_form(path, "a saved memory", ModelError):
            return Memory._of_file(Path(path), device, weights)

    @staticmethod
    def _of_file(path: Path, device: torch.device | str, weights: str) -> Memory:
        header, tensors = _read_file(path, device)
        if weights and (saved := header.get("weights", weights)) != weights:
            raise ModelError(
                f"{path}: is what a model with other weights read (their hash is {saved}, this model's {weights}): "
                "name that model, or read the text again with this one"
            )
        positions = tensors.pop("positions").cpu()
        kinds = parsed_json(header["kinds"], f"{path}: kinds in its header", ModelError)
        by_layer: list[dict[str, Tensor]] = [{} for _ in kinds]
        for name, tensor in tensors.items():
            _, number, rest = name.split(".", 2)
            by_layer[int(number)][rest] = tensor
        layers = []
        for place, (kind, held) in enumerate(zip(kinds, by_layer, strict=True)):
            if kind not in LayerMemory.kinds:
                raise ModelError(f"{path}: layer {place} holds a memory of unknown kind {kind!r}")
            layers.append(LayerMemory.kinds[kind].from_tensors(held))
        return Memory(layers, positions, header["signature"], getattr(torch, header["dtype"]))

    def _each(self, change: Callable[[LayerMemory], LayerMemory], positions: Tensor) -> Memory:
        return Memory([change(layer) for layer in self.layers], positions, self.signature, self.dtype)


def _read_file(path: Path, device: torch.device | str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ModelError(
                    f"{path}: not a saved memory (its format is {header.get('format')!r}, expected {FORMAT!r})"
                )
            version = header.get("version")
            if version is None or not version.isdecimal() or int(version) > FORMAT_VERSION:
                raise ModelError(
                    f"{path}: memory format {version} is newer than {FORMAT_VERSION}, the newest that this "
                    "version reads: upgrade refine-fast-weights"
                )
            if absent := [name for name in HEADER if name not in header]:
                raise ModelError(f"{path}: damaged memory file (its header lacks {', '.join(absent)})")
            # copied, to be aligned in memory as new tensors are: else products with them might round differently
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            where = f"{path}: shapes in its header"
            _check_shapes(
                path, mapping(parsed_json(header["shapes"], where, ModelError), where, "shapes", ModelError), tensors
            )
            return header, tensors
    except FileNotFoundError:
        raise ModelError(f"{path}: no such memory file") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged memory file ({error})") from None


def _check_shapes(path: Path, saved: dict[str, list[int]], tensors: dict[str, Tensor]) -> None:
    """Raise ModelError unless `tensors` have the saved names and shapes."""
    for name in saved.keys() | tensors.keys():
        if name not in tensors:
            raise ModelError(f"{path}: damaged memory file (tensor {name} is missing)")
        if name not in saved:
            raise ModelError(f"{path}: damaged memory file (tensor {name} does not belong to this memory)")
        if list(tensors[name].shape) != saved[name]:
            shape = list(tensors[name].shape)
            raise ModelError(f"{path}: damaged memory file ({name} has shape {shape}, saved was {saved[name]})")


class Reading:
    """What `model.read` returns.

    `hidden` [B, T, D]: states after the final norm (0 at padding). `tapped`: the memory of B*c rows at the `taps` of
    the read (row b*c + i is taps[b, i]), or None. `memory`: the memory of B rows after the last token, computed on
    first use. `tap(positions)`: as `tapped`, after a read with tappable=True.
    """

    def __init__(self, hidden: Tensor, ends: Callable[[], Memory], tap: Callable[[Tensor], Memory] | None) -> None:
        self.hidden = hidden
        self.tapped: Memory | None = None
        self._ends = ends
        self._tap = tap
        self._memory: Memory | None = None

    @property
    def memory(self) -> Memory:
        """The memory of B rows after all tokens, with gradient."""
        if self._memory is None:
            self._memory = self._ends()
        return self._memory

    def tap(self, positions: Tensor) -> Memory:
        """The memory of B*c rows after positions [B, c] int64 tokens (1 .. T, any order, repeats allowed) of each row.

        Costs next to nothing. Gradients flow through it into the read. Raises ModelError: a position out of range, or a
        read that was not tappable.
        """
        if self._tap is None:
            raise ModelError("this read cannot be tapped: pass tappable=True to model.read")
        return self._tap(positions)
