"""Reading the tokens of a continuation one by one: each in its own call, or as a CUDA graph that is replayed.

Shape legend: R rows of a memory · D hidden size.

A read of one token is hundreds of small operations, and a host needs longer to ask a GPU for them than the GPU to do
them. In layers with the delta rule they are the same for every token, on tensors of the same shapes, and no value comes
to the host. So they can be recorded once: the tokens are copied into a tensor that stays, the memory is in tensors that
stay and is overwritten by every read, and the state comes out of a third. `OwnTensors` is that read; recorded, it is a
CUDA graph, and called directly its twin. `OneByOne` is the twin of both.

`REFINE_DECODING` chooses: "auto" (default: recorded on CUDA where the model allows it, once two continuations in a row
have as many rows, or one is long), "recorded" (at once; an error if it cannot be) or "one_by_one". A recording is kept,
with a memory of its own, and made again when the weights have moved. Its first replay must agree with the read that it
records. If it does not, or if nothing can be recorded, "auto" warns and reads that model one by one, and "recorded" is
an error. While a continuation uses a recording, others read one by one.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn, Protocol
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn

from refine.errors import SettingError, reason
from refine.models.memory import Memory
from refine.models.token_mixer import TensorMemory

log = logging.getLogger(__name__)
WORTH = 8  # tokens of a continuation from which a recording that is kept costs less than it saves
AT_ONCE = 64  # tokens from which it does even if it serves once: to record empties the allocator's cache
KEPT = 2  # recordings of a model
BOUND = 1e-2  # relative difference between a read and its replay beyond which the recording is wrong


class Reader(Protocol):
    """Reads one token a row after a memory."""

    def read(self, tokens: Tensor) -> Tensor:
        """tokens [R] int64, the model's own -> the state after each [R, D]."""

    @property
    def memory(self) -> Memory:
        """After all tokens so far."""


class OneByOne:
    """Each token is a read of its own."""

    def __init__(self, model: Any, memory: Memory) -> None:
        self.model, self.memory = model, memory

    def read(self, tokens: Tensor) -> Tensor:
        """See Reader.read."""
        reading = self.model.read(tokens[:, None], self.memory, checked=True)
        self.memory = reading.memory
        return reading.hidden[:, 0]


class OwnTensors:
    """A read of one token a row from tensors that stay, into tensors that stay. Keeps no model."""

    def __init__(self, memory: Memory) -> None:
        self.tokens = torch.zeros(memory.rows, dtype=torch.int64, device=memory.device)
        self.memory = _copied(memory)
        self.hidden: Tensor | None = None
        self.user: ReferenceType[Replayed] | None = None

    @property
    def in_use(self) -> bool:
        """Whether a continuation that has not ended reads by these tensors."""
        return self.user is not None and self.user() is not None

    def start(self, memory: Memory) -> None:
        """Go on from `memory`."""
        _overwrite(self.memory, memory)

    def read(self, model: Any) -> None:
        """Read `tokens`: writes `hidden` [R, D] and the memory."""
        reading = model.read(self.tokens[:, None], self.memory, checked=True)
        _overwrite(self.memory, reading.memory)
        if self.hidden is None:
            self.hidden = torch.empty_like(reading.hidden[:, 0])
        self.hidden.copy_(reading.hidden[:, 0])


class Replayed:
    """Reads by `replay`, which does what `own.read` does, from `memory` on."""

    def __init__(self, own: OwnTensors, replay: Callable[[], Any], memory: Memory) -> None:
        self.own, self.replay, self._from, self._read = own, replay, memory, 0
        own.user = ref(self)
        own.start(memory)

    def read(self, tokens: Tensor) -> Tensor:
        """See Reader.read."""
        self.own.tokens.copy_(tokens)
        self.replay()
        self._read += 1
        assert self.own.hidden is not None
        return self.own.hidden.clone()

    @property
    def memory(self) -> Memory:
        """See Reader.memory."""
        if not self._read:
            return self._from
        after = _copied(self.own.memory)
        return Memory(after.layers, self._from.positions + self._read, after.signature, after.dtype)


def reader(model: Any, memory: Memory, tokens: int) -> Reader:
    """What reads the `tokens` tokens of a continuation of `memory`. Raises SettingError: REFINE_DECODING is unknown, or
    wants a recording that cannot be made."""
    wish = os.environ.get("REFINE_DECODING", "auto")
    if wish not in ("auto", "recorded", "one_by_one"):
        raise SettingError(f"REFINE_DECODING is {wish!r}: expected auto, recorded or one_by_one")
    if wish == "one_by_one":
        return OneByOne(model, memory)
    why_not = lacking(model, memory)
    if wish == "recorded" and why_not:
        raise SettingError(f"REFINE_DECODING is 'recorded', but {why_not}: use auto or one_by_one")
    if why_not or (wish == "auto" and model in _given_up):
        return OneByOne(model, memory)
    key = _key(model, memory)
    again, _last[model] = _last.get(model) == key, key
    if wish == "auto" and tokens < (WORTH if again else AT_ONCE):
        return OneByOne(model, memory)
    return _recorded(model, memory, key, must=wish == "recorded")


