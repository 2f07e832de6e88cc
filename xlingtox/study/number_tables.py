"""A study's numbers as HTML tables, for readers who cannot see the figures or want the exact values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose import Dose
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.evaluation.dosing import AXES, UNITS
from xlingtox.evaluation.groups import OTHERS, GroupChange
from xlingtox.evaluation.weight_drift import LayerDrift
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import both, language_name, number, percent, scrolling
from xlingtox.measures import COMPARED
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.paper import comparing, numbers
from xlingtox.study.results import StudyResults

_MOST_STEPS = 40
"""The most rows in the table of training: steps are evenly spaced, and the last step is added."""

_MEASURES_BY_TABLE = {
    "Toxicity": ("emt", "toxicity_probability", "average_toxicity", "sound_toxicity"),
    "Is it still text?": ("degenerate", "perplexity", "continuation_perplexity", "distinct_1"),
    "Diversity and the sources": ("distinct_2", "distinct_3", "mean_activation"),
}
"""The tables, each with as many measures as fit side by side on a page."""


def by_language(results: StudyResults) -> str:
    """Return tables with a row for each language: of measures before and after tuning, of toxicity, of retrieval."""
    tables = [] if results.comparison is None else _of_comparison(results, results.comparison)
    if results.comparison is None and results.unedited_toxicity:
        tables.append(_of_lowest_dose(results))
    return "".join(tables) + _of_retrieval(results)


def _of_comparison(results: StudyResults, compared: Comparison) -> list[str]:
    tables = []
    for title, measures in _MEASURES_BY_TABLE.items():
        rows = [
            [language_name(code), *(changed(compared, code, measure) for measure in measures)]
            for code in results.languages
        ]
        columns = ["Language", *(COMPARED[measure].words.capitalize() for measure in measures)]
        caption = f"{title}: before → after tuning, and below it the 95 % interval of the change"
        tables.append(scrolling(caption, columns, rows, results.languages))
    return tables


def _of_lowest_dose(results: StudyResults) -> str:
    """Return the toxicity of each language without an edit, and at the dose that leaves the least of it."""
    unedited, doses = results.unedited_toxicity, results.toxic_doses
    lowest = min(doses.doses, key=lambda dose: (dose.average_toxicity, abs(dose.offset)))
    rows = [
        [language_name(code), *(number(side.get(code, math.nan)) for side in (unedited, lowest.toxicity_by_language))]
        for code in results.languages
    ]
    columns = ["Language", "Without an edit", f"At a dose of {number(lowest.offset, 2)} {UNITS[doses.unit]}"]
    return scrolling("Average toxicity after toxic prompts", columns, rows, results.languages)


def _of_retrieval(results: StudyResults) -> str:
    codes = [code for code in results.languages if code in results.retrieval]
    rows = []
    for code in codes:
        ends = results.retrieval_intervals.get(code)
        span = f"{percent(ends[0])} to {percent(ends[1])}" if ends else "–"
        count = results.n_parallel.get(code)
        rows.append([language_name(code), percent(results.retrieval[code]), span, str(count) if count else "–"])
    caption = f"Retrieval from {language_name(results.retrieved_from)} and to it"
    columns = ["Language", "Accuracy", "95 % interval", "Sentences"]
    return scrolling(caption, columns, rows, codes) if rows else ""


def changed(compared: Comparison, code: str, measure: str) -> str:
    """Return a measure before and after tuning, and below it the interval of its change where there is one."""
    sides = both(*(getattr(side[code], measure) for side in (compared.before, compared.after)))
    interval = compared.changes.get(code, {}).get(measure)
    if interval is None or not all(map(math.isfinite, interval)):
        return sides
    low, high = (number(end, signed=True) for end in COMPARED[measure].possible_change(*interval))
    return f"{sides}<br><small>{low} to {high}</small>"


def of_doses(caption: str, response: DoseResponse) -> str:
    """Return a table with a row for each dose: its effect on the sources, and on random neurons."""
    control_at = {dose.offset: dose for dose in response.control}
    rows = []
    for dose in sorted(response.doses, key=lambda dose: dose.offset):
        row = [number(dose.offset, 3), *_of_dose(dose)]
        if random_dose := control_at.get(dose.offset):
            row += _of_dose(random_dose)
        elif control_at:
            row += ["–"] * 3
        rows.append(row)
    columns = ["Toxicity (95 % interval)", "Perplexity", "Degenerate"]
    random_columns = [f"{column}, random neurons" for column in columns] if control_at else []
    return scrolling(caption, [AXES[response.unit], *columns, *random_columns], rows)


def _of_dose(dose: Dose) -> list[str]:
    toxicity = f"{number(dose.average_toxicity)}<br><small>{number(dose.low)} to {number(dose.high)}</small>"
    return [toxicity, number(dose.perplexity, 2), percent(dose.degenerate, digits=1)]


def of_sources(candidates: NeuronSet, sources: NeuronSet) -> str:
    """Return a table with a row for each layer: its candidates, its sources, and the range of cosines to the probe."""
    active = set(sources)
    rows = []
    for layer, (indices, places) in sorted(candidates.by_layer().items()):
        cosines = [candidates.scores[place] for place in places]
        n_active = sum((layer, index) in active for index in indices)
        span = f"{number(min(cosines))} to {number(max(cosines))}"
        rows.append([str(layer), str(len(indices)), str(n_active), span])
    columns = ["Layer", "Candidates", "Active: sources", "Cosines to the probe"]
    return scrolling("Sources by layer", columns, rows)


def of_neurons(compared: Comparison, codes: Sequence[str]) -> str:
    """Return a table with a row for each language: how many sources are active, and how many became less active."""
    rows, shown = [], [code for code in codes if code in compared.neuron_activations]
    for code in shown:
        before, after = compared.neuron_activations[code]
        n_fell = sum(now < earlier for earlier, now in zip(before, after, strict=True))
        n_active = (sum(value > 0 for value in side) for side in (before, after))
        rows.append([language_name(code), *map(str, n_active), str(n_fell)])
    columns = ["Language", "Active before", "Active after", "Less active than before"]
    return scrolling(f"Of the {len(compared.neurons)} sources, by their mean activation", columns, rows, shown)


def models_beside(results: StudyResults) -> tuple[str, ...]:
    """Return which of the paper's models stand beside this study: its own, or all for the miniature of the demo."""
    if results.comparison is None or results.model is None:
        return ()
    if same := numbers.model_named(results.model.name):
        return (same,)
    return numbers.MODELS if results.mixing or results.model.name == "mini" else ()


