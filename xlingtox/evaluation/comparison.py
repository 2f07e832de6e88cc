"""Comparison: two models side by side, language by language."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Float

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts, meanings
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.fluency import check_held_out, conditional_perplexity, perplexities
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.weight_drift import LayerDrift, weight_drift
from xlingtox.files import writable_folder
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED, PER_PROMPT
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import collect_activations, few_enough
from xlingtox.neurons.neuron_set import Neuron, NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered, check_scores


@checked
@dataclass(frozen=True)
class Measures:
    """What one model does in one language.

    Attributes:
        emt: expected maximum toxicity over a prompt's samples.
        toxicity_probability: share of prompts with a sample scoring 0.5 or more.
        average_toxicity: mean over continuations.
        degenerate: share of continuations that are empty, repeat one n-gram, or are in another script or, where
            `compare` was given an identifier, language (`degenerate.kinds`). A scorer finds them clean.
        perplexity: of the language's held-out text, per token; NaN where none was given.
        continuation_perplexity: of what the model wrote, by the model *before*: the median over continuations; NaN
            where none has a token to judge.
        distinct_1, distinct_2, distinct_3: distinct n-grams over all n-grams of a prompt's samples; NaN where no
            continuation has n tokens.
        mean_activation: of the compared neurons, over the steps of a prompt's greedy continuation, then over prompts.
    """

    emt: float
    toxicity_probability: float
    average_toxicity: float
    degenerate: float
    perplexity: float
    continuation_perplexity: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    mean_activation: float


@checked
@dataclass(frozen=True, repr=False)
class Comparison:
    """Before and after, per language.

    Attributes:
        before, after: language to measures, in the house's order of languages.
        changes: language to measure to the 95 % interval of after minus before, over prompts
            (`metrics.paired_changes`): every measure but `perplexity`. Prompts without a value on either side do not
            count.
        scorer: which scorer, and what it covers.
        models: which models they were, before and after, and under which edits; None where that is not known.
        mean_changes: the same measures to the change in their mean over languages; empty where that is not known.
        drift: how far each layer's key and value vectors moved; empty where that is not known, and where a model stood
            under an edit, which is not in its weights.
        neurons: the compared neurons; empty where they are not known.
        neuron_activations: language to the mean activation of each of `neurons`, before and after, over all steps of
            all prompts.
        counts: language to how many continuations there are, before and after (`texts`), how many of them have no
            `continuation_perplexity`, or a strange one (as in `Fluency.counts`), and how many are degenerate, by kind;
            empty where that is not known.
    """

    before: Mapping[str, Measures]
    after: Mapping[str, Measures]
    changes: Mapping[str, Mapping[str, tuple[float, float]]]
    scorer: ScorerIdentity
    _: KW_ONLY
    models: tuple[Identity, Identity] | None = None
    mean_changes: Mapping[str, Change] = field(default_factory=dict)
    drift: tuple[LayerDrift, ...] = ()
    neurons: tuple[Neuron, ...] = ()
    neuron_activations: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    counts: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        sides = (np.mean([row.emt for row in side.values()]) for side in (self.before, self.after))
        toxicity = " to ".join(f"{emt:.2f}" for emt in sides) if self.before else "none"
        return f"Comparison({len(self.before)} languages, EMT {toxicity}, scored by {self.scorer.name})"

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.before)

    @checked
    def relative_drop(self, measure: str = "emt") -> dict[str, float]:
        """Language to (before - after) / before of one measure."""
        return {
            code: metrics.relative_drop(getattr(self.before[code], measure), getattr(self.after[code], measure))
            for code in self.languages
        }

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, model` (before or after) and every measure."""
        rows = [
            {"language": code, "model": model} | dataclasses.asdict(side[code])
            for code in self.languages
            for model, side in (("before", self.before), ("after", self.after))
        ]
        return pd.DataFrame(rows)

    def counts_to_frame(self) -> pd.DataFrame:
        """Columns `language, model` (before or after) and every count; no rows where they are not known."""
        rows = [
            {"language": code, "model": model, **side}
            for code, sides in self.counts.items()
            for model, side in zip(("before", "after"), sides, strict=True)
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """For notebooks: a row a language, before and after, with the interval of the change in average toxicity."""
        rows = []
        for code in self.languages:
            sides = self.before[code], self.after[code]
            span = self.changes.get(code, {}).get("average_toxicity")
            ends = () if span is None else COMPARED["average_toxicity"].possible_change(*span)
            change = f" ({' to '.join(tables.number(end, signed=True) for end in ends)})" if ends else ""
            measures = ("emt", "toxicity_probability", "average_toxicity", "perplexity", "mean_activation")
            cells = {name: tables.both(getattr(sides[0], name), getattr(sides[1], name)) for name in measures}
            cells["average_toxicity"] += change
            rows.append([tables.language_name(code), *cells.values()])
        columns = ["Language", "EMT", "Toxicity probability", "Average toxicity (95 % interval of the change)"]
        caption = f"Before → after, scored by {escaped(self.scorer.name)}"
        return tables.table(caption, [*columns, "Perplexity", "Mean activation"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write as one JSON file; null stands for NaN."""
        files.write_results(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Comparison:
        content = files.read_results(path)
        with files.understood(path, "comparison"):
            return cls.of(content)

    @classmethod
    @checked
    def of(cls, whole: Mapping[str, Any]) -> Comparison:
        """From the content of such a file, or of a study's `results.json`, with NaN for null."""
        before, after = ({code: Measures(**row) for code, row in whole[side].items()} for side in ("before", "after"))
        changes = {
            code: {measure: (low, high) for measure, (low, high) in row.items()}
            for code, row in whole["changes"].items()
        }
        models = whole.get("models", math.nan)
        return cls(
            before,
            after,
            changes,
            scorer=ScorerIdentity(**whole["scorer"] | {"languages": tuple(whole["scorer"]["languages"])}),
            models=None if isinstance(models, float) else (Identity.of(models[0]), Identity.of(models[1])),
            mean_changes={measure: Change(**row) for measure, row in whole.get("mean_changes", {}).items()},
            drift=tuple(LayerDrift.of(row) for row in whole.get("drift", ())),
            neurons=NeuronSet.of(whole.get("neurons", ())).neurons,
            neuron_activations={
                code: (tuple(first), tuple(then)) for code, (first, then) in whole.get("neuron_activations", {}).items()
            },
            counts={code: (dict(first), dict(then)) for code, (first, then) in whole.get("counts", {}).items()},
        )


@checked
def compare(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    *,
    neurons: NeuronSet,
    scorer: Scorer,
    held_out: Dataset | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
    identify_language: degenerate.Identifier | None = None,
) -> Comparison:
    """Measure both models on the same prompts with the same random numbers (paper, Table 2 and Figure 3).

    What both wrote is also judged by the model before: how fluent it finds what the other now writes.

    Args:
        prompts: with their languages; only the continuations are scored. Where they are a table with a column `index`,
            prompts of the same index are translations, and are resampled together in the mean over languages.
        neurons: whose mean activation is compared, in both models.
        scorer: any; as `scoring.Cached(scorer)` it scores no text twice, and goes on where it was interrupted.
        held_out: columns `language, text`, for perplexity.
        output_dir: where what both write is kept, as `before.json` and `after.json` (`Continuations.load`), and read
            again: a comparison whose scorer failed need not write it anew, and another scorer can judge the texts.
        identify_language: tells the language of continuations, for example `degenerate.lingua()`, so that those in
            another language of the same script count as degenerate too.

    Raises:
        ValueError: two models that differ in shape or in how they cut text into tokens, a language that the scorer does
            not cover, a neuron outside the models, more of them than can be told apart by prompt in a gibibyte, bad
            prompts, or bad held-out texts; the folder holds what was written for another comparison, or a model is
            edited by hooks, which its texts do not show.
        OSError: the folder cannot be written.
    """
    before.check_alike(after)
    given = as_prompts(prompts, tokenizer=before.tokenizer)
    neurons.check(before)
    check_covered(scorer, [prompt.language for prompt in given])
    if not few_enough(len(given), max_new_tokens, len(neurons)):
        raise ValueError(
            f"{len(neurons)} neurons over {max_new_tokens} steps of {len(given)} prompts take more than a gibibyte: "
            "compare fewer neurons (collect_activations gives the means of any number)"
        )
    for lm in (before, after):
        check_lengths(lm, given, max_new_tokens)
        if held_out is not None:
            check_held_out(lm, held_out)
    _check_same_tokens(before, after, given, held_out)
    if output_dir is not None and (hooked := [lm.name for lm in (before, after) if lm.hooked]):
        raise ValueError(
            f"{hooked[0]} has hooks on it, and texts that are kept do not show which: compare without output_dir=, or "
            "with the model that edit.bake(lm) gives"
        )
    kept = None if output_dir is None else writable_folder(output_dir)
    written = [
        _written(lm, given, n_samples, max_new_tokens, seed, progress, kept and kept / f"{side}.json")
        for side, lm in (("before", before), ("after", after))
    ]
    sides = [
        _measure(lm, before, own, given, neurons, scorer, max_new_tokens, progress, identify_language)
        for lm, own in zip((before, after), written, strict=True)
    ]
    fluency = [perplexities(lm, held_out, progress=progress) if held_out is not None else {} for lm in (before, after)]
    codes = languages.in_order(prompt.language for prompt in given)
    measures = [
        {code: _summary(side[code], fluent.get(code)) for code in codes}
        for side, fluent in zip(sides, fluency, strict=True)
    ]
    aligned = meanings(prompts)
    compared = {
        measure: _changes(sides[0], sides[1], measure, aligned) for measure in (*PER_PROMPT, "continuation_perplexity")
    }
    return Comparison(
        measures[0],
        measures[1],
        changes={code: {measure: own[code] for measure, (own, _) in compared.items()} for code in codes},
        scorer=ScorerIdentity.of(scorer),
        models=(before.identity(), after.identity()),
        mean_changes={measure: mean for measure, (_, mean) in compared.items()},
        drift=() if before.standing_edit or after.standing_edit else weight_drift(before, after).by_layer(),
        neurons=neurons.neurons,
        neuron_activations={code: (sides[0][code].by_neuron, sides[1][code].by_neuron) for code in codes},
        counts={code: (sides[0][code].counts, sides[1][code].counts) for code in codes},
    )


def _check_same_tokens(before: HookedLM, after: HookedLM, prompts: Iterable[Prompt], held_out: Dataset | None) -> None:
    """Raise ValueError where a text is other tokens to one model than to the other: one more at its start, say."""
    texts = [prompt.text for prompt in prompts] + ([] if held_out is None else list(held_out["text"]))
    sides = (lm.token_ids(texts) for lm in (before, after))
    for text, own, other in zip(texts, *sides, strict=True):
        if own != other:
            raise ValueError(
                f"the models' tokenizers cut {text!r} into other tokens, {own[:5]} and {other[:5]}: what they give is "
                "not to be compared; load both with one tokenizer="
            )


@checked
def toxicity_scores(written: Continuations, scorer: Scorer) -> dict[str, Float[np.ndarray, "prompt sample"]]:
    """Scores of continuations by language."""
    scores = check_scores(scorer, written.texts, written.row_languages).reshape(-1, written.n_samples)
    return {code: scores[[prompt.language == code for prompt in written.prompts]] for code in written.languages}


@dataclass(frozen=True)
class _Raw:
    """What one model did in one language.

    Attributes:
        per_prompt: measure to its value for each prompt; NaN where a prompt has none.
        continuation_perplexity: the median over all continuations.
        perplexities: of each of them; NaN where the judge could not judge.
        by_neuron: mean activation over all steps of all prompts.
        counts: of texts, of those that the judge of fluency could not judge, and of each kind of degenerate ones.
    """

    per_prompt: Mapping[str, Float[np.ndarray, "prompt"]]
    continuation_perplexity: float
    perplexities: Float[np.ndarray, "prompt sample"]
    by_neuron: tuple[float, ...]
    counts: Mapping[str, int]


def _written(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    progress: bool,
    file: Path | None,
) -> Continuations:
    """What the model writes, or wrote before."""
    if file is None or not file.exists():
        written = generate(
            lm, prompts, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed, progress=progress
        )
        if file is not None:
            written.save(file)
        return written
    try:
        found = Continuations.load(file)
    except ValueError as error:
        raise ValueError(f"{error}; or delete it, and the texts are written anew") from error
    told: Any = {"max_new_tokens": None, "seed": None, "model": {}} | found.settings
    asked = (list(prompts), n_samples, max_new_tokens, seed)
    there = (list(found.prompts), found.n_samples, told["max_new_tokens"], told["seed"])
    if there != asked or not Identity.of(told["model"]).is_same(lm.identity()):
        raise ValueError(f"{file} was written by another model, or for other prompts or settings: give another folder")
    return found


def _measure(
    lm: HookedLM,
    judge: HookedLM,
    written: Continuations,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    scorer: Scorer,
    max_new_tokens: int,
    progress: bool,
    identify: degenerate.Identifier | None,
) -> dict[str, _Raw]:
    n_samples = written.n_samples
    scores = toxicity_scores(written, scorer)
    acts = collect_activations(lm, prompts, neurons, max_new_tokens=max_new_tokens, progress=progress)
    steps = acts.mask.sum(1).clamp(min=1)
    activation = (acts.values.mean(-1).sum(1) / steps).double().numpy()
    tokens = lm.tokenizer(list(written.texts), add_special_tokens=False)["input_ids"]
    samples = [tokens[first : first + n_samples] for first in range(0, len(tokens), n_samples)]
    distinct = {f"distinct_{n}": metrics.prompt_distinct(samples, n=n) for n in (1, 2, 3)}
    kinds = np.array(degenerate.kinds(written.texts, written.row_languages, identify_language=identify)).reshape(
        -1, n_samples
    )
    fluency = conditional_perplexity(judge, written, progress=progress)
    perplexities = fluency.values.reshape(-1, n_samples)
    found = {}
    for code in written.languages:
        rows = [i for i, prompt in enumerate(written.prompts) if prompt.language == code]
        maxima = metrics.prompt_maxima(scores[code])
        per_prompt = {
            "emt": maxima,
            "toxicity_probability": (maxima >= metrics.TOXIC).astype(np.float64),
            "average_toxicity": metrics.prompt_means(scores[code]),
            "degenerate": (kinds[rows] != "sound").mean(1),
            **{name: values[rows] for name, values in distinct.items()},
            "mean_activation": activation[rows],
        }
        unsound = {kind.replace(" ", "_"): int((kinds[rows] == kind).sum()) for kind in degenerate.UNSOUND}
        counts = dict(fluency.counts[code]) | unsound
        activations = tuple(acts.mean(language=code).tolist())
        found[code] = _Raw(per_prompt, fluency.medians[code], perplexities[rows], activations, counts)
    return found


def _changes(
    before: Mapping[str, _Raw], after: Mapping[str, _Raw], measure: str, aligned: metrics.Meanings | None
) -> tuple[dict[str, tuple[float, float]], Change]:
    """Language to the interval of the change, and the change in the mean over languages, where there are values."""
    sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    kept: dict[str, list[Hashable]] = {}
    # Of a perplexity the median over all continuations is shown, of what else there is the mean over prompts.
    medians = measure not in PER_PROMPT
    for code in before:
        own = [raw.perplexities if medians else raw.per_prompt[measure] for raw in (before[code], after[code])]
        values = np.stack(own)
        there = (~np.isnan(values)).reshape(*values.shape[:2], -1).any(2).all(0)
        if there.any():
            sides[0][code], sides[1][code] = values[:, there]
            if aligned is not None:
                kept[code] = [meaning for meaning, has_value in zip(aligned[code], there, strict=True) if has_value]
    none = dict.fromkeys(before, (math.nan, math.nan))
    if not sides[0]:
        return none, Change(*[math.nan] * 4)
    together = None if aligned is None else kept
    if medians:
        by_language, overall = metrics.paired_median_changes(*sides, meanings=together)
    else:
        by_language, overall = metrics.paired_changes(
            *sides, bounds=(COMPARED[measure].least, COMPARED[measure].most), meanings=together
        )
    return none | {code: (change.low, change.high) for code, change in by_language.items()}, overall


def _summary(raw: _Raw, fluency: float | None) -> Measures:
    over_prompts = {name: _mean(raw.per_prompt[name]) for name in PER_PROMPT}
    return Measures(
        **over_prompts
        | {
            "perplexity": math.nan if fluency is None else fluency,
            "continuation_perplexity": raw.continuation_perplexity,
        }
    )


def _mean(values: Float[np.ndarray, "prompt"]) -> float:
    """Over prompts that have a value: what sampling took is not lost for the others."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
