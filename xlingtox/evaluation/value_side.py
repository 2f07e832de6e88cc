"""The value side of dual multilinguality: of which languages do promoted tokens hold more toxic ones than by chance?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox import languages
from xlingtox.evaluation.beside_chance import Measured, at_once, in_languages, places_of
from xlingtox.evaluation.dual_result import AtOnce, InLanguage, no_at_once
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.toxic_tokens import promoted_counts, vectors_at

_RESAMPLES = 2000


def own_tokens(flags: Mapping[str, Bool[Tensor, "vocab"]]) -> dict[str, Bool[Tensor, "vocab"]]:
    """Return the toxic tokens that no other language lists, for each language that has any."""
    if not flags:
        return {}
    alone = torch.stack(list(flags.values())).sum(0) == 1
    own = {code: tokens & alone for code, tokens in flags.items()}
    return {code: tokens for code, tokens in own.items() if bool(tokens.any())}


def value_side(
    model: str,
    lm: HookedLM,
    sets: Mapping[str, NeuronSet],
    draws: Mapping[str, Int[np.ndarray, "draw neuron"]],
    flags: Mapping[str, Bool[Tensor, "vocab"]],
    *,
    k: int,
    seed: int,
) -> tuple[list[InLanguage], list[AtOnce]]:
    """Count the toxic tokens that each set promotes, next to its random sets.

    Args:
        model: the name of the model in the tables.
        draws: the places of the neurons of the random sets.
        flags: the toxic tokens of each language.
    """
    if not flags:
        return [], [no_at_once(name, model, "value", 0) for name in sets]
    codes, own = languages.in_order(flags), own_tokens(flags)
    own_codes = languages.in_order(own)
    tables = torch.stack([*(flags[code] for code in codes), *(own[code] for code in own_codes)])
    chosen = {name: places_of(neurons, lm) for name, neurons in sets.items()}
    distinct = np.unique(np.concatenate([*chosen.values(), *(drawn.ravel() for drawn in draws.values())]))
    # Random sets share neurons, so that each is read once.
    counts = promoted_counts(lm, vectors_at(lm, torch.tensor(distinct)), tables, k=k)
    rows, once = [], []
    for name in sets:
        own_rows, random_rows = (np.searchsorted(distinct, places) for places in (chosen[name], draws[name]))
        by_neuron = counts[own_rows]
        measured = _measured(by_neuron[:, : len(codes)], counts[:, : len(codes)][random_rows], k)
        intervals = _intervals(by_neuron[:, : len(codes)] / k, measured.random, seed)
        rows += in_languages(measured, codes, intervals=intervals, side="value", neurons=name, model=model)
        once.append(at_once(measured, side="value", neurons=name, model=model))
        if own:
            alone = _measured(by_neuron[:, len(codes) :], counts[:, len(codes) :][random_rows], k)
            once.append(at_once(alone, side="value", control="own tokens", neurons=name, model=model))
        else:
            once.append(no_at_once(name, model, "value", 0, control="own tokens"))
    return rows, once


def _measured(
    by_neuron: Int[np.ndarray, "neuron language"], random: Int[np.ndarray, "draw neuron language"], k: int
) -> Measured:
    """Return the share of promoted tokens that are toxic, and in how many languages one neuron has any."""
    return Measured(
        by_neuron.mean(0) / k,
        random.mean(1) / k,
        float((by_neuron > 0).sum(1).mean()),
        (random > 0).sum(2).mean(1).astype(np.float64),
    )


def _intervals(
    shares: Float[np.ndarray, "neuron language"], random: Float[np.ndarray, "draw language"], seed: int
) -> list[tuple[float, float]]:
    """Return the interval of the difference from chance by resampling neurons, for each language and for their mean."""
    if len(shares) == 1:
        return [(float("nan"), float("nan"))] * (shares.shape[1] + 1)
    drawn = np.random.default_rng([seed, 3]).integers(len(shares), size=(_RESAMPLES, len(shares)))
    means = np.stack([column[drawn].mean(1) for column in (*shares.T, shares.mean(1))])
    chance = np.append(random.mean(0), random.mean())
    low, high = np.quantile(means, [0.025, 0.975], axis=1) - chance
    return list(zip(low.tolist(), high.tolist(), strict=True))
