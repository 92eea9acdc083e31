"""Models that read and answer: DeltaNet, Gated DeltaNet, LaCT, with a fixed-size memory that can be tapped anywhere.

`from_config`, `from_pretrained`, and transformers' AutoConfig / AutoModelForCausalLM once this is imported.
"""

from refine.models.generation import Continuation
from refine.models.language_model import FastWeightLanguageModel
from refine.models.loading import from_config, from_pretrained
from refine.models.memory import Memory, Reading

__all__ = ["Continuation", "FastWeightLanguageModel", "Memory", "Reading", "from_config", "from_pretrained"]
