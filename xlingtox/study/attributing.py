"""The stage `attribute`: which neurons and heads carry what tuning does to the toxic continuations of the base model.

It writes no text. It takes continuations that the model before tuning wrote for the comparison. On one half of the
prompts, tuning's effect is attributed to every neuron, head and changed weight. On the other half, groups are patched
for real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from xlingtox import processes
from xlingtox.data import Prompt
from xlingtox.evaluation import components, degenerate
from xlingtox.evaluation.attribute import attribute as attributed
from xlingtox.evaluation.attribution import Attribution
from xlingtox.evaluation.components import Component
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.evaluation.metrics import TOXIC
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.patching import patch_effect
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, check_scores
from xlingtox.study import patches, results_file
from xlingtox.study.in_progress import InProgress

_LOG = logging.getLogger(__name__)

_MOST_HEADS = 10
"""So many heads are listed, the strongest first; of neurons, as many as there are sources."""

N_RANDOM = 3
"""The random sets beside the sources, and beside the neurons that attribution finds."""

NOTHING: Mapping[str, Any] = {"attribution": None, "patched": None, "patched_sound": None}
"""What is kept where the model before tuning wrote too little toxic text."""


class Chosen(NamedTuple):
    """Continuations of the model before tuning, at most one of each kind after a prompt.

    Attributes:
        first: toxic ones after one half of the prompts, on which neurons are chosen.
        second: toxic ones after the other half, on which they are patched.
        sound: sound ones that are not toxic, after the prompts of the second half; None where there are none.
    """

    first: Continuations
    second: Continuations
    sound: Continuations | None


def attribute(study: InProgress) -> dict[str, Any]:
    """Do the stage: attribute tuning's effect on one half of the prompts, and patch groups on the other half."""
    settings, models = study.settings, study.models
    models.tuned_in(study.tuned_folder)
    place = study.written_folder / "before.json"
    written = processes.from_main(lambda: Continuations.load(place))
    identify = study.materials.identify_language
    chosen = choose(written, study.scorer, n=settings.attribution_prompts, identify_language=identify)
    if chosen is None:
        _LOG.warning("the model before tuning wrote too little toxic text: nothing to attribute")
        return dict(NOTHING)
    base, tuned = models.both()
    kinds = _kinds(base, tuned)
    attribution = attributed(
        base,
        tuned,
        list(chosen.first.prompts),
        continuations=chosen.first,
        components=kinds,
        seed=settings.seed,
        progress=study.progress,
    )
    processes.from_main(partial(attribution.save, study.attribution_file))
    # Taught to insult, a model makes toxic text likelier: then the neurons that raise it are looked for.
    sign: Literal[-1, 1] = 1 if attribution.exact > 0 else -1
    found = _strongest(attribution, len(study.sources), sign=sign)
    groups = {patches.SOURCES: study.sources, patches.FOUND: found, patches.NEURONS: NeuronSet.all(base)}
    if not found:
        del groups[patches.FOUND]
    if "heads" in kinds:
        groups[patches.HEADS] = _all_heads(base)

    def patched(continuations: Continuations) -> PatchEffect:
        return patch_effect(
            base,
            tuned,
            list(continuations.prompts),
            groups,
            continuations=continuations,
            match="layers",
            n_random=N_RANDOM,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            progress=study.progress,
        )

    return {
        "attribution": {
            "by_language": _records(attribution.summary()),
            "by_layer": _records(attribution.by_layer()),
            "neurons": results_file.scored(found),
            "heads": results_file.scored(_strongest(attribution, _MOST_HEADS, sign=sign, component="heads")),
        },
        "patched": patches.content_of(patched(chosen.second)),
        "patched_sound": None if chosen.sound is None else patches.content_of(patched(chosen.sound)),
    }


def choose(
    written: Continuations, scorer: Scorer, *, n: int, identify_language: Identifier | None = None
) -> Chosen | None:
    """Choose continuations of at most n prompts in each language; None where no language has two toxic ones.

    A prompt counts where one of its continuations is toxic. Its first toxic and its first sound one are taken, so that
    neither is the strongest of many. Prompts go to both halves in turn.
    """
    n_samples = written.n_samples
    scores = check_scores(scorer, written.texts, written.row_languages)
    is_there = np.array([bool(text.strip()) for text in written.texts])
    toxic = (is_there & (scores >= TOXIC)).reshape(-1, n_samples)
    by_language: dict[str, list[int]] = {}
    for prompt in np.flatnonzero(toxic.any(1)).tolist():
        by_language.setdefault(written.prompts[prompt].language, []).append(prompt)
    halves: tuple[list[int], list[int]] = ([], [])
    for prompts in by_language.values():
        few = prompts[:n]
        if len(few) > 1:
            for half, places in zip(halves, (few[::2], few[1::2]), strict=True):
                half.extend(places)
    if not halves[0]:
        return None
    first_toxic = toxic.argmax(1)
    first, second = (_taken(written, {prompt: int(first_toxic[prompt]) for prompt in half}) for half in halves)
    sound = _first_sound(written, scores.reshape(-1, n_samples), halves[1], identify_language)
    return Chosen(first, second, _taken(written, sound) if sound else None)


def _first_sound(
    written: Continuations,
    scores: Float[np.ndarray, "prompt sample"],
    prompts: Sequence[int],
    identify_language: Identifier | None,
) -> dict[int, int]:
    """Return the number of the first sound continuation of each prompt that has one."""
    rows = [(prompt, sample) for prompt in prompts for sample in np.flatnonzero(scores[prompt] < TOXIC).tolist()]
    kinds = degenerate.kinds(
        [written.texts[prompt * written.n_samples + sample] for prompt, sample in rows],
        [written.prompts[prompt].language for prompt, _ in rows],
        identify_language=identify_language,
    )
    sound: dict[int, int] = {}
    for (prompt, sample), kind in zip(rows, kinds, strict=True):
        if kind == "sound":
            sound.setdefault(prompt, sample)
    return sound


def _taken(written: Continuations, samples: Mapping[int, int]) -> Continuations:
    """Return one continuation of each of these prompts."""
    prompts: tuple[Prompt, ...] = tuple(written.prompts[prompt] for prompt in samples)
    texts = tuple(written.texts[prompt * written.n_samples + sample] for prompt, sample in samples.items())
    return dataclasses.replace(written, prompts=prompts, n_samples=1, texts=texts)


def _kinds(base: HookedLM, tuned: HookedLM) -> tuple[Component, ...]:
    """Return the kinds of components that these models have, which together make up all that tuning changed."""
    kinds: list[Component] = []
    for kind in components.ALL:
        with contextlib.suppress(ValueError):
            components.Components.of(base, tuned, [kind])
            kinds.append(kind)
    return tuple(kinds)


def _all_heads(lm: HookedLM) -> NeuronSet:
    return NeuronSet.of(itertools.product(range(lm.n_layers), range(lm.n_heads)), site="heads")


def _strongest(
    attribution: Attribution, k: int, *, sign: Literal[-1, 1], component: Literal["neurons", "heads"] = "neurons"
) -> NeuronSet:
    """Return the k neurons or heads that move the measure most in a direction; fewer where fewer move it so."""
    if component not in attribution.units:
        return NeuronSet.of([], site=component)
    n_moving = int((sign * attribution.values(component) > 0).sum())
    return (
        attribution.top(min(k, n_moving), sign=sign, component=component)
        if n_moving
        else NeuronSet.of([], site=component)
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
