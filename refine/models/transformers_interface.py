"""What transformers' users expect of a model: forward with labels and a cache, generate, embeddings.

Shape legend: B rows · T tokens of a row, padding included · V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from refine.errors import ModelError
from refine.models.batch import Batch
from refine.models.memory import Memory


class MemoryCache:
    """The memory, in the place where `generate` expects a key-value cache. Each step replaces it; it never grows."""

    is_compileable = False

    def __init__(self, memory: Memory, width: int) -> None:
        self.memory = memory
        self.width = width  # columns of input_ids seen so far, padding included

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input_ids that the memory has seen, padding included."""
        return self.width

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit (transformers writes that as -1)."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order of `beam_idx` [B]."""
        self.memory = self.memory.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self.memory = self.memory.repeat(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self.memory = self.memory.select(indices)

    def crop(self, max_length: int) -> None:
        """Raises ModelError: a fixed-size memory cannot forget its last tokens."""
        raise ModelError("a fixed-size memory cannot be cropped: assisted (speculative) generation is not supported")


class TransformersInterface:
    """Mixed into `FastWeightLanguageModel`: `forward` and what `generate` needs."""

    _is_stateful = True  # a cache cannot be rolled back
    if TYPE_CHECKING:  # attributes of FastWeightLanguageModel
        name_or_path: str
        config: Any
        model: Any
        lm_head: nn.Linear
        training: bool
        loss_function: Any
        logits: Any
        read_batch: Any
        _check_tokens: Any
        _check_memory: Any

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: MemoryCache | Memory | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T, V], and the loss if labels [B, T] are given (-100 is ignored), as any causal language model.

        `attention_mask` [B, T]: 0 marks padding, on either side. Padding does not change the logits of real tokens;
        logits at padding are those of a zero state. With a cache the mask may cover the earlier columns too.
        `output_hidden_states` returns the final state only. Raises ModelError as `read` does.
        """
        if kwargs.get("output_attentions"):
            raise ModelError("output_attentions is not possible: there are no attention weights")
        cache = past_key_values
        memory = cache.memory if isinstance(cache, MemoryCache) else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("give either input_ids or inputs_embeds")
        tokens = input_ids
        if tokens is None:
            assert inputs_embeds is not None
            tokens = torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device)
        self._check_tokens(tokens)
        self._check_memory(memory, tokens)
        if attention_mask is None:
            batch = Batch.packed(tokens, None, memory)
        else:
            batch = Batch.masked(tokens, attention_mask[:, -tokens.shape[1] :], memory)
        x = self.model.embeddings(batch.flat(tokens)) if inputs_embeds is None else batch.flat(inputs_embeds)
        reading = self.read_batch(batch, x, memory)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.logits(reading.hidden[:, kept if isinstance(logits_to_keep, int) else logits_to_keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        wanted = use_cache if use_cache is not None else (self.config.use_cache and not self.training)
        before = cache.width if isinstance(cache, MemoryCache) else 0
        after: Any = MemoryCache(reading.memory, before + tokens.shape[1]) if wanted else None
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=after,
            hidden_states=(reading.hidden,) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens [V, D]."""
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding of tokens."""
        self.model.embeddings = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head [V, D]."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = value

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """transformers' own, which uploads weights and config; then the tokenizer in the folder that the model came
        from. The model card in that folder goes along while the model has the folder's weights, unless the repository
        has a card. For a folder as it is: `hf upload OWNER/NAME FOLDER`."""
        from refine.models import hub_upload

        as_user = {"token": options.get("token")}
        repo_id = hub_upload.repository(repo_id, private=options.get("private"), **as_user)
        with_card = not hub_upload.has_card(repo_id, revision=options.get("revision"), **as_user)
        commit = super().push_to_hub(repo_id, **options)  # type: ignore[misc]
        at = (commit.pr_revision if options.get("create_pr") else None) or options.get("revision")
        if self.name_or_path and (folder := Path(self.name_or_path)).is_dir():
            hub_upload.upload_beside(self, folder, repo_id, with_card, revision=at, **as_user)
        return commit
