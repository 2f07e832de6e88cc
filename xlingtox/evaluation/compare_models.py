"""Measure two models on the same prompts, such as one before and after tuning, and return their `Comparison`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts, meanings
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.fluency import check_held_out, conditional_perplexity, perplexities
from xlingtox.evaluation.measurement import Measurement, measure
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.named_sets import CONTROL, NamedSets, named_sets
from xlingtox.evaluation.same_text import Text, activity, matched_controls
from xlingtox.evaluation.soundness import Reference
from xlingtox.evaluation.weight_drift import weight_drift
from xlingtox.files import writable_folder
from xlingtox.measures import COMPARED, PER_PROMPT, TOXICITY
from xlingtox.models.ending import ending_probability
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import few_enough
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered


@checked
def compare(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    *,
    neurons: NamedSets,
    scorer: Scorer,
    text: Text = "before",
    n_random: int = 5,
    held_out: Dataset | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
    identify_language: degenerate.Identifier | None = None,
    source_language: str = "en",
) -> Comparison:
    """Measure both models on the same prompts with the same random numbers (paper, Table 2 and Figure 3).

    `before` also judges the fluency of both models' continuations, by how likely it finds them.

    Args:
        before, after: the model before the change, and the one after it.
        prompts: prompts with their languages. Only the continuations are scored. In a table with a column `index`,
            prompts of the same index are translations. The mean over languages resamples them together.
        neurons: the neurons whose mean activation is compared: one set, which is called "sources", or several by name,
            of which the first is the main set. If none is called "control", random neurons of the same layers that are
            as active on the same prompts are drawn as the control of the main set.
        text: whose greedy continuations both models read while the neurons' activations are compared: those of the
            model "before" or "after", or each model its "own" as in the paper. On its own text almost any active neuron
            seems to fall, because the text changed. `Measures.mean_activation` is always on each model's own text.
        n_random: how many random sets the control is the mean of; 0 for none.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        held_out: columns `language, text`, for perplexity.
        output_dir: a folder that keeps what both models write, as `before.json` and `after.json`
            (`Continuations.load`), and from which the texts are read again. If the scorer fails, nothing need be
            generated again, and another scorer can judge the same texts.
        identify_language: a function that tells the language of continuations, for example `degenerate.lingua()`. With
            it, texts in another language of the same script count as degenerate too.
        source_language: the language that the model was tuned on. The others have a mean change of their own.

    Raises:
        ValueError: the models differ in shape or in how they cut text into tokens; the scorer does not cover a
            language; a set of neurons has no name; a neuron is outside the models; the activations of a set take more
            than a gibibyte; prompts or held-out texts are empty or malformed; `output_dir` holds the texts of another
            comparison; or `output_dir` is given and a model is edited by hooks, which its texts do not show.
        OSError: the folder cannot be written.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> comparison = xt.compare(lm, edited, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=2, max_new_tokens=4, progress=False)
        >>> comparison.before["en"].mean_activation > comparison.after["en"].mean_activation
        True
    """
    before.check_alike(after)
    prompt_list = as_prompts(prompts, tokenizer=before.tokenizer)
    sets = named_sets(neurons)
    main = next(iter(sets.values()))
    for neuron_set in sets.values():
        neuron_set.check(before)
    if n_random < 0:
        raise ValueError(f"n_random is {n_random}: expected 0 or more")
    check_covered(scorer, [prompt.language for prompt in prompt_list])
    largest = max(map(len, sets.values()))
    if not few_enough(len(prompt_list), max_new_tokens, largest):
        raise ValueError(
            f"{largest} neurons over {max_new_tokens} steps of {len(prompt_list)} prompts take more than a "
            "gibibyte: compare fewer neurons (collect_activations gives the means of any number)"
        )
    for lm in (before, after):
        check_lengths(lm, prompt_list, max_new_tokens)
        if held_out is not None:
            check_held_out(lm, held_out)
    _check_same_tokens(before, after, prompt_list, held_out)
    if output_dir is not None and (hooked := [lm.name for lm in (before, after) if lm.hooked]):
        raise ValueError(
            f"{hooked[0]} has hooks on it, which do not show in the texts that output_dir= keeps: compare without "
            "output_dir=, or with the model that edit.bake(lm) gives"
        )
    folder = None if output_dir is None else writable_folder(output_dir)
    settings = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed}
    continuations = [
        _continuations(lm, prompt_list, settings, file=folder and folder / f"{side}.json", progress=progress)
        for side, lm in (("before", before), ("after", after))
    ]
    fluencies = [conditional_perplexity(before, written, progress=progress) for written in continuations]
    reference = Reference.measure(before, continuations[0], held_out, fluency=fluencies[0], progress=progress)
    sides = [
        measure(
            lm,
            written,
            main,
            scorer=scorer,
            fluency=judged,
            reference=reference,
            max_new_tokens=max_new_tokens,
            identify_language=identify_language,
            progress=progress,
        )
        for lm, written, judged in zip((before, after), continuations, fluencies, strict=True)
    ]
    fluency = [perplexities(lm, held_out, progress=progress) if held_out is not None else {} for lm in (before, after)]
    codes = languages.in_order(prompt.language for prompt in prompt_list)
    measures = [
        {code: side[code].summary(fluent.get(code, math.nan)) for code in codes}
        for side, fluent in zip(sides, fluency, strict=True)
    ]
    aligned = meanings(prompts)
    read: dict[str, Sequence[NeuronSet]] = {name: [neuron_set] for name, neuron_set in sets.items()}
    if CONTROL not in sets:
        sizes: dict[str, Any] = {"n": n_random, "seed": seed, "max_new_tokens": max_new_tokens}
        if controls := matched_controls(before, prompt_list, main, **sizes):
            read[CONTROL] = controls
    compared = {name: _changes(sides[0], sides[1], name, aligned) for name in (*PER_PROMPT, "continuation_perplexity")}
    ending = [ending_probability(lm, prompt_list, progress=False) for lm in (before, after)]
    first, then = ({code: side[code] for code in codes if code != source_language} for side in sides)
    of_others = {name: _changes(first, then, name, aligned)[1] for name in TOXICITY} if first else {}
    return Comparison(
        measures[0],
        measures[1],
        changes={code: {name: intervals[code] for name, (intervals, _) in compared.items()} for code in codes},
        scorer=ScorerIdentity.of(scorer),
        models=(before.identity(), after.identity()),
        mean_changes={name: mean for name, (_, mean) in compared.items()},
        changes_of_others=of_others,
        drift=() if before.standing_edit or after.standing_edit else weight_drift(before, after).by_layer(),
        neurons=main.neurons,
        neuron_activations={code: (sides[0][code].by_neuron, sides[1][code].by_neuron) for code in codes},
        counts={code: (sides[0][code].counts, sides[1][code].counts) for code in codes},
        ending={code: (float(ending[0][code].mean()), float(ending[1][code].mean())) for code in codes},
        activity=activity(
            before,
            after,
            prompt_list,
            read,
            text=text,
            meanings=aligned,
            max_new_tokens=max_new_tokens,
            progress=progress,
        ),
    )


def _check_same_tokens(before: HookedLM, after: HookedLM, prompts: Iterable[Prompt], held_out: Dataset | None) -> None:
    """Raise ValueError where the models cut a text into different tokens: one more at its start, say."""
    texts = [prompt.text for prompt in prompts] + ([] if held_out is None else list(held_out["text"]))
    sides = (lm.token_ids(texts) for lm in (before, after))
    for text, ids_before, ids_after in zip(texts, *sides, strict=True):
        if ids_before != ids_after:
            raise ValueError(
                f"the models' tokenizers cut {text!r} into different tokens, {ids_before[:5]} and {ids_after[:5]}, so "
                "that their results cannot be compared: load both models with one tokenizer="
            )


def _continuations(
    lm: HookedLM, prompts: Sequence[Prompt], settings: Mapping[str, int], *, file: Path | None, progress: bool
) -> Continuations:
    """Generate continuations, or read those that an earlier comparison kept in `file`.

    Args:
        settings: `n_samples`, `max_new_tokens` and `seed`.
    """
    if file is None or not file.exists():
        continuations = generate(
            lm,
            prompts,
            n_samples=settings["n_samples"],
            max_new_tokens=settings["max_new_tokens"],
            seed=settings["seed"],
            progress=progress,
        )
        if file is not None:
            continuations.save(file)
        return continuations
    try:
        continuations = Continuations.load(file)
    except ValueError as error:
        raise ValueError(f"{error}; or delete it, and the texts are generated again") from error
    stored: Any = {"max_new_tokens": None, "seed": None, "model": {}} | continuations.settings
    stored["n_samples"] = continuations.n_samples
    same_settings = all(stored[name] == value for name, value in settings.items())
    same_prompts = list(continuations.prompts) == list(prompts)
    if not (same_settings and same_prompts and Identity.of(stored["model"]).is_same(lm.identity())):
        raise ValueError(
            f"{file} was written by another model, or for other prompts or settings: give another output_dir"
        )
    return continuations


def _changes(
    before: Mapping[str, Measurement], after: Mapping[str, Measurement], name: str, aligned: metrics.Meanings | None
) -> tuple[dict[str, tuple[float, float]], Change]:
    """Return the interval of one measure's change in each language, and the change in the mean over languages.

    Args:
        aligned: the meaning of each language's prompts; None where no prompts are translations of each other.
    """
    values_before: dict[str, np.ndarray] = {}
    values_after: dict[str, np.ndarray] = {}
    meanings_by_language: dict[str, list[Hashable]] = {}
    # A perplexity is shown as the median over all continuations, everything else as the mean over prompts.
    medians = name not in PER_PROMPT
    for code in before:
        values = np.stack(
            [side[code].perplexities if medians else side[code].per_prompt[name] for side in (before, after)]
        )
        has_value = (~np.isnan(values)).reshape(*values.shape[:2], -1).any(2).all(0)
        if has_value.any():
            values_before[code], values_after[code] = values[:, has_value]
            if aligned is not None:
                meanings_by_language[code] = list(itertools.compress(aligned[code], has_value))
    unknown = dict.fromkeys(before, (math.nan, math.nan))
    if not values_before:
        return unknown, Change(*[math.nan] * 4)
    translated = None if aligned is None else meanings_by_language
    if medians:
        by_language, overall = metrics.paired_median_changes(values_before, values_after, meanings=translated)
    else:
        bounds = COMPARED[name].least, COMPARED[name].most
        by_language, overall = metrics.paired_changes(values_before, values_after, bounds=bounds, meanings=translated)
    return unknown | {code: (change.low, change.high) for code, change in by_language.items()}, overall


def compare_in_turn(before, after, prompts, **k):
    return compare(before(), after(), prompts, **k)
