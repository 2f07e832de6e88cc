"""Defaults: the methods that are compared where none are named."""

from __future__ import annotations

from collections.abc import Mapping

from xlingtox import methods
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM

_UNTUNED = (
    *("SourcesOffset", "Ablation", "AurA", "Damping", "RandomNeurons"),
    *("MeanDifference", "MeanProjected", "Principal", "PrincipalProjected", "HeadShift", "RandomDirection"),
    *("LinAcT", "LinEAS", "Prefix"),
)
"""The methods that need no tuned model, by the names of their classes."""


def default_methods(tuned: Mapping[str, HookedLM]) -> tuple[Method, ...]:
    """Return all methods that need no tuned model, and those that need one where there is one.

    The neurons that attribution finds are those of the first tuned model.
    """
    untuned = [getattr(methods, name)() for name in _UNTUNED if hasattr(methods, name)]
    attributed = [methods.AttributedOffset(model) for model in list(tuned.values())[:1]]
    return (*untuned, *attributed, *tuned_methods(tuned))


def tuned_methods(tuned: Mapping[str, HookedLM]) -> tuple[Method, ...]:
    """Return the methods that tuned models are themselves, under their names."""
    return tuple(methods.Tuned(model, name=name) for name, model in tuned.items())
