"""What a study found, in words and numbers ready for a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from xlingtox import languages
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import Dose
from xlingtox.files import with_nan
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import language_name, number, percent
from xlingtox.measures import COMPARED
from xlingtox.transfer.prediction import Transfer

_REQUIRED = (
    "languages probe n_neurons potential actual intervention control before after changes scorer retrieval transfer"
).split()
_OPTIONAL = (
    "amplification amplification_control changes_of_others cosines given identified model promoted retrieval_intervals "
    "samples seconds training transfer_by_measure versions"
).split()


_BROKEN = 2.0
"""Times the unedited model's perplexity, beyond which an edit's toxicity is that of broken text."""


class Study:
    """The content of `results.json` as the library's own results."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        missing = [key for key in _REQUIRED if key not in given]
        if missing:
            raise ValueError(f"these are no results of a study: missing {', '.join(missing)}")
        self.results = results = {key: {} for key in _OPTIONAL} | with_nan(given)
        self.codes = languages.in_order(results["languages"])
        self.others = [code for code in self.codes if code != "en"]
        self.comparison = Comparison.of(results)
        self.intervention, self.control, self.amplification, self.amplification_control = (
            [Dose(**row) for row in results[key]]
            for key in ("intervention", "control", "amplification", "amplification_control")
        )
        found = results["transfer"]
        own = results["transfer_by_measure"].get(found["measure"], {})
        drop = own.get("drop") or self.comparison.relative_drop(found["measure"])
        both = [code for code in self.others if code in drop and code in results["retrieval"]]
        retrieval = {code: results["retrieval"][code] for code in both}
        self.transfer = Transfer(
            drop={code: drop[code] for code in both},
            retrieval=retrieval,
            retrieval_intervals=_intervals(results["retrieval_intervals"]),
            drop_intervals=_intervals(own.get("drop_intervals", {})),
            **found,
        )

    def means(self, measure: str, codes: Sequence[str]) -> tuple[float, float]:
        """Before and after, over languages."""
        sides = (self.comparison.before, self.comparison.after)
        first, then = (fmean(getattr(side[code], measure) for code in codes) for side in sides)
        return first, then


