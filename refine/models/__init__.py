"""Language models whose memory can be tapped after any token: DeltaNet and its kin, LaCT (memories of fixed size),
and hybrids with attention (Qwen3.5, OLMo Hybrid, Kimi Linear), whose keys and values grow with the text.

`from_config` and `from_pretrained` build them, and so do transformers' AutoConfig and AutoModelForCausalLM.
"""

from refine.models.generation import Continuation
from refine.models.language_model import FastWeightLanguageModel
from refine.models.loading import from_config, from_pretrained, load_for_reading
from refine.models.long_text import read_in_pieces
from refine.models.memory import Memory, Reading

__all__ = [
    "Continuation",
    "FastWeightLanguageModel",
    "Memory",
    "Reading",
    "from_config",
    "from_pretrained",
    "load_for_reading",
    "read_in_pieces",
]
