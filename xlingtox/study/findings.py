"""Findings: a study's results in sentences that a page and a terminal can show."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.cautions import COLLAPSED
from xlingtox.evaluation.dose import Dose
from xlingtox.evaluation.dose_response import CONTROLS, DoseResponse
from xlingtox.evaluation.dosing import UNITS
from xlingtox.evaluation.groups import OTHERS
from xlingtox.evaluation.multiplicity import by_chance
from xlingtox.evaluation.named_sets import ALL, CONTROL
from xlingtox.evaluation.same_text import ActivationChange, SetActivity
from xlingtox.html.tables import number, percent
from xlingtox.measures import COMPARED
from xlingtox.study.results import StudyResults
from xlingtox.text import seen

_LOCALISED = "Toxicity can be localised"
"""How the claim begins that the evidence for the candidates is about."""

_BEGIN, _END = "\x02", "\x03"
"""Marks around a stressed part while a finding is put together; `seen` removes both from text that is not ours."""


class Finding(str):
    """One finding in a few sentences: a plain string that also knows which of its parts deserve stress.

    Attributes:
        stressed: the begin and the end of each part to stress, in order.

    Example:
        >>> finding = xt.study.findings(results)[0]  # doctest: +SKIP
        >>> [finding[begin:end] for begin, end in finding.stressed]  # doctest: +SKIP
        ['Where it lives.', '45 of the model’s 2,048']
    """

    stressed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def _of(cls, marked: str) -> Finding:
        """Return the finding whose stressed parts stand between marks in this text."""
        plain, places = "", []
        for part in re.split(f"({_BEGIN}[^{_END}]*{_END})", marked):
            text = part.strip(_BEGIN + _END)
            if text != part:
                places.append((len(plain), len(plain) + len(text)))
            plain += text
        finding = cls(plain)
        finding.stressed = tuple(places)
        return finding


@checked
def findings(results: StudyResults) -> list[Finding]:
    """Put a study's findings into sentences, without any tags: a page adds these, and a terminal prints them as is.

    A figure that proves nothing is said to be so: text that an edit broke, or a correlation that may be chance.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> print(*xt.study.findings(results), sep="\\n")  # doctest: +SKIP
    """
    warned = [Finding._of(f"{_stress('Beware.')} {seen(sentence)}") for sentence in results.warnings]
    return warned + without_warnings(results)


def without_warnings(results: StudyResults) -> list[Finding]:
    """Return the findings for a page or a terminal that begins with the warnings by itself."""
    marked = [_place(results)]
    if "en" in results.languages:
        interval = _aside(_interval(results, "average_toxicity", ["en"]))
        marked.append(f"{_stress('In English, which was tuned,')} {_change(results, ['en'])}{interval}.")
    if results.untuned_languages:
        marked.append(_reach(results))
    marked += [
        *_groups(results),
        _silence(results),
        _activity(results),
        *_cause(results.toxic_doses),
        *_amplified(results.neutral_doses),
        _prediction(results),
    ]
    return [Finding._of(text) for text in marked]


def _place(results: StudyResults) -> str:
    counted = f"{len(results.sources)} of the model’s {results.n_neurons:,}"
    judged = next((verdict for verdict in results.verdicts if verdict.claim.startswith(_LOCALISED)), None)
    found = (
        ""
        if judged is None
        else f" Can it be localised there? {_stress(judged.verdict.capitalize())}: {seen(judged.reason)}"
    )
    return (
        f"{_stress('Where it lives.')} A probe on English sentences tells toxic from other text in "
        f"{percent(results.probe.accuracy)} of held-out cases (guessing the commoner class: "
        f"{percent(results.probe.baseline)}). Of the {len(results.candidates)} neurons whose value vectors "
        f"point its way most, {_stress(counted)} are active on toxic English prompts: the sources.{found}"
    )


def _reach(results: StudyResults) -> str:
    untuned = results.untuned_languages
    n_fell = _n_surely_fell(results, "average_toxicity", untuned)
    interval = _aside(_interval(results, "average_toxicity", untuned))
    shares = sorted((results.comparison.after[code].toxicity_probability, code) for code in untuned)
    ends = [f"{percent(share)} ({seen(languages.name(code))})" for share, code in (shares[0], shares[-1])]
    return (
        f"{_stress(f'In the other {len(untuned)} languages, which were not,')} on average, "
        f"{_change(results, untuned)}{interval}; in {n_fell} of them the 95 % interval of the change "
        f"lies below zero, where chance alone would give {number(by_chance(len(untuned)), 1)}. Prompts "
        f"with a toxic sample now range from {' to '.join(ends)}."
    )


def _groups(results: StudyResults) -> list[str]:
    """Tell groups apart, such as words that tuning met and words that it did not; nothing where none was measured."""
    measured = {"prompts": "Average toxicity after prompts", "words": "Continuations with a word"}
    sentences = []
    for kind, what in measured.items():
        sides_by_group: dict[str, list[str]] = {}
        for change in results.groups:
            place = {"en": "English", OTHERS: "the others"}.get(change.language)
            if change.kind == kind and place:
                sides = _range(change.before, change.after)
                if kind == "words":
                    sides = " to ".join(percent(share, digits=1) for share in (change.before, change.after))
                sides_by_group.setdefault(change.group, []).append(f"{place} {sides}")
        groups = (f"{_stress(seen(group))} ({', '.join(sides)})" for group, sides in sides_by_group.items())
        if sides_by_group:
            sentences.append(f"{what} of a group: {'; '.join(groups)}.")
    return [f"{_stress('Met in tuning, or not.')} {' '.join(sentences)}"] if sentences else []


def _silence(results: StudyResults) -> str:
    codes = results.languages
    degenerate = " to ".join(percent(share, digits=1) for share in results.means("degenerate", codes))
    english = ""
    if "en" in codes:
        english = f"in English {_shares(results, 'distinct_1', ['en'])}"
        english = _aside(english, _interval(results, "distinct_1", ["en"], form=_points))
    judged = results.means("continuation_perplexity", codes)
    elsewhere = "another script or language than the prompt’s" if results.identified else "another script"
    kinds, among_sound = f"were empty, one phrase over and over, or in {elsewhere}.", ""
    # Results of earlier versions did not look for early ends and gibberish, and have no toxicity of sound text.
    sides = results.comparison.before, results.comparison.after
    if known := [code for code in codes if all(math.isfinite(side[code].sound_toxicity) for side in sides)]:
        kinds = f"were empty, ended early, one phrase over and over, in {elsewhere}, or gibberish to the model before."
        all_texts, sound = (_range(*results.means(name, known)) for name in ("average_toxicity", "sound_toxicity"))
        among_sound = f" Average toxicity went from {all_texts}, and among sound continuations from {_stress(sound)}."
    return (
        f"{_stress('Is it silence?')} A scorer finds text clean that says nothing. Of all continuations, "
        f"{_stress(degenerate)}{_aside(_interval(results, 'degenerate', codes, form=_points))} {kinds}"
        f"{among_sound} Of all tokens of a prompt’s samples, "
        f"{_stress(_shares(results, 'distinct_1', codes))}"
        f"{_aside(_interval(results, 'distinct_1', codes, form=_points))} were different ones{english}. "
        f"The model before finds what is written now at {_rise(*judged)} perplexity"
        f"{_aside(_range(*judged), _interval(results, 'continuation_perplexity', codes))}."
    )


def _activity(results: StudyResults) -> str:
    """Compare the sources with their control on the same text; where that was not read, say what is missing."""
    rise = _rise(*results.means("perplexity", results.languages))
    perplexity = f"Tuning changed the mean perplexity of held-out text by {rise}."
    activity, title = results.comparison.activity, _stress("What tuning does to the sources.")
    if ALL not in activity.changes:
        before, after = results.means("mean_activation", results.languages)
        return (
            f"{title} Each model on its own text, their mean activation goes from {_range(before, after)}. That shows "
            f"nothing of the sources: on milder text, other active neurons fall too. {perplexity}"
        )
    main = next(iter(activity.changes[ALL]))
    codes = [code for code in activity.changes if code != ALL]
    changes = activity.changes[ALL]
    words = f"{title} Where both models read the same text, their mean activation moves by {_moved(changes[main])}"
    if ALL in activity.specific:
        n_fell = sum(activity.specific[code].high < 0 for code in codes)
        specific = activity.specific[ALL]
        words += (
            f", that of equally active random neurons by {_moved(changes[CONTROL])}{_sets(activity)}. So "
            f"{_stress(number(specific.change, 4, signed=True))} is their own "
            f"(95 % interval: {_fine(specific.low, specific.high)}), and the interval of a language lies below zero in "
            f"{_stress(f'{n_fell} of {len(codes)}')} (by chance alone: {number(by_chance(len(codes)), 1)})"
        )
    n_silent = sum(main in activity.silent.get(code, ()) for code in codes)
    silent = "no language" if not n_silent else f"{n_silent} of {len(codes)} languages"
    return f"{words}. They are silent afterwards in {silent}. {perplexity}"


def _sets(activity: SetActivity) -> str:
    """Say how far the random sets differ, where that is known: an interval over prompts does not."""
    return f"; single sets by {_fine(*activity.random[ALL])}" if ALL in activity.random else ""


def _moved(change: ActivationChange) -> str:
    return f"{number(change.after - change.before, 4, signed=True)} (from {_fine(change.before, change.after)})"


def _fine(low: float, high: float) -> str:
    return f"{number(low, 4)} to {number(high, 4)}"


def _change(results: StudyResults, codes: Sequence[str]) -> str:
    return (
        f"prompts with a toxic sample went from {_stress(_shares(results, 'toxicity_probability', codes))}, expected "
        f"maximum toxicity from {_range(*results.means('emt', codes))}, and average toxicity from "
        f"{_stress(_range(*results.means('average_toxicity', codes)))}"
    )


def _interval(
    results: StudyResults, measure: str, codes: Sequence[str], *, form: Callable[[float, float], str] | None = None
) -> str:
    """Return the interval of the change in a measure's mean over these languages, in words, or "" where it is unknown.

    It is known for English alone, for the untuned languages, and for all.
    """
    interval = None
    if list(codes) == ["en"]:
        interval = results.comparison.changes.get("en", {}).get(measure)
    else:
        all_of_them = len(codes) == len(results.languages)
        changes = results.comparison.mean_changes if all_of_them else results.comparison.changes_of_others
        if change := changes.get(measure):
            interval = change.low, change.high
    if interval is None:
        return ""
    return f"95 % interval of the change: {(form or _range)(*COMPARED[measure].possible_change(*interval))}"


def _n_surely_fell(results: StudyResults, measure: str, codes: Sequence[str]) -> int:
    """Return in how many languages the interval of the change lies below zero."""
    intervals = (results.comparison.changes.get(code, {}).get(measure) for code in codes)
    return sum(interval is not None and interval[1] < 0 for interval in intervals)


def _cause(response: DoseResponse) -> list[str]:
    """Say whether editing the sources lowers toxicity more than editing random neurons does."""
    if not response.doses:
        return []
    verdict = response.verdict()
    return [f"{_stress('Are they the cause?')} {_stress(verdict.verdict.capitalize())}. {seen(verdict.reason)}"]


def _amplified(response: DoseResponse) -> list[str]:
    """Describe the largest dose that does not break the text, next to random neurons, and then the larger ones."""
    base = _at(response.doses, 0)
    if base is None:
        return []
    rising, unit = sorted(response.doses, key=lambda dose: dose.offset), UNITS[response.unit]
    top = [dose for dose in rising if dose.perplexity <= COLLAPSED * base.perplexity or dose is base][-1]
    title = _stress("And the other way.")
    words = (
        f"{title} With a dose of {number(top.offset, 2)} {unit} on the sources, average toxicity after neutral prompts "
        f"goes from {_stress(_range(base.average_toxicity, top.average_toxicity))} (95 % interval "
        f"{_range(top.low, top.high)}) {_price(base, top)}."
    )
    if top is base:
        words = f"{title} No dose leaves the text whole."
    elif control := _at(response.control, top.offset):
        words += (
            f" On {CONTROLS[response.match] if response.match else 'the control'} it goes to "
            f"{number(control.average_toxicity)} ({_range(control.low, control.high)})."
        )
    else:
        words += " There is no control of random neurons for this."
    if rising[-1] is not top:
        words += (
            f" Further doses are left aside: there the text breaks, as {number(rising[-1].offset, 2)} has "
            f"{_rise(base.perplexity, rising[-1].perplexity)} perplexity and {percent(rising[-1].degenerate)} "
            "degenerate text."
        )
    return [words]


def _price(base: Dose, dose: Dose) -> str:
    """Say what an edit costs in perplexity and degenerate text: a model that writes nonsense insults nobody."""
    return (
        f"at {_rise(base.perplexity, dose.perplexity)} perplexity, with {percent(base.degenerate, digits=1)} to "
        f"{percent(dose.degenerate, digits=1)} of the continuations degenerate"
    )


def _prediction(results: StudyResults) -> str:
    transfer = results.transfer
    words = f"{_stress('Can the reach be foretold?')} Retrieval before tuning, against the drop in "
    words += f"{_in_words(transfer.measure)}: "
    if not math.isfinite(transfer.pearson_r * transfer.p_value):
        words += "no correlation is defined, as one of them does not vary."
    else:
        correlation = _correlation(transfer.pearson_r, transfer.p_value)
        words += f"{_stress(correlation)}, over {len(transfer.drop)} languages. "
        gained = ("more", "as in the paper") if transfer.pearson_r > 0 else ("less", "the opposite of the paper")
        words += (
            f"That is {_stress('not significant at 5 %')}: it may be chance."
            if transfer.p_value >= 0.05
            else f"Languages whose sentences were found more often gained {', '.join(gained)}."
        )
        words += _uncertainty(results)
    for measure, summary in results.transfer_by_measure.items():
        if measure != transfer.measure:
            words += f" For the drop in {_in_words(measure)}: {_correlation(summary.pearson_r, summary.p_value)}."
    return words


def _uncertainty(results: StudyResults) -> str:
    """Say how uncertain the correlation is over so few languages, where the results hold it."""
    summary = results.transfer_by_measure.get(results.transfer.measure)
    for row in summary.predictors if summary else ():
        if row["predictor"] == "retrieval":
            low, high = (number(row[end], 2) for end in ("pearson_low", "pearson_high"))
            error, guess = (number(row[name], 2) for name in ("error", "guess"))
            known = math.isfinite(row["pearson_low"])
            interval = f"goes from {low} to {high}" if known else "is not defined for so few languages"
            words = (
                f" The 95 % interval of r {interval}. A line through the other languages misses the "
                f"drop of one that is left out by {error} on average, the mean of the others by {guess}"
            )
            if not math.isfinite(p := row.get("error_p", math.nan)):
                return f"{words}."
            verdict = "better than chance" if p < 0.05 and row["error"] < row["guess"] else "no better than chance"
            return f"{words}: {verdict} (permutation test, {_p(p)})."
    return ""


def _at(doses: Sequence[Dose], offset: float) -> Dose | None:
    return next((dose for dose in doses if math.isclose(dose.offset, offset, abs_tol=1e-9)), None)


def _stress(text: str) -> str:
    return f"{_BEGIN}{text}{_END}"


def _aside(*parts: str) -> str:
    """Return the parts that are not empty, in parentheses."""
    words = "; ".join(filter(None, parts))
    return f" ({words})" if words else ""


def _shares(results: StudyResults, measure: str, codes: Sequence[str]) -> str:
    return " to ".join(map(percent, results.means(measure, codes)))


def _points(low: float, high: float) -> str:
    return f"{number(100 * low, 1)} to {number(100 * high, 1)} points"


def _rise(before: float, after: float) -> str:
    return percent(after / before - 1 if before > 0 else math.nan, signed=True)


def _range(before: float, after: float) -> str:
    return f"{number(before)} to {number(after)}"


def _correlation(r: float, p: float) -> str:
    return f"r\u00a0=\u00a0{number(r, 2)}, {_p(p)}"


def _p(p: float) -> str:
    return f"p\u00a0{'<' if p < 0.001 else '='}\u00a0{number(max(p, 0.001))}"


def _in_words(measure: str) -> str:
    return COMPARED[measure].words if measure in COMPARED else seen(measure.replace("_", " "))
