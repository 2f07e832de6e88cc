"""Sites: the kinds of places in a model whose activations can be edited."""

from __future__ import annotations

from typing import Literal, get_args

Site = Literal["neurons", "heads"]
"""What a pair `(layer, index)` names: an MLP neuron, or an attention head."""

SITES: tuple[Site, ...] = get_args(Site)
"""All sites, for calls that take any."""

UNITS: dict[Site, str] = {"neurons": "neuron", "heads": "head"}
"""The word for one unit of a site."""
