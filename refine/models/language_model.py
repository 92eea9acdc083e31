"""A language model with a memory that can be tapped: embedding, blocks (token mixer, SwiGLU MLP), final norm, head.

Shape legend: B rows · T tokens of a row · N real tokens · D hidden size · V vocabulary · c taps of a row.

To add a model, subclass `FastWeightLanguageModel`, set `config_class`, implement `make_mixer` (the mixer's contract is
`refine.models.token_mixer`), and register it in `refine.models.loading`. The base class does the rest: padding,
packing, pieces, taps, gradient checkpointing, generation, transformers' interface.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from refine.errors import ModelError
from refine.models.batch import Batch
from refine.models.blocks import Backbone, Block, BlockNames, SwiGLU
from refine.models.generation import Continuation, continue_greedily, continue_sampled
from refine.models.memory import Memory, Reading
from refine.models.token_mixer import Keep, LayerMemory, TokenMixer
from refine.models.transformers_interface import TransformersInterface
from refine.models.weights import INDEX, SINGLE, check_finite, check_weights, resolve
from refine.ops.layout import Taps
from refine.ops.rms_norm import RMSNorm
from refine.system.readers import in_form


class FastWeightLanguageModel(TransformersInterface, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model whose memory can be tapped after any token.

    Reading in one call, in pieces, or in any batch gives the same result.
    """

    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012
    embeddings_name = "embeddings"  # as published

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        config.refuse_unsupported()
        mixers = [self.make_mixer(config, layer) for layer in range(config.num_hidden_layers)]
        embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = [self.make_block(config, layer, mixer) for layer, mixer in enumerate(mixers)]
        self.model = Backbone(embeddings, blocks, self.make_norm(config), self.embeddings_name)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' from_pretrained, but strict: safetensors only, exactly the config's tensors, all finite.

        Raises ModelError that names the file and the tensor.
        """
        folder = resolve(name, kwargs.pop("revision", None)) / (kwargs.pop("subfolder", None) or "")
        config, kind = kwargs.get("config"), cast(type[PreTrainedConfig], cls.config_class)
        if not isinstance(config, kind):
            with in_form(folder / "config.json", "a model's config", ModelError):
                config = kind.from_pretrained(folder)
        with torch.device("meta"):
            check_weights(folder, cls(config), config.tie_word_embeddings)
        with in_form(folder, "a model that transformers can load", ModelError):
            loaded = super().from_pretrained(str(folder), *args, **{**kwargs, "use_safetensors": True})
        check_finite(loaded[0] if isinstance(loaded, tuple) else loaded, folder)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' save_pretrained. Removes the weights of an older model from the folder: a single file when
        shards are saved, or the index of shards when a single file is."""
        older = {
            path: path.stat() for path in (Path(save_directory) / name for name in (SINGLE, INDEX)) if path.is_file()
        }
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        for path, was in older.items():
            now = path.stat() if path.is_file() else None
            if now is not None and (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns):
                path.unlink()
        return saved

    @abstractmethod
    def make_mixer(self, config: PreTrainedConfig, layer: int) -> TokenMixer:
        """The token mixer of layer number `layer`."""

    def make_block(self, config: PreTrainedConfig, layer: int, mixer: TokenMixer) -> Block:
        """Layer number `layer`, with its mixer."""
        first = self.make_norm(config)
        return Block(mixer, SwiGLU(config), (first, self.make_norm(config)), BlockNames())

    def make_norm(self, config: PreTrainedConfig) -> nn.Module:
        """A norm of the hidden size."""
        return RMSNorm(config.hidden_size, config.norm_eps)

    def signature(self) -> str:
        """The architecture in one line. A model refuses a memory with another signature."""
        return f"{self.config.model_type} {self.config.memory_shape()}"

    @property
    def sharded(self) -> bool:
        """Whether processes share the blocks' parameters (FSDP2). Then all must call the blocks equally often: each
        call gathers them."""
        return hasattr(self.model.layers[0], "unshard")

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] after the final norm -> [..., V]."""
        return self.lm_head(hidden)

    def read(
        self,
        tokens: Tensor,
        memory: Memory | None = None,
        taps: Tensor | None = None,
        tappable: bool = False,
        lengths: Sequence[Sequence[int]] | None = None,
        *,
        checked: bool = False,
    ) -> Reading:
        """Read tokens [B, T] int64 after `memory` (B rows; default: fresh).

        `taps` [B, c] int64: tokens of the row read before each tap (1 .. T, any order, repeats allowed).
        `tappable`: keep what `Reading.tap` needs. `lengths[b]`: lengths of the documents packed in row b. The first
        continues the row's memory, the others start fresh, and none sees another; the rest of the row is padding.
        `checked`: the tokens are known to be in the vocabulary; on a GPU, to look at them waits for it.
        Raises ModelError: no tokens, a token outside the vocabulary, taps out of range, lengths or a memory that do
        not fit, more tokens than rotary positions allow.
        """
        self._check_tokens(tokens, checked)
        self._check_memory(memory, tokens)
        batch = Batch.packed(tokens, lengths, memory)
        self._check_positions(batch)
        return self.read_batch(batch, self.model.embedding(batch.flat(tokens)), memory, taps, tappable)

    def read_batch(
        self, batch: Batch, x: Tensor, memory: Memory | None, taps: Tensor | None = None, tappable: bool = False
    ) -> Reading:
        """As `read`, for a Batch whose real tokens have the embeddings x [N, D]. Does not check its arguments."""
        wanted = None if taps is None else batch.taps(taps)
        before = self._document_memories(batch, memory)
        keep = Keep.ALL if tappable else Keep.ENDS
        hidden, traces, layers = self.model(x, batch.layout, before, keep, wanted, batch.ends)

        def tapped(at: Taps, layers: list[LayerMemory] | None = None) -> Memory:
            if layers is None:
                layers = [trace.tap(at, None) for trace in traces]
            return Memory(layers, batch.tap_positions(at), self.signature(), self.dtype)

        reading = Reading(
            batch.square(hidden),
            ends=lambda: self._ends(batch, memory, tapped),
            tap=(lambda positions: tapped(batch.taps(positions))) if tappable else None,
        )
        if wanted is not None:
            reading.tapped = tapped(wanted, layers)
        return reading

    def fresh_memory(self, rows: int) -> Memory:
        """The memory of `rows` sequences that have read nothing."""

        def fresh(block: Any) -> LayerMemory:
            return block.inside(lambda _: block.mixer.fresh(rows, self.device, self.dtype))

        layers = [fresh(block) for block in self.model.layers]
        return Memory(layers, torch.zeros(rows, dtype=torch.int64), self.signature(), self.dtype)

    def continue_greedily(
        self, memory: Memory, hidden: Tensor, tokens: int, stop: Sequence[int] = (), **options: Any
    ) -> Continuation:
        """See `refine.models.generation.continue_greedily`."""
        return continue_greedily(self, memory, hidden, tokens, stop, **options)

    def continue_sampled(
        self,
        memory: Memory,
        hidden: Tensor,
        tokens: int,
        seeds: Tensor,
        temperature: float = 1.0,
        stop: Sequence[int] = (),
        **options: Any,
    ) -> Continuation:
        """See `refine.models.generation.continue_sampled`."""
        return continue_sampled(self, memory, hidden, tokens, seeds, temperature, stop, **options)

    def _document_memories(self, batch: Batch, memory: Memory | None) -> list[LayerMemory] | None:
        """The memory that each document starts from, G rows for each layer; None if all start fresh."""
        if memory is None:
            return None
        if batch.origin == list(range(batch.rows)):
            return memory.layers
        with_fresh = Memory.cat([memory, self.fresh_memory(1)]).select(batch.origin)  # origin -1 is the fresh last row
        return with_fresh.layers

    def _ends(self, batch: Batch, memory: Memory | None, tapped: Any) -> Memory:
        """The memory of B rows after their last documents; a row that read nothing keeps its memory."""
        read = tapped(batch.ends)
        if batch.ends.rows == batch.rows:
            return read
        order, seen = [], 0
        for b, row in enumerate(batch.lengths):
            order.append(batch.rows + seen if row else b)
            seen += bool(row)
        return Memory.cat([memory if memory is not None else self.fresh_memory(batch.rows), read]).select(order)

    def _check_tokens(self, tokens: Tensor, checked: bool = False) -> None:
        if not isinstance(tokens, Tensor):
            raise ModelError(f"tokens must be an int64 tensor of shape [rows, tokens], not a {type(tokens).__name__}")
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ModelError(
                f"tokens must be int64 of shape [rows, tokens], not {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if checked or not tokens.numel():
            return
        least, most = torch.stack(tokens.aminmax()).tolist()  # one wait for the device
        if least < 0 or most >= self.config.vocab_size:
            b, t = ((tokens < 0) | (tokens >= self.config.vocab_size)).nonzero()[0].tolist()
            raise ModelError(
                f"token {int(tokens[b, t])} at row {b}, place {t} is outside the vocabulary, "
                f"0 .. {self.config.vocab_size - 1}: do the tokens come from this model's tokenizer?"
            )

    def _check_positions(self, batch: Batch) -> None:
        limit, layout = self.config.position_limit(), batch.layout
        longest = max(before + n for before, n in zip(layout.positions, layout.lengths, strict=True))
        if limit is not None and longest > limit:
            raise ModelError(
                f"a text of {longest} tokens is longer than the {limit} that this model's rotary positions allow "
                "(max_position_embeddings): read a shorter one"
            )

    def _check_memory(self, memory: Memory | None, tokens: Tensor) -> None:
        if memory is None:
            return
        if memory.signature != self.signature():
            raise ModelError(
                f"the memory is of another model: it has {memory.signature!r}, this model {self.signature()!r}"
            )
        if memory.dtype != self.dtype:
            raise ModelError(
                f"the memory is of a model in {memory.dtype}, this one is in {self.dtype}: use memory.to({self.dtype})"
            )
        if memory.device != self.device:
            raise ModelError(
                f"the memory is on {memory.device}, the model on {self.device}: use memory.to({str(self.device)!r})"
            )
        if memory.rows != tokens.shape[0]:
            raise ModelError(
                f"the memory has {memory.rows} rows, tokens has {tokens.shape[0]}: use memory.select or repeat"
            )
