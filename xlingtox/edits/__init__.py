"""Edit activations, to see whether they are the cause of what a model writes.

An edit is a value: `Offset` adds to activations, `Scale` multiplies them, `Set` replaces them, and `Patch` takes them
from another model. They edit neurons, attention heads or dimensions of another site. `Steer` adds a direction, and
`Project` takes it out. `with edit.on(lm):` applies it during the block, `edit.bake(lm)` writes it into weights, and
`ControlVectors` carries it to engines that know no neurons, such as llama.cpp.

`mean_offset`, `mean_mix`, `mean_scale`, `aligned_offset` and `aligned_means` make edits from mean activations. They do
without training what tuning does to these means.
"""

from xlingtox.edits.constants import aligned_means, aligned_offset, mean_mix, mean_offset, mean_scale
from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.edits.steering import Project, Steer
from xlingtox.edits.together import Together
from xlingtox.edits.under import generate_under

__all__ = [
    "ControlVectors",
    "Intervention",
    "Offset",
    "Patch",
    "Project",
    "Scale",
    "Set",
    "Steer",
    "Together",
    "aligned_means",
    "aligned_offset",
    "generate_under",
    "mean_mix",
    "mean_offset",
    "mean_scale",
]
