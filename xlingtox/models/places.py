"""Find the units of each site in a model: as columns of an activation.

A neuron is one column of its layer's post-activations. A head is as many columns as it is wide. A dimension of the
residual stream is one column of it. With this, an edit of any site is an edit of columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site


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