def lacking(model: Any, memory: Memory) -> str | None:
    """Why reads of one token after `memory` cannot be recorded; None if they can."""
    if memory.device.type != "cuda":
        return f"the model is on {memory.device.type}, not on a CUDA device"
    return changing(model, memory)


def changing(model: Any, memory: Memory) -> str | None:
    """Why reads of one token after `memory` are not all the same operations; None if they are."""
    for block in model.model.layers:
        if not (block.mixer.steady and getattr(block.get_submodule(block.names.mlp), "steady", False)):
            return "a layer's reads of one token are not all the same operations (attention, LaCT, experts)"
    if not all(isinstance(layer, TensorMemory) for layer in memory.layers):
        return "the memory grows"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "the model is wrapped (FSDP)"
    return None


_made: WeakKeyDictionary[nn.Module, dict[Any, tuple[OwnTensors, Any]]] = WeakKeyDictionary()
_last: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # the key of the last continuation
_given_up: WeakSet[nn.Module] = WeakSet()  # models of which a recording failed


def _recorded(model: Any, memory: Memory, key: Any, must: bool) -> Reader:
    kept = _made.setdefault(model, {})
    if key in kept:
        own, graph = kept[key] = kept.pop(key)  # the last used is the last to go
        if own.in_use:  # by another thread, as in a server, or by a caller that is told each token
            return OneByOne(model, memory)
        return Replayed(own, graph.replay, memory)
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
    return _Recording(model, memory, functools.partial(kept.__setitem__, key), must)


def _key(model: Any, memory: Memory) -> Any:
    """What a recording holds to: shapes, dtypes, where the weights are, and how products are rounded."""
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    shapes = [[(x.shape, x.dtype) for x in layer.tensors().values()] for layer in memory.layers[:1]]
    weights = hash(tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers())))
    modes = torch.is_inference_mode_enabled(), model.training
    return memory.rows, str(memory.device), str(shapes), weights, autocast, modes


class _Recording:
    """Reads the first token once directly, so that kernels are compiled, and once from its recording.

    must: a recording that fails is an error, not a warning.
    """

    def __init__(self, model: Any, memory: Memory, keep: Callable[[Any], None], must: bool) -> None:
        self.model, self._from, self._keep, self._must = model, memory, keep, must
        self._reader: Reader | None = None

    def read(self, tokens: Tensor) -> Tensor:
        """See Reader.read."""
        if self._reader is not None:
            return self._reader.read(tokens)
        try:
            return self._record(tokens)
        except SettingError as error:
            if self._must:
                raise
            log.warning("%s; this model's tokens are read one by one, which is slower", error)
            _given_up.add(self.model)
            self._reader = OneByOne(self.model, self._from)
            return self._reader.read(tokens)

    def _record(self, tokens: Tensor) -> Tensor:
        own = OwnTensors(self._from)
        own.tokens.copy_(tokens)
        with _without_cached_casts():
            own.read(self.model)
            assert own.hidden is not None
            expected = own.hidden.clone()
            graph = _capture(functools.partial(own.read, self.model), self._from.device)
        replayed = Replayed(own, graph.replay, self._from)
        hidden = replayed.read(tokens)
        _compare(hidden, expected)
        self._reader = replayed
        self._keep((own, graph))
        log.info("reads of one token for %d rows: a CUDA graph", self._from.rows)
        return hidden

    @property
    def memory(self) -> Memory:
        """See Reader.memory."""
        return self._from if self._reader is None else self._reader.memory


_one_capture = threading.Lock()


def _capture(run: Callable[[], None], device: torch.device) -> Any:
    """A CUDA graph of `run`, which has run before on `device`. Raises SettingError if it cannot be recorded."""
    try:
        # the model may be on another device than the current one, and a capture that fails does not leave its stream
        with _one_capture, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
            # threads that load data may use the device meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                run()
    except RuntimeError as error:
        _refuse(f"cannot be recorded as a CUDA graph ({reason(error, 200)})")
    return graph


def _compare(replayed: Tensor, expected: Tensor) -> None:
    replayed, expected = replayed.double().nan_to_num(), expected.double().nan_to_num()  # a NaN is the model's own
    distance = float((replayed - expected).norm() / expected.norm().clamp(min=1e-6))
    if not distance <= BOUND:
        _refuse(f"gives other states when its CUDA graph is replayed (relative difference {distance:.1e})")


def _refuse(what: str) -> NoReturn:
    raise SettingError(f"a read of one token {what} (REFINE_DECODING=one_by_one does not record)")


def _without_cached_casts() -> Any:
    """Autocast keeps cast weights until it ends, and a recording must not use what is freed then."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype, enabled, cache_enabled=False)


def _copied(memory: Memory) -> Memory:
    layers = [TensorMemory({name: x.clone() for name, x in layer.tensors().items()}) for layer in memory.layers]
    return Memory(layers, memory.positions, memory.signature, memory.dtype)


def _overwrite(own: Memory, given: Memory) -> None:
    for into, layer in zip(own.layers, given.layers, strict=True):
        values = layer.tensors()
        for name, tensor in into.tensors().items():
            tensor.copy_(values[name])
