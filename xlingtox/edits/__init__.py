"""Edit neurons or attention heads, to see whether they are the cause of what a model writes.

An edit is a value: `Offset` adds to activations, `Scale` multiplies them, `Set` replaces them, and `Patch` takes them
from another model. `with edit.on(lm):` applies it during the block, `edit.bake(lm)` writes it into weights, and
`ControlVectors` carries it to engines that know no neurons, such as llama.cpp.
"""

from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.edits.together import Together
from xlingtox.edits.under import generate_under

__all__ = [
    "ControlVectors",
    "Intervention",
    "Offset",
    "Patch",
    "Scale",
    "Set",
    "Together",
    "generate_under",
]
