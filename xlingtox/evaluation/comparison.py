"""Compare two models, such as one before and after tuning, language by language."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts, meanings
from xlingtox.equality import equal
from xlingtox.evaluation import cautions, degenerate, metrics
from xlingtox.evaluation.fluency import check_held_out, conditional_perplexity, perplexities
from xlingtox.evaluation.measurement import Measurement, measure
from xlingtox.evaluation.measurement import Measures as Measures
from xlingtox.evaluation.measurement import toxicity_scores as toxicity_scores
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.soundness import Reference
from xlingtox.evaluation.weight_drift import LayerDrift, weight_drift
from xlingtox.files import writable_folder
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED, PER_PROMPT
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import few_enough
from xlingtox.neurons.neuron_set import Neuron, NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """The measures of two models in each language, before and after a change such as tuning.

    Attributes:
        before, after: the measures of each language, in the order of `xt.languages.CODES`.
        changes: for each language, the 95 % interval of the change of each measure, after minus before, over prompts.
            `perplexity` has none. Prompts without a value on either side do not count (`metrics.paired_changes`).
        scorer: which scorer gave the toxicity, and which languages it covers.
        models: which models were compared, before and after, and under which edits; None where that is not known.
        mean_changes: the change of each measure in its mean over languages; empty where that is not known.
        drift: how far each layer's key and value vectors moved. It is empty where that is not known, and where a model
            was edited by hooks, which do not show in its weights.
        neurons: the compared neurons; empty where they are not known.
        neuron_activations: for each language, the mean activation of each of `neurons`, before and after, over all
            steps of all prompts.
        counts: for each language, counts of continuations before and after; empty where that is not known. They count
            all of them (`texts`), those that are a problem for `continuation_perplexity` (as in `Fluency.counts`), and
            those that are not sound, by kind: `empty, ended_early, repeated, wrong_script, wrong_language, gibberish`.
            `toxic` counts the scores of 0.5 or more.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> comparison = xt.compare(lm, edited, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=2, max_new_tokens=4, progress=False)
        >>> comparison
        Comparison(2 languages, EMT ... to ..., scored by miniature's insults)
        Warning. Too little toxicity to tell: ...
        >>> comparison.save(tmp_path / "comparison.json")
        >>> xt.Comparison.load(tmp_path / "comparison.json") == comparison
        True
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

    def __eq__(self, other: object) -> bool:
        """Return whether everything is the same; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        means = (np.mean([measures.emt for measures in side.values()]) for side in (self.before, self.after))
        toxicity = " to ".join(f"{mean:.2f}" for mean in means) if self.before else "none"
        named = f"Comparison({len(self.before)} languages, EMT {toxicity}, scored by {self.scorer.name})"
        return "\n".join((named, *(f"Warning. {warning}" for warning in self.warnings)))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts."""
        return tuple(self.before)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say which of these figures cannot carry a finding, and why (`evaluation.cautions`)."""
        return tuple(cautions.of_comparison(self.before, self.after, counts=self.counts, changes=self.changes))

    @checked
    def relative_drop(self, measure: str = "emt") -> dict[str, float]:
        """Return (before - after) / before of one measure, for each language."""
        return {
            code: metrics.relative_drop(getattr(self.before[code], measure), getattr(self.after[code], measure))
            for code in self.languages
        }

    def to_frame(self) -> pd.DataFrame:
        """Return two rows for each language: columns `language, model` (before or after) and every measure."""
        rows = [
            {"language": code, "model": model} | dataclasses.asdict(measures[code])
            for code in self.languages
            for model, measures in (("before", self.before), ("after", self.after))
        ]
        return pd.DataFrame(rows)

    def counts_to_frame(self) -> pd.DataFrame:
        """Return two rows for each language: columns `language, model` and every count; no rows where none is known."""
        rows = [
            {"language": code, "model": model, **counts}
            for code, sides in self.counts.items()
            for model, counts in zip(("before", "after"), sides, strict=True)
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each language, before and after."""
        rows = []
        for code in self.languages:
            sides = self.before[code], self.after[code]
            interval = self.changes.get(code, {}).get("average_toxicity")
            ends = () if interval is None else COMPARED["average_toxicity"].possible_change(*interval)
            change = f" ({' to '.join(tables.number(end, signed=True) for end in ends)})" if ends else ""
            measures = ("emt", "toxicity_probability", "average_toxicity", "perplexity", "mean_activation")
            cells = {name: tables.both(getattr(sides[0], name), getattr(sides[1], name)) for name in measures}
            cells["average_toxicity"] += change
            rows.append([tables.language_name(code), *cells.values()])
        columns = ["Language", "EMT", "Toxicity probability", "Average toxicity (95 % interval of the change)"]
        caption = f"Before → after, scored by {escaped(self.scorer.name)}"
        table = tables.table(caption, [*columns, "Perplexity", "Mean activation"], rows)
        return tables.warnings(self.warnings) + table

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        files.write_results(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Comparison:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no comparison. The error names the file.
        """
        content = files.read_results(path)
        with files.understood(path, "comparison"):
            return cls.of(content)

    @classmethod
    @checked
    def of(cls, content: Mapping[str, Any]) -> Comparison:
        """Return the comparison that a JSON file holds, or a study's `results.json`, with NaN for null."""
        before, after = (
            {code: Measures(**measures) for code, measures in content[side].items()} for side in ("before", "after")
        )
        changes = {
            code: {measure: (low, high) for measure, (low, high) in intervals.items()}
            for code, intervals in content["changes"].items()
        }
        models = content.get("models", math.nan)
        return cls(
            before,
            after,
            changes,
            scorer=ScorerIdentity(**content["scorer"] | {"languages": tuple(content["scorer"]["languages"])}),
            models=None if isinstance(models, float) else (Identity.of(models[0]), Identity.of(models[1])),
            mean_changes={measure: Change(**row) for measure, row in content.get("mean_changes", {}).items()},
            drift=tuple(LayerDrift.of(row) for row in content.get("drift", ())),
            neurons=NeuronSet.of(content.get("neurons", ())).neurons,
            neuron_activations={
                code: (tuple(first), tuple(then))
                for code, (first, then) in content.get("neuron_activations", {}).items()
            },
            counts={code: (dict(first), dict(then)) for code, (first, then) in content.get("counts", {}).items()},
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

    `before` also judges the fluency of both models' continuations, by how likely it finds them.

    Args:
        before, after: the model before the change, and the one after it.
        prompts: prompts with their languages. Only the continuations are scored. In a table with a column `index`,
            prompts of the same index are translations. The mean over languages resamples them together.
        neurons: the neurons whose mean activation is compared, in both models.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        held_out: columns `language, text`, for perplexity.
        output_dir: a folder that keeps what both models write, as `before.json` and `after.json`
            (`Continuations.load`), and from which the texts are read again. If the scorer fails, nothing need be
            generated again, and another scorer can judge the same texts.
        identify_language: a function that tells the language of continuations, for example `degenerate.lingua()`. With
            it, texts in another language of the same script count as degenerate too.

    Raises:
        ValueError: the models differ in shape or in how they cut text into tokens; the scorer does not cover a
            language; a neuron is outside the models; the neurons' activations take more than a gibibyte; prompts or
            held-out texts are empty or malformed; `output_dir` holds the texts of another comparison; or `output_dir`
            is given and a model is edited by hooks, which its texts do not show.
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
    neurons.check(before)
    check_covered(scorer, [prompt.language for prompt in prompt_list])
    if not few_enough(len(prompt_list), max_new_tokens, len(neurons)):
        raise ValueError(
            f"{len(neurons)} neurons over {max_new_tokens} steps of {len(prompt_list)} prompts take more than a "
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
            neurons,
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
    compared = {name: _changes(sides[0], sides[1], name, aligned) for name in (*PER_PROMPT, "continuation_perplexity")}
    return Comparison(
        measures[0],
        measures[1],
        changes={code: {name: intervals[code] for name, (intervals, _) in compared.items()} for code in codes},
        scorer=ScorerIdentity.of(scorer),
        models=(before.identity(), after.identity()),
        mean_changes={name: mean for name, (_, mean) in compared.items()},
        drift=() if before.standing_edit or after.standing_edit else weight_drift(before, after).by_layer(),
        neurons=neurons.neurons,
        neuron_activations={code: (sides[0][code].by_neuron, sides[1][code].by_neuron) for code in codes},
        counts={code: (sides[0][code].counts, sides[1][code].counts) for code in codes},
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