def beside_paper(results: StudyResults) -> str:
    """Return a table of this study's means over languages, before and after tuning, above those of the paper's Table 2.

    The paper's rows are those of `models_beside`; there may be none.
    """
    name = "This study" if results.model is None else f"This study: {escaped(results.model.name)}"
    ours = {row.measure: row.mean for row in comparing.beside(results).rows if row.source == "Table 2"}
    published = {model: numbers.TABLE_2[model] for model in models_beside(results)}
    rows = [
        [model, *(_of_paper(of_model.get(measure), numbers.decimals(measure)) for measure in numbers.MEASURES)]
        for model, of_model in {name: ours, **published}.items()
    ]
    tuned = language_name(results.source_language)
    caption = f"Mean over languages, before → after {tuned} tuning"
    caption += ": this study, and the paper’s Table 2" if published else ""
    return scrolling(caption, ["Model", *numbers.MEASURES.values()], rows)


def _of_paper(sides: Sequence[float] | None, digits: int) -> str:
    return "not defined" if sides is None else both(sides[0], sides[1], digits)


def of_groups(changes: Sequence[GroupChange], *, source_language: str) -> str:
    """Return a table with a row for each group of prompts or words: its change in the tuned language and the others."""
    kinds = {"prompts": "Prompts: average toxicity", "words": "Words: share of continuations with one"}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for change in changes:
        low, high = (number(end, signed=True) for end in (change.low, change.high))
        text = f"{both(change.before, change.after)}<br><small>{low} to {high}</small>"
        cells.setdefault((kinds[change.kind], change.group), {})[change.language] = text
    shown = {source_language: language_name(source_language), OTHERS: "Mean of the other languages"}
    rows = [
        [kind, escaped(group), *(by_language.get(language, "–") for language in shown)]
        for (kind, group), by_language in cells.items()
    ]
    caption = "Groups that tuning met, and groups that it did not: before → after, and the 95 % interval of the change"
    return scrolling(caption, ["What", "Group", *shown.values()], rows) if rows else ""


def of_training(log: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the training curves, with a row for each step."""
    names = {
        "loss": "Loss",
        "eval_loss": "Validation loss",
        "rewards/accuracies": "Preferred rightly",
        "rewards/chosen": "Reward of chosen",
        "rewards/rejected": "Reward of rejected",
    }
    steps: dict[int, dict[str, Any]] = {}
    for row in log:
        if "step" in row:
            steps.setdefault(row["step"], {}).update(row)
    stride = math.ceil(len(steps) / _MOST_STEPS) or 1
    shown = [step for i, step in enumerate(sorted(steps)) if i % stride == 0 or step == max(steps)]
    keys = [key for key in names if any(key in steps[step] for step in shown)]
    rows = [[str(step), *(number(steps[step][key]) if key in steps[step] else "–" for key in keys)] for step in shown]
    return scrolling("Training, step by step", ["Step", *(names[key] for key in keys)], rows)


def of_drift(drift: Sequence[LayerDrift]) -> str:
    """Return a table with a row for each layer and kind of vector: how far its vectors moved."""
    rows = []
    for layer_drift in sorted(drift, key=lambda row: (row.layer, row.kind)):
        cosine = f"{number(layer_drift.cosine, 5)}<br><small>{_span(layer_drift.cosine_range, 5)}</small>"
        ends = (percent(end, signed=True, digits=2) for end in layer_drift.norm_change_range)
        norm = f"{percent(layer_drift.norm_change, signed=True, digits=2)}<br><small>{' to '.join(ends)}</small>"
        rows.append([str(layer_drift.layer), layer_drift.kind, cosine, norm])
    columns = ["Layer", "Vectors", "Cosine with before", "Change of norm"]
    return scrolling("Mean over a layer’s vectors, and below it the least and the greatest", columns, rows)


def _span(ends: Sequence[float], digits: int) -> str:
    return " to ".join(number(end, digits) for end in ends)
