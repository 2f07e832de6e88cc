"""Find the units of each site in a model: as columns of an activation, which one projection reads.

A neuron is one column of its layer's post-activations, which the down-projection reads. A head is as many columns as it
is wide, and attention's output projection reads them. With this, an edit of any site is an edit of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from xlingtox.models.hooked import HookedLM
from xlingtox.models.modules import PlainModules
from xlingtox.models.sites import Place, Site


class _Holder(NamedTuple):
    """Functions that say how models hold one site.

    Attributes:
        n_units: the number of units in each layer.
        width: the number of columns of each unit of a layer.
        projection: the matrix that reads the columns of a layer, `[columns, d_model]`.
        modules: the modules of these projections, by layer.
    """

    n_units: Callable[[HookedLM], int]
    width: Callable[[HookedLM, int], int]
    projection: Callable[[HookedLM, int], Tensor]
    modules: Callable[[PlainModules], Sequence[nn.Module]]


_HOLDERS: dict[Site, _Holder] = {
    "neurons": _Holder(lambda lm: lm.d_mlp, lambda lm, layer: 1, HookedLM.value_vectors, lambda plain: plain.downs),
    "heads": _Holder(lambda lm: lm.n_heads, HookedLM.head_width, HookedLM.output_projection, lambda plain: plain.outs),
}


def n_units(lm: HookedLM, site: Site) -> int:
    """Return the number of units in each layer: neurons or heads.

    Raises:
        ValueError: the model has no units of this site.
    """
    return _HOLDERS[site].n_units(lm)


def width(lm: HookedLM, place: Place) -> int:
    """Return the number of columns that each unit of a place has: 1 for neurons, d_head for heads."""
    return _HOLDERS[place[0]].width(lm, place[1])


def n_columns(lm: HookedLM, place: Place) -> int:
    """Return the number of columns that the activations of a place have."""
    return n_units(lm, place[0]) * width(lm, place)


def columns(lm: HookedLM, place: Place, units: Sequence[int]) -> list[int]:
    """Return the columns of these units in the activations of a place, one unit after the other.

    Example:
        >>> from xlingtox.models.places import columns
        >>> columns(lm, ("neurons", 0), [7, 3]), len(columns(lm, ("heads", 0), [1])) == lm.head_width(0)
        ([7, 3], True)
    """
    size = width(lm, place)
    return [unit * size + i for unit in units for i in range(size)]


def projection(lm: HookedLM, place: Place) -> Float[Tensor, "column d_model"]:
    """Return what the projection behind a place makes of each of its columns."""
    return _HOLDERS[place[0]].projection(lm, place[1])


def projection_names(lm: HookedLM, site: Site) -> list[str]:
    """Return the names that the projections behind a site have in `lm.unwrapped()`, in the order of the layers.

    Raises:
        ValueError: the model was given as a TransformerLens model.
    """
    return lm.names_of(_HOLDERS[site].modules(lm.plain_modules()))
