"""Are those neurons the cause? Edit them and see.

An edit is a value: `Offset` adds to post-activations, `Scale` multiplies them, `Set` replaces them, and `Patch` takes
them from another model. `edit.on(lm)` holds while a block runs, `edit.bake(lm)` writes it into the weights, and
`ControlVectors` carries it to llama.cpp and vLLM.
"""

from xlingtox.edits.baking import ControlVectors
from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.edits.patch import Patch

__all__ = [
    "ControlVectors",
    "Intervention",
    "Offset",
    "Patch",
    "Scale",
    "Set",
]
