"""Run any causal language model and look inside it.

`HookedLM` holds a Hugging Face model, its tokenizer and the names of its neurons. It is loaded from a folder, a hub
name, a GGUF file or a model in memory. `generate` writes continuations, and `mean_states` averages the residual stream.
"""

from xlingtox.models.forward import HookNeverFired
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.states import mean_states

__all__ = [
    "Continuations",
    "HookNeverFired",
    "HookedLM",
    "Identity",
    "generate",
    "mean_states",
]
