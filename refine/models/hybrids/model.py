"""What hybrids share: layers made by a table, and weights that keep their names and dtypes from disk to disk.

Shape legend: D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers import initialization as init

from refine.errors import ModelError, reason
from refine.models.attention.mixer import Attention, AttentionOptions
from refine.models.blocks import Block, BlockNames, SwiGLU
from refine.models.delta.gated_delta_net import GatedDeltaNet
from refine.models.hybrids.configuration import HybridConfig
from refine.models.hybrids.regrouping import Regrouping
from refine.models.hybrids.tensor_names import TensorNames
from refine.models.language_model import FastWeightLanguageModel
from refine.models.mixture import Experts, Router
from refine.models.token_mixer import TokenMixer
from refine.models.weights import FLOATS, Shapes, Stored, check_finite, check_weights, resolve
from refine.ops.rms_norm import RMSNorm, ZeroCentredRMSNorm
from refine.system.readers import in_form, read_json

_log = logging.getLogger(__name__)
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer: how its mixer is made of a config, and what its parts are called."""

    mixer: Callable[[Any], TokenMixer]
    names: BlockNames


def attention_of(config: Any, norm: Callable[[int], nn.Module], **own: Any) -> Attention:
    """The attention layer that a hybrid's config describes. norm: of q and k. own: what else the family's layers have,
    fields of AttentionOptions."""
    return Attention(
        AttentionOptions(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            turned=config.turned,
            theta=config.theta or 0.0,
            norm=norm,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            **own,
        )
    )


