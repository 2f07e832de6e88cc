"""Sites: the kinds of places in a model whose activations can be edited. A place is a site of one layer.

All that tells one site from another is here and in `places`, so edits are written once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from xlingtox.models.backend import Hook

Site = Literal["neurons", "heads"]
"""What a pair `(layer, index)` names: a neuron of an MLP, or a head of an attention."""

Place = tuple[Site, int]
"""A site and a layer."""

SITES: tuple[Site, ...] = get_args(Site)
"""All sites, for calls that take any."""

UNITS: dict[Site, str] = {"neurons": "neuron", "heads": "head"}
"""The word for one unit of a site."""

_HOOKS: dict[Site, str] = {"neurons": "post", "heads": "heads"}
"""The argument of `HookedLM.hooks` that hooks a site."""


def as_arguments(hooks: Mapping[Place, Hook]) -> dict[str, Any]:
    """Return the arguments of `HookedLM.hooks` that set a hook at each place.

    Example:
        >>> from xlingtox.models.sites import as_arguments
        >>> as_arguments({("neurons", 2): print, ("heads", 0): print}).keys()
        dict_keys(['post', 'heads'])
    """
    arguments: dict[str, Any] = {}
    for (site, layer), hook in hooks.items():
        arguments.setdefault(_HOOKS[site], {})[layer] = hook
    return arguments
