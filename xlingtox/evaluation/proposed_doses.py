"""Propose doses for a model: from none to where its fluency begins to break."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.chosen_dose import RISEN
from xlingtox.evaluation.dosing import UNITS, Unit, in_sd
from xlingtox.evaluation.fluency import check_held_out, perplexities
from xlingtox.evaluation.named_sets import activations_of_layers
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.progress import bar

_LEAST, _MOST = 1 / 64, 64.0
"""The smallest and the greatest dose that is tried."""

_NARROW = 1.1
"""Stop where the dose that costs too much is at most so many times the one that does not."""


@checked
def propose_doses(
    lm: HookedLM,
    neurons: NeuronSet,
    held_out: Dataset,
    *,
    unit: Unit = "sd",
    prompts: Prompts | None = None,
    direction: Literal[-1, 1] = -1,
    n: int = 6,
    max_new_tokens: int = 20,
    progress: bool = True,
) -> tuple[float, ...]:
    """Return evenly spaced doses, from 0 to where the perplexity of held-out text has risen by half.

    Beyond that an edited model breaks, and what it no longer writes proves nothing. The last dose is found by
    bisection, with about ten readings of the held-out text, and rounded to two significant digits.

    A `UserWarning` says so where no dose up to 64 costs as much, or already the smallest, 1/64, does.

    Args:
        neurons: the neurons that will be edited.
        held_out: columns `language, text`. The mean over languages of their perplexities counts.
        unit: the unit of the doses, as in `dose_response`.
        prompts: the prompts on which the neurons' standard deviations are taken; not needed for `unit="activation"`.
        direction: -1 for doses below 0, 1 for doses above 0.
        n: how many doses are returned, with 0.
        max_new_tokens: how far the prompts are continued, as in `dose_response`.

    Raises:
        ValueError: `n` is below 2; a neuron is outside the model, or none varies on the prompts; prompts are missing or
            bad; held-out texts are bad; or the model is edited already.

    Example:
        >>> held_out = xt.mini.held_out(n=2, languages=["en", "es"])
        >>> doses = xt.evaluation.propose_doses(lm, sources, held_out, prompts=prompts, n=4, progress=False)
        >>> len(doses), doses[0], doses[-1] < doses[1] < 0
        (4, 0.0, True)
    """
    if n < 2:
        raise ValueError(f"n is {n}: expected 2 doses or more")
    lm.check_unedited("proposed doses do not show")
    neurons.check(lm)
    check_held_out(lm, held_out)
    if unit == "sd":
        if prompts is None:
            raise ValueError("doses in standard deviations need prompts=, on which the neurons' activations vary")
        prompt_list = lm.as_prompts(prompts)
        check_lengths(lm, prompt_list, max_new_tokens)
        activations = activations_of_layers(
            lm, [neurons], prompt_list, max_new_tokens=max_new_tokens, progress=progress
        )
        neurons = in_sd(neurons, activations)

    def perplexity() -> float:
        shown.update()
        return float(np.mean(list(perplexities(lm, held_out, progress=progress).values())))

    with bar("proposing doses", unit="reading", progress=progress) as shown:
        unedited = perplexity()

        def costs_too_much(size: float) -> bool:
            with Offset(neurons, direction * size).on(lm):
                # An overflow is too much too: no comparison with NaN is true.
                return not perplexity() < RISEN * unedited

        most = _crossing(costs_too_much)
    if most is None:
        warnings.warn(
            f"the perplexity does not rise by half up to a dose of {_MOST:g} {UNITS[unit]}: these neurons hardly "
            "matter to held-out text, and the doses end there",
            stacklevel=2,
        )
    elif most <= _LEAST:
        warnings.warn(
            f"the perplexity rises by half already at a dose of {_LEAST:g} {UNITS[unit]}, the smallest that is tried: "
            "the doses end there",
            stacklevel=2,
        )
    last = _rounded(_MOST if most is None else most)
    return tuple(direction * _rounded(last * i / (n - 1)) if i else 0.0 for i in range(n))


def _crossing(costs_too_much: Callable[[float], bool]) -> float | None:
    """Return about the smallest dose that costs too much, searched from 1 on; None where none does.

    Doses are doubled or halved until one costs too much and the half of it does not, and then bisected.
    """
    above = 1.0
    if costs_too_much(above):
        while costs_too_much(above / 2):
            above /= 2
            if above <= _LEAST:
                return _LEAST
        below = above / 2
    else:
        while not costs_too_much(2 * above):
            above *= 2
            if above >= _MOST:
                return None
        below, above = above, 2 * above
    while above > _NARROW * below:
        middle = math.sqrt(below * above)
        below, above = (below, middle) if costs_too_much(middle) else (middle, above)
    return math.sqrt(below * above)


def _rounded(dose: float) -> float:
    """Round to two significant digits."""
    return float(f"{dose:.1e}")