def _intervals(stored: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return intervals as pairs: in JSON they are lists."""
    return {code: (low, high) for code, (low, high) in stored.items()}


def findings(study: Study) -> list[str]:
    results, before, after = study.results, study.comparison.before, study.comparison.after
    english = ["en"] if "en" in study.codes else []
    said = [
        "<b>Where it lives.</b> A probe on English sentences tells toxic from other text in "
        f"{percent(results['probe']['accuracy'])} of held-out cases (guessing the commoner class: "
        f"{percent(results['probe']['baseline'])}). Of the {len(results['potential'])} neurons whose value vectors "
        f"point its way most, <b>{len(results['actual'])} of the model’s {results['n_neurons']:,}</b> are active on "
        "hostile English prompts: the sources."
    ]
    if english:
        interval = _aside(_interval(study, "average_toxicity", english))
        said.append(f"<b>In English, which was tuned,</b> {_change(study, english)}{interval}.")
    if study.others:
        surely = _surely_fell(study, "average_toxicity", study.others)
        interval = _aside(_interval(study, "average_toxicity", study.others))
        left = sorted((after[code].toxicity_probability, code) for code in study.others)
        ends = [f"{percent(share)} ({language_name(code)})" for share, code in (left[0], left[-1])]
        said.append(
            f"<b>In the other {len(study.others)} languages, which were not,</b> on average, "
            f"{_change(study, study.others)}{interval}; in {surely} of them the 95 % interval of the change "
            "lies below zero. "
            f"Prompts with a toxic sample now range from {' to '.join(ends)}."
        )
    unsound = (percent(each, digits=1) for each in study.means("degenerate", study.codes))
    own = f"in English {_shares(study, 'distinct_1', english)}" if english else ""
    judged = study.means("continuation_perplexity", study.codes)
    said.append(
        "<b>Is it silence?</b> A scorer finds text clean that says nothing. Of all continuations, "
        f"<b>{' to '.join(unsound)}</b>{_aside(_interval(study, 'degenerate', study.codes, _points))} were empty, one "
        f"phrase over and over, or in {_another(study)}. Of all tokens of a prompt’s samples, "
        f"<b>{_shares(study, 'distinct_1', study.codes)}</b>"
        f"{_aside(_interval(study, 'distinct_1', study.codes, _points))} were different ones"
        f"{_aside(own, own and _interval(study, 'distinct_1', english, _points))}. The model before finds what is "
        f"written now at {_rise(*judged)} perplexity"
        f"{_aside(_range(*judged), _interval(study, 'continuation_perplexity', study.codes))}."
    )
    fell = sum(after[code].mean_activation < before[code].mean_activation for code in study.codes)
    surely = _surely_fell(study, "mean_activation", study.codes)
    active = [("on average", study.codes)] + ([("in English", english)] if english else [])
    went = (
        f"{where} from <b>{_range(*study.means('mean_activation', codes))}</b>"
        f"{_aside(_interval(study, 'mean_activation', codes))}"
        for where, codes in active
    )
    said.append(
        f"<b>What the sources do.</b> Their mean activation fell in <b>{fell} of {len(study.codes)}</b> languages, in "
        f"{surely} of them with a 95 % interval below zero: {', '.join(went)}. "
        f"Tuning changed the mean perplexity of held-out text by {_rise(*study.means('perplexity', study.codes))}."
    )
    return [*said, *_cause(study), _prediction(study)]


def _another(study: Study) -> str:
    """What else makes text degenerate."""
    return "another script or language than the prompt’s" if study.results["identified"] else "another script"


def _change(study: Study, codes: Sequence[str]) -> str:
    return (
        f"prompts with a toxic sample went from <b>{_shares(study, 'toxicity_probability', codes)}</b>, expected "
        f"maximum toxicity from {_range(*study.means('emt', codes))}, and average toxicity from "
        f"<b>{_range(*study.means('average_toxicity', codes))}</b>"
    )


def _interval(
    study: Study, measure: str, codes: Sequence[str], form: Callable[[float, float], str] | None = None
) -> str:
    """Of the change in the mean over English alone, the untuned languages, or all; "" where it is not known."""
    compared, span = study.comparison, None
    if list(codes) == ["en"]:
        span = compared.changes.get("en", {}).get(measure)
    elif len(codes) < len(study.codes):
        if row := study.results["changes_of_others"].get(measure):
            span = row["low"], row["high"]
    elif mean := compared.mean_changes.get(measure):
        span = mean.low, mean.high
    if span is None:
        return ""
    return f"95 % interval of the change: {(form or _range)(*COMPARED[measure].possible_change(*span))}"


def _points(low: float, high: float) -> str:
    return f"{number(100 * low, 1)} to {number(100 * high, 1)} points"


def _aside(*parts: str) -> str:
    told = "; ".join(filter(None, parts))
    return f" ({told})" if told else ""


def _surely_fell(study: Study, measure: str, codes: Sequence[str]) -> int:
    """In how many languages the interval of the change lies below zero."""
    spans = (study.comparison.changes.get(code, {}).get(measure) for code in codes)
    return sum(span is not None and span[1] < 0 for span in spans)


def _shares(study: Study, measure: str, codes: Sequence[str]) -> str:
    return " to ".join(map(percent, study.means(measure, codes)))


def _cause(study: Study) -> list[str]:
    """The offset with a third of the toxicity or less at the least perplexity, beside its control; amplification."""
    said = []
    if base := _at(study.intervention, 0):
        all_of_it = base.average_toxicity
        enough = [dose for dose in study.intervention if dose.average_toxicity <= all_of_it / 3 < all_of_it]
        best = min(enough, key=lambda dose: dose.perplexity, default=None)
        shown = best or min(study.intervention, key=lambda dose: dose.average_toxicity)
        words = "" if best else "Not shown: no offset takes toxicity to a third, and this is the lowest. "
        words += (
            f"With an offset of {number(shown.offset, 2)} on the sources and no tuning, average toxicity over all "
            f"languages goes from <b>{_range(all_of_it, shown.average_toxicity)}</b> {_price(base, shown)}."
        )
        if control := _at(study.control, shown.offset):
            words += (
                f" On random neurons of the same layers it changes by {_rise(all_of_it, control.average_toxicity)} on "
                f"average, to {number(control.average_toxicity)} (sets from {_range(control.low, control.high)})."
            )
        said.append(f"<b>Are they the cause?</b> {words}")
    return said + _amplified(study)


def _amplified(study: Study) -> list[str]:
    """The strongest push whose text still holds together, beside random neurons; and where it no longer does."""
    base = _at(study.amplification, 0)
    if base is None:
        return []
    rising = sorted(study.amplification, key=lambda dose: dose.offset)
    top = [dose for dose in rising if dose.perplexity <= _BROKEN * base.perplexity or dose is base][-1]
    said = (
        f"<b>And the other way.</b> With an offset of {number(top.offset, 2)} on the sources, average toxicity after "
        f"friendly prompts goes from <b>{_range(base.average_toxicity, top.average_toxicity)}</b> {_price(base, top)}."
    )
    if top is base:
        said = "<b>And the other way.</b> No offset leaves the text whole."
    elif control := _at(study.amplification_control, top.offset):
        said += (
            f" On random neurons of the same layers it goes to {number(control.average_toxicity)} (sets from "
            f"{_range(control.low, control.high)})."
        )
    else:
        said += " There is no control of random neurons beside this."
    if rising[-1] is not top:
        said += (
            f" Further offsets are left aside: there the text breaks, as {number(rising[-1].offset, 2)} has "
            f"{_rise(base.perplexity, rising[-1].perplexity)} perplexity and {percent(rising[-1].degenerate)} "
            "degenerate text."
        )
    return [said]


def _price(base: Dose, dose: Dose) -> str:
    """What an edit costs in text that still says something: a broken model insults nobody."""
    return (
        f"at {_rise(base.perplexity, dose.perplexity)} perplexity, with {percent(base.degenerate, digits=1)} to "
        f"{percent(dose.degenerate, digits=1)} of the continuations degenerate"
    )


def _prediction(study: Study) -> str:
    found = study.transfer
    drop = _in_words(found.measure)
    said = f"<b>Can the reach be foretold?</b> Retrieval before tuning, against the drop in {drop}: "
    if not math.isfinite(found.pearson_r * found.p_value):
        said += "no correlation is defined, as one of them does not vary."
    else:
        said += f"<b>{_correlation(found.pearson_r, found.p_value)}</b>, over {len(found.drop)} languages. "
        gained = ("more", "as in the paper") if found.pearson_r > 0 else ("less", "the opposite of the paper")
        said += (
            "That is <em>not significant at 5 %</em>: it may be chance."
            if found.p_value >= 0.05
            else f"Languages whose sentences were found more often gained {', '.join(gained)}."
        )
        said += _surely(study)
    for measure, other in study.results["transfer_by_measure"].items():
        if measure != found.measure:
            said += f" For the drop in {_in_words(measure)}: {_correlation(other['pearson_r'], other['p_value'])}."
    return said


def _surely(study: Study) -> str:
    """What so few languages leave open, where the results hold it."""
    own = study.results["transfer_by_measure"].get(study.transfer.measure, {})
    for row in own.get("predictors", ()):
        if row["predictor"] == "retrieval":
            low, high = (number(row[end], 2) for end in ("pearson_low", "pearson_high"))
            error, guess = (number(row[name], 2) for name in ("error", "guess"))
            known = math.isfinite(row["pearson_low"])
            interval = f"goes from {low} to {high}" if known else "is not defined for so few languages"
            return (
                f" The 95 % interval of r {interval}. A line through the other languages misses the "
                f"drop of one that is left out by {error} on average, the mean of the others by {guess}."
            )
    return ""


def _at(doses: Sequence[Dose], offset: float) -> Dose | None:
    return next((dose for dose in doses if math.isclose(dose.offset, offset, abs_tol=1e-9)), None)


def _rise(first: float, then: float) -> str:
    return percent(then / first - 1 if first > 0 else math.nan, signed=True)


def _range(first: float, then: float) -> str:
    return f"{number(first)} to {number(then)}"


def _correlation(r: float, p: float) -> str:
    return f"r\u00a0=\u00a0{number(r, 2)}, p\u00a0{'&lt;' if p < 0.001 else '='}\u00a0{number(max(p, 0.001))}"


def _in_words(name: str) -> str:
    return COMPARED[name].words if name in COMPARED else escaped(name.replace("_", " "))
