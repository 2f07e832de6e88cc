"""Defaults: the methods that are compared where none are named."""

from __future__ import annotations

from collections.abc import Mapping

from xlingtox import methods
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM


def default_methods(tuned: Mapping[str, HookedLM]) -> tuple[Method, ...]:
    """Return all methods that need no tuned model, and those that need one where there is one.

    The neurons that attribution finds are those of the first tuned model.
    """
    return (
        methods.SourcesOffset(),
        methods.Ablation(),
        methods.AurA(),
        methods.Damping(),
        methods.MeanDifference(),
        methods.MeanProjected(),
        methods.Principal(),
        methods.PrincipalProjected(),
        methods.HeadShift(),
        methods.LinAcT(),
        methods.LinEAS(),
        methods.Prefix(),
        *(methods.AttributedOffset(model) for model in list(tuned.values())[:1]),
        *tuned_methods(tuned),
        methods.RandomNeurons(),
        methods.RandomDirection(),
    )


def tuned_methods(tuned: Mapping[str, HookedLM]) -> tuple[Method, ...]:
    """Return the methods that tuned models are themselves, under their names."""
    return tuple(methods.Tuned(model, name=name) for name, model in tuned.items())
