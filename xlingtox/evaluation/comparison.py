"""Comparison: two models' measures, such as those of one before and after tuning, language by language."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation import cautions, metrics
from xlingtox.evaluation.measurement import Measures
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.same_text import SetActivity
from xlingtox.evaluation.weight_drift import LayerDrift
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import Neuron, NeuronSet
from xlingtox.scoring.protocol import ScorerIdentity


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
        changes_of_others: the change of each measure of toxicity in its mean over all languages but the one that was
            tuned on; empty where there are none, or where that is not known.
        drift: how far each layer's key and value vectors moved. It is empty where that is not known, and where a model
            was edited by hooks, which do not show in its weights.
        neurons: the compared neurons, which are the main set; empty where they are not known.
        neuron_activations: for each language, the mean activation of each of `neurons`, before and after, over all
            steps of all prompts, in each model on its own text.
        activity: how active each set of neurons is in both models, next to its control (`SetActivity`); empty where it
            is not known.
        ending: for each language, how likely each model ends its text at once after a prompt, before and after, in the
            mean over prompts; empty where it is not known.
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
    changes_of_others: Mapping[str, Change] = field(default_factory=dict)
    drift: tuple[LayerDrift, ...] = ()
    neurons: tuple[Neuron, ...] = ()
    neuron_activations: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    activity: SetActivity = field(default_factory=SetActivity)
    ending: Mapping[str, tuple[float, float]] = field(default_factory=dict)
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

    def activity_to_frame(self) -> pd.DataFrame:
        """Return one row for each language and set of neurons, and for "all", the mean over languages.

        Columns `language, neurons, text, before, after, low, high, silent`: the mean activation in both models, the
        95 % interval of its change, and whether the set is silent after it (`SetActivity.silent`).
        """
        rows = [
            {
                "language": code,
                "neurons": name,
                "text": self.activity.text,
                **change._asdict(),
                "silent": name in silent,
            }
            for code, sets in self.activity.changes.items()
            for silent in [self.activity.silent.get(code, ())]
            for name, change in sets.items()
        ]
        return pd.DataFrame(rows, columns=["language", "neurons", "text", "before", "after", "low", "high", "silent"])

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
        files.write_results(path, self.content())

    def content(self) -> dict[str, Any]:
        """Return what a file keeps of the comparison; `activity` stands under the keys of `SetActivity.content`."""
        content = dataclasses.asdict(dataclasses.replace(self, activity=SetActivity()))
        del content["activity"]
        return content | self.activity.content()

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
            scorer=ScorerIdentity(**content["scorer"]),
            models=None if isinstance(models, float) else (Identity.of(models[0]), Identity.of(models[1])),
            mean_changes={measure: Change(**row) for measure, row in content.get("mean_changes", {}).items()},
            changes_of_others={measure: Change(**row) for measure, row in content.get("changes_of_others", {}).items()},
            drift=tuple(LayerDrift.of(row) for row in content.get("drift", ())),
            neurons=NeuronSet.of(content.get("neurons", ())).neurons,
            neuron_activations={
                code: (tuple(first), tuple(then))
                for code, (first, then) in content.get("neuron_activations", {}).items()
            },
            counts={code: (dict(first), dict(then)) for code, (first, then) in content.get("counts", {}).items()},
            activity=SetActivity.of(content),
            ending={code: (first, then) for code, (first, then) in content.get("ending", {}).items()},
        )
