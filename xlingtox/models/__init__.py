"""Run any causal language model and look inside it.

`HookedLM` holds a Hugging Face model, its tokenizer and the vectors of its neurons. It is loaded from a folder, a hub
name, a GGUF file or a model in memory. `generate` writes continuations, and `mean_states` averages the residual stream.

Inside, `loading` reads a plain model. `backend` and `tl_backend` run it with PyTorch hooks or with TransformerLens.
`forward` lets edits hook both at once. `vectors` and `text_encoding` add the neurons' vectors and the tokens of texts,
and `hooked` puts all of these together.
"""

from xlingtox.models.completions import ServerError
from xlingtox.models.forward import HookNeverFired
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.served import Served
from xlingtox.models.served_check import Difference
from xlingtox.models.states import mean_states

__all__ = [
    "Continuations",
    "Difference",
    "HookNeverFired",
    "HookedLM",
    "Identity",
    "Served",
    "ServerError",
    "generate",
    "mean_states",
]