class HybridForCausalLM(FastWeightLanguageModel):
    """A family sets `kinds` (by the words of `layer_types`), `norm` and `tensor_names`."""

    kinds: ClassVar[dict[str, LayerKind]]
    norm: ClassVar[type[RMSNorm]] = RMSNorm
    tensor_names: ClassVar[TensorNames] = TensorNames()
    embeddings_name = "embed_tokens"
    _tied_weights_keys = {HEAD: "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.published: dict[str, str] = {}  # of a loaded model: what each stored tensor is called on disk
        self.stored_as = self.regroupings(config)  # those by which the model is saved
        self._waiting: dict[str, Tensor] = {}  # parts of groups whose other parts may lie in another shard
        self.register_load_state_dict_pre_hook(_rename_published)

    def make_mixer(self, config: Any, layer: int) -> TokenMixer:
        return self.kinds[config.layer_types[layer]].mixer(config)

    def make_block(self, config: Any, layer: int, mixer: TokenMixer) -> Block:
        norms = self.make_norm(config), self.make_norm(config)
        return Block(mixer, self.make_mlp(config, layer), norms, self.kinds[config.layer_types[layer]].names)

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        """The MLP of layer number `layer`, or a mixture of experts in its place."""
        return SwiGLU(config)

    def make_norm(self, config: Any) -> RMSNorm:
        return self.norm(config.hidden_size, config.rms_norm_eps)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedDeltaNet):
            module.reset_decay()
        if isinstance(module, ZeroCentredRMSNorm):
            init.zeros_(module.weight)
        if isinstance(module, (Router, Experts)):
            module.reset(self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The model in a folder or on the hub, strict as those of the other families.

        `dtype` ("auto": that of each tensor) is that of the model. Tensors that are stored wider than the embedding
        (A_log in float32 beside weights in bfloat16) stay as much wider. Raises ModelError that names file and tensor.
        """
        folder = resolve(name, kwargs.pop("revision", None)) / (kwargs.pop("subfolder", None) or "")
        dtype, config = kwargs.pop("dtype", kwargs.pop("torch_dtype", "auto")), kwargs.pop("config", None)
        if unknown := [*kwargs, *args]:
            raise ModelError(f"{cls.__name__}.from_pretrained does not know {unknown[0]}: expected dtype or revision")
        config_class = cast(type[HybridConfig], cls.config_class)
        if not isinstance(config, config_class):
            values = read_json(folder / "config.json", "the fields of a model's config", ModelError)
            config = cast(HybridConfig, config_class.of_file(values))
        with torch.device("meta"):
            model = cls(config)
        reader, shapes = cls._reader(folder), model._stored_shapes
        stored = check_weights(folder, model, config.tie_word_embeddings, reader, cls.regroup, shapes)
        model._load(stored, dtype)
        config.name_or_path = str(folder)
        if (folder / "generation_config.json").is_file():
            with in_form(folder / "generation_config.json", "a generation config", ModelError):
                model.generation_config = GenerationConfig.from_pretrained(folder)
        check_finite(model, folder)
        return model.eval()

    @classmethod
    def regroup(cls, stored: dict[str, Stored], shapes: Shapes) -> dict[str, Stored]:
        """The stored tensors, mended where they are known to be cut in another way than the parameters."""
        return stored

    @classmethod
    def regroupings(cls, config: Any) -> tuple[Regrouping, ...]:
        """How the family's formats lay parameters out in tensors; a new model is saved by all of them, a loaded one by
        those that its files use."""
        return ()

    def _stored_shapes(self, stored: dict[str, Stored], shapes: Shapes) -> Shapes:
        """Names and shapes on disk of parameters of these shapes, in the spelling of `stored`, which is remembered."""
        self.stored_as = tuple(one for one in self.stored_as if one.in_use(stored))
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        for one in self.stored_as:
            one.to_stored(tensors)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    @classmethod
    def _reader(cls, folder: Path) -> Callable[[str], str | None]:
        """The parameter of a stored name; says once what is left out."""
        said: set[str] = set()

        def parameter(name: str) -> str | None:
            what = cls.tensor_names.left_out(name)
            if what is not None and what not in said:
                said.add(what)
                _log.warning("%s: %s is left out: only the text model is read, trained and saved", folder, what)
            return cls.tensor_names.parameter(name)

        return parameter

    def _load(self, stored: dict[str, Stored], dtype: torch.dtype | str) -> None:
        """Read the weights into a model on "meta"."""
        embeddings = f"model.{self.embeddings_name}.weight"
        main = FLOATS[stored[embeddings].dtype]
        wanted = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
        if wanted != "auto" and not isinstance(wanted, torch.dtype):
            raise ModelError(f"dtype is {reason(repr(dtype), 100)}: expected auto or one of torch, such as bfloat16")
        weights: dict[str, Tensor] = {}
        for name, one in stored.items():
            values = one.tensor()
            if isinstance(wanted, torch.dtype):
                wider = torch.promote_types(main, values.dtype) != main
                values = values.to(torch.promote_types(wanted, values.dtype) if wider else wanted)
            weights[name] = values
        if self.config.tie_word_embeddings:
            weights[HEAD] = weights[embeddings]
        for regrouping in self.stored_as:
            regrouping.to_parameters(weights)
        self.load_state_dict(weights, assign=True)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embedding.weight
        self.config.dtype = self.dtype
        self.published = {name: one.name for name, one in stored.items()}

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' save_pretrained, with the names on disk that the weights were loaded under, or those of the
        family's text models."""
        state = kwargs.pop("state_dict", None)
        state = dict(self.state_dict() if state is None else state)
        if self.config.tie_word_embeddings and HEAD in state:
            head = state.pop(HEAD)
            if HEAD in self.published:
                state[HEAD] = head.clone()
        for regrouping in self.stored_as:
            regrouping.to_stored(state)
        named = {self.published.get(name, name): tensor for name, tensor in state.items()}
        kwargs["save_original_format"] = False  # transformers would rename what is named already
        return super().save_pretrained(save_directory, *args, state_dict=named, **kwargs)


def _rename_published(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Let load_state_dict take a state with any published names, also shard by shard."""
    model = cast(HybridForCausalLM, module)
    own = {**model._waiting}
    for name in [name for name in state if name.startswith(prefix)]:
        tensor = state.pop(name)
        if (parameter := model.tensor_names.parameter(name.removeprefix(prefix))) is not None:
            own[parameter] = tensor
    regroupings = model.regroupings(model.config)
    for regrouping in regroupings:
        regrouping.to_parameters(own)
    model._waiting = {name: own.pop(name) for name in list(own) if any(one.parts(name) for one in regroupings)}
    state.update({prefix + name: tensor for name, tensor in own.items()})
