"""Compare one side of a set of neurons with random sets: in each language, and in how many languages at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from xlingtox.evaluation.dual_result import AtOnce, Control, InLanguage, Side
from xlingtox.evaluation.multiplicity import holm
from xlingtox.evaluation.named_sets import ALL
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class Measured:
    """One side of a set and of its random sets.

    Attributes:
        values: the numbers of the set, one for each language.
        random: those of each random set.
        of_one: how many languages one neuron of the set reaches, on average.
        of_one_random: the same of each random set.
    """

    values: Float[np.ndarray, "language"]
    random: Float[np.ndarray, "draw language"]
    of_one: float
    of_one_random: Float[np.ndarray, "draw"]


def draw_places(
    neurons: NeuronSet,
    lm: HookedLM,
    *,
    n: int,
    seed: int,
    pools: Mapping[int, Int[np.ndarray, "neuron"]] | None = None,
) -> Int[np.ndarray, "draw neuron"]:
    """Draw n random sets, each of as many neurons in the same layers, as places (`layer * d_mlp + index`).

    They are drawn from all neurons of the layers, so a set that was itself chosen at random is as likely to be above
    them as any.

    Args:
        pools: for each layer, the indices that may be drawn (default: all).
    """
    rng = np.random.default_rng([seed, 4])
    drawn = []
    for layer, (indices, _) in sorted(neurons.by_layer().items()):
        pool = np.arange(lm.d_mlp) if pools is None else pools[layer]
        orders = rng.random((n, len(pool))).argpartition(len(indices) - 1, axis=1)[:, : len(indices)]
        drawn.append(layer * lm.d_mlp + pool[orders])
    return np.concatenate(drawn, axis=1)


def places_of(neurons: NeuronSet, lm: HookedLM) -> Int[np.ndarray, "neuron"]:
    """Return the place of each neuron, which is `layer * d_mlp + index`."""
    return np.array([layer * lm.d_mlp + index for layer, index in neurons], dtype=np.int64)


def in_languages(
    measured: Measured,
    codes: Sequence[str],
    *,
    intervals: Sequence[tuple[float, float]],
    p_of_prompts: Sequence[float] = (),
    neurons: str,
    model: str,
    side: Side,
) -> list[InLanguage]:
    """Return a row for each language, and one for the mean over languages.

    Args:
        intervals: of the value less its chance level, for each language and last for their mean.
        p_of_prompts: further p-values that a claim has to beat, in the same order.
    """
    values = np.append(measured.values, measured.values.mean())
    random = np.column_stack([measured.random, measured.random.mean(1)])
    p = at_least(random, values)
    if p_of_prompts:
        p = np.maximum(p, p_of_prompts)
    corrected = [*holm(p[:-1].tolist()).tolist(), math.nan]
    low, high = np.quantile(random, [0.025, 0.975], axis=0)
    columns = (values, random.mean(0), low, high, *np.array(intervals, dtype=np.float64).T, p, corrected)
    return [
        InLanguage(neurons, model, side, code, *map(float, numbers))
        for code, *numbers in zip([*codes, ALL], *columns, strict=True)
    ]


def at_once(measured: Measured, *, neurons: str, model: str, side: Side, control: Control = "random") -> AtOnce:
    """Count the languages in which the set is above the random ones, and do the same for each random set."""
    limits = np.quantile(measured.random, 0.95, axis=0)
    above, by_chance = int((measured.values > limits).sum()), (measured.random > limits).sum(1).astype(np.float64)
    of_one = measured.of_one_random
    numbers = (
        by_chance.mean(),
        np.quantile(by_chance, 0.95, method="inverted_cdf"),
        at_least(by_chance[:, None], np.array([float(above)]))[0],
        measured.of_one,
        of_one.mean(),
        *np.quantile(of_one, [0.025, 0.975]),
        at_least(of_one[:, None], np.array([measured.of_one]))[0],
    )
    return AtOnce(neurons, model, side, control, len(measured.values), above, *map(float, numbers))


def at_least(
    random: Float[np.ndarray, "draw number"], observed: Float[np.ndarray, "number"]
) -> Float[np.ndarray, "number"]:
    """Return the share of values, the observed one among them, that are at least as high as the observed one."""
    reach = random >= observed - 1e-12 * np.maximum(np.abs(observed), 1e-30) - 1e-15
    return (1 + reach.sum(0)) / (1 + len(random))
