"""A study's numbers as tables: what its figures show, for those who read and not look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import Dose
from xlingtox.evaluation.weight_drift import LayerDrift
from xlingtox.html.tables import both, language_name, number, percent, scrolling
from xlingtox.measures import COMPARED
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study.findings import Study

_MOST_STEPS = 40
"""Rows of a long training; every so many steps have one."""

_TOGETHER = {
    "Toxicity": ("emt", "toxicity_probability", "average_toxicity"),
    "Is it still text?": ("degenerate", "perplexity", "continuation_perplexity", "distinct_1"),
    "Diversity and the sources": ("distinct_2", "distinct_3", "mean_activation"),
}
"""Measures whose columns fit side by side on a page."""


def by_language(study: Study) -> str:
    """Every measure before and after, with the interval of its change, and retrieval."""
    compared, found = study.comparison, study.results["retrieval"]
    shown = []
    for title, measures in _TOGETHER.items():
        last = title == list(_TOGETHER)[-1]
        rows = [
            [language_name(code)]
            + [_changed(compared, code, measure) for measure in measures]
            + ([percent(found[code]) if code in found else "–"] if last else [])
            for code in study.codes
        ]
        columns = ["Language", *(COMPARED[measure].words.capitalize() for measure in measures)]
        caption = f"{title}: before → after tuning, and below it the 95 % interval of the change"
        caption += "; retrieval against English is before it" if last else ""
        shown.append(scrolling(caption, [*columns, *(["Retrieval accuracy"] if last else [])], rows, study.codes))
    return "".join(shown)


def _changed(compared: Comparison, code: str, measure: str) -> str:
    sides = both(*(getattr(side[code], measure) for side in (compared.before, compared.after)))
    span = compared.changes.get(code, {}).get(measure)
    if span is None or not all(map(math.isfinite, span)):
        return sides
    low, high = (number(end, signed=True) for end in COMPARED[measure].possible_change(*span))
    return f"{sides}<br><small>{low} to {high}</small>"


def of_doses(caption: str, intervention: Sequence[Dose], control: Sequence[Dose]) -> str:
    """What each offset does, on the sources and on random neurons."""
    beside = {dose.offset: dose for dose in control}
    rows = []
    for dose in sorted(intervention, key=lambda dose: dose.offset):
        row = [number(dose.offset, 3), *_of_dose(dose)]
        if other := beside.get(dose.offset):
            toxicity, *others = _of_dose(other)
            low, high = number(other.low), number(other.high)
            row += [f"{toxicity}<br><small>{low} to {high}</small>", *others]
        elif beside:
            row += ["–"] * 3
        rows.append(row)
    columns = ["Toxicity", "Perplexity", "Degenerate"]
    random = [f"{column}, random neurons" for column in columns] if beside else []
    return scrolling(caption, ["Offset", *columns, *random], rows)


def _of_dose(dose: Dose) -> list[str]:
    return [number(dose.average_toxicity), number(dose.perplexity, 2), percent(dose.degenerate, digits=1)]


def of_sources(potential: NeuronSet, actual: NeuronSet) -> str:
    """How many sources each layer has, and how nearly they point along the probe."""
    active = set(actual)
    rows = []
    for layer, (indices, _) in sorted(potential.by_layer().items()):
        cosines = [score for (own, _), score in zip(potential, potential.scores, strict=True) if own == layer]
        n_active = sum((layer, index) in active for index in indices)
        span = f"{number(min(cosines))} to {number(max(cosines))}"
        rows.append([str(layer), str(len(indices)), str(n_active), span])
    columns = ["Layer", "Potential sources", "Active: actual sources", "Cosines to the probe"]
    return scrolling("Sources by layer", columns, rows)


def of_neurons(compared: Comparison, codes: Sequence[str]) -> str:
    """In each language, how many of the compared neurons are active before and after, and how many became less so."""
    rows, shown = [], [code for code in codes if code in compared.neuron_activations]
    for code in shown:
        first, then = compared.neuron_activations[code]
        fell = sum(b < a for a, b in zip(first, then, strict=True))
        counts = (sum(value > 0 for value in side) for side in (first, then))
        rows.append([language_name(code), *map(str, counts), str(fell)])
    columns = ["Language", "Active before", "Active after", "Less active than before"]
    return scrolling(f"Of the {len(compared.neurons)} sources, by their mean activation", columns, rows, shown)


def of_training(log: Sequence[Mapping[str, Any]]) -> str:
    """The curves of training, a row a step."""
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
    every = math.ceil(len(steps) / _MOST_STEPS) or 1
    kept = [step for i, step in enumerate(sorted(steps)) if i % every == 0 or step == max(steps)]
    there = [key for key in names if any(key in steps[step] for step in kept)]
    rows = [[str(step), *(number(steps[step][key]) if key in steps[step] else "–" for key in there)] for step in kept]
    return scrolling("Training, step by step", ["Step", *(names[key] for key in there)], rows)


def of_drift(drift: Sequence[LayerDrift]) -> str:
    """Each layer's key and value vectors: mean, and from the least to the greatest."""
    rows = []
    for each in sorted(drift, key=lambda each: (each.layer, each.kind)):
        cosine = f"{number(each.cosine, 5)}<br><small>{_span(each.cosine_range, 5)}</small>"
        norm = f"{percent(each.norm_change, signed=True, digits=2)}<br><small>"
        norm += " to ".join(percent(end, signed=True, digits=2) for end in each.norm_change_range) + "</small>"
        rows.append([str(each.layer), each.kind, cosine, norm])
    columns = ["Layer", "Vectors", "Cosine with before", "Change of norm"]
    return scrolling("Mean over a layer’s vectors, and below it the least and the greatest", columns, rows)


def _span(ends: Sequence[float], digits: int) -> str:
    return " to ".join(number(end, digits) for end in ends)
