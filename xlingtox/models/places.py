"""Find the units of each site in a model: as columns of an activation.

A neuron is one column of its layer's post-activations. A head is as many columns as it is wide. A dimension of the
residual stream is one column of it. With this, an edit of any site is an edit of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from xlingtox.models.hooked import HookedLM
from xlingtox.models.modules import PlainModules
from xlingtox.models.sites import Place, Site


class _Projection(NamedTuple):
    """Functions that find the projection behind a site, which alone reads its columns.

    Attributes:
        matrix: the matrix of a layer, `[columns, d_model]`.
        modules: the modules of these projections, by layer.
    """

    matrix: Callable[[HookedLM, int], Tensor]
    modules: Callable[[PlainModules], Sequence[nn.Module]]


_PROJECTIONS: dict[Site, _Projection] = {
    "neurons": _Projection(HookedLM.value_vectors, lambda plain: plain.downs),
    "heads": _Projection(HookedLM.output_projection, lambda plain: plain.outs),
}
"""The sites whose columns a projection to `d_model` reads."""


def n_units(lm: HookedLM, site: Site) -> int:
    """Return the number of units in each layer: neurons, heads or dimensions.

    Raises:
        ValueError: the model has no units of this site.
    """
    if site == "heads":
        return lm.n_heads
    if not lm.layers_of(site):
        raise ValueError(f"{lm.name} has no {site}: no layer has one")
    return lm.d_mlp if site in ("neurons", "pre_activation") else lm.d_model


def width(lm: HookedLM, place: Place) -> int:
    """Return the number of columns that each unit of a place has: d_head for heads, 1 at all other sites."""
    site, layer = place
    return lm.head_width(layer) if site == "heads" else 1


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
    """Return what the projection behind neurons or heads makes of each of their columns."""
    return _PROJECTIONS[place[0]].matrix(lm, place[1])


def projection_names(lm: HookedLM, site: Site) -> list[str]:
    """Return the names that the projections behind neurons or heads have in `lm.unwrapped()`, layer by layer.

    Raises:
        ValueError: the model was given as a TransformerLens model.
    """
    return lm.names_of(_PROJECTIONS[site].modules(lm.plain_modules()))
