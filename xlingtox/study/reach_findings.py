"""Findings about tuning: how toxicity changes, whether the text is still text, and whether the reach was foreseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from xlingtox import languages
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.groups import OTHERS
from xlingtox.evaluation.multiplicity import by_chance
from xlingtox.html.tables import number, percent
from xlingtox.measures import COMPARED
from xlingtox.study import claims
from xlingtox.study.finding import Finding, arrow, in_words, moves, p_value, points, rise, shares, span, stress
from xlingtox.study.results import StudyResults
from xlingtox.text import seen


def falls(results: StudyResults) -> list[Finding]:
    """Say how toxicity changes in the language that was tuned on, and in the others."""
    if results.comparison is None:
        return []
    source, others = results.source_language, results.untuned_languages
    name, told = seen(languages.name(source)), []
    if source in results.languages:
        title, claim = f"Does toxicity fall in {name}, which was tuned?", claims.in_source(source)
        told.append(_fall(results, results.comparison, [source], title, claim))
    if others:
        where = seen(languages.name(others[0])) if len(others) == 1 else "the other languages"
        n_fell = _n_surely_fell(results.comparison, others)
        ends = sorted((results.comparison.after[code].toxicity_probability, code) for code in others)
        ranked = [f"{percent(share)} ({seen(languages.name(code))})" for share, code in (ends[0], ends[-1])]
        chance = f"The interval lies below zero in {n_fell} of {len(others)}; chance alone would give "
        more = [
            f"{chance}{number(by_chance(len(others)), 1)}.",
            f"Prompts with a toxic sample now range from {' to '.join(ranked)}." if len(others) > 1 else "",
        ]
        surely = f"surely lower in {n_fell} of {len(others)}"
        title = f"Does it fall in {where}, never tuned?"
        told.append(
            _fall(results, results.comparison, others, title, claims.in_others(source), numbers=[surely], details=more)
        )
    return told


def _fall(
    results: StudyResults,
    comparison: Comparison,
    codes: Sequence[str],
    title: str,
    claim: str,
    *,
    numbers: Sequence[str] = (),
    details: Sequence[str] = (),
) -> Finding:
    verdict = claims.verdict_on(results.verdicts, claim)
    on_average = "On average it" if len(codes) > 1 else "Average toxicity"
    sides = results.means("average_toxicity", codes)
    return Finding.of(
        title,
        f"{on_average} {moves(*sides)}.",
        verdict=verdict,
        numbers=[
            *numbers,
            f"prompts with a toxic sample {shares(*results.means('toxicity_probability', codes))}",
            f"expected maximum {arrow(*results.means('emt', codes))}",
        ],
        details=[
            _interval(results, comparison, "average_toxicity", codes, "average toxicity"),
            *details,
            seen(verdict.reason) if verdict else "",
        ],
    )


def groups(results: StudyResults) -> list[Finding]:
    """Tell groups apart, such as words that tuning met and words that it did not; nothing where none was measured."""
    source = results.source_language
    of_others = [change for change in results.groups if change.language == OTHERS]
    of_source = [change for change in results.groups if change.language == source]
    shown = of_others or of_source
    if not shown:
        return []
    where = "outside " + seen(languages.name(source)) if of_others else "in " + seen(languages.name(source))
    n_fell = sum(change.high < 0 for change in shown)
    numbers = [f"{seen(change.group)} {_group_sides(change.kind, change.before, change.after)}" for change in shown]
    in_source = [
        f"{seen(change.group)} {_group_sides(change.kind, change.before, change.after)}" for change in of_source
    ]
    return [
        Finding.of(
            "Met in tuning, or not?",
            f"Surely less toxic {where}: {stress(f'{n_fell} of {len(shown)}')} groups of prompts and words.",
            numbers=numbers,
            details=[
                f"In {seen(languages.name(source))}: {'; '.join(in_source)}." if of_others and in_source else "",
                "Prompts have their average toxicity, words the share of continuations with one. If only those groups "
                "fell that stand in the preference pairs, tuning taught a list and not a manner.",
            ],
        )
    ]


def _group_sides(kind: str, before: float, after: float) -> str:
    return shares(before, after, 1) if kind == "words" else arrow(before, after)


def silence(results: StudyResults) -> list[Finding]:
    """Say whether less toxicity means that less is said: how much is sound, and how toxic the sound text is."""
    compared = results.comparison
    if compared is None:
        return []
    codes, source = results.languages, results.source_language
    elsewhere = "another script or language than the prompt’s" if results.identified else "another script"
    kinds = f"were empty, one phrase over and over, or in {elsewhere}."
    # Results of earlier versions did not look for early ends and gibberish, and have no toxicity of sound text.
    known = [
        code
        for code in codes
        if all(math.isfinite(side[code].sound_toxicity) for side in (compared.before, compared.after))
    ]
    not_sound = shares(*results.means("degenerate", codes), 1)
    if known:
        kinds = f"were empty, ended early, one phrase over and over, in {elsewhere}, or gibberish to the model before."
        words = f"Among sound continuations, average toxicity {moves(*results.means('sound_toxicity', known))}."
        numbers = [f"all continuations {arrow(*results.means('average_toxicity', known))}", f"not sound {not_sound}"]
    else:
        before, after = (percent(share, digits=1) for share in results.means("degenerate", codes))
        words, numbers = f"{stress(before)} of all continuations were not sound before, and {stress(after)} after.", []
    judged_text = results.means("continuation_perplexity", codes)
    in_source = ""
    if source in codes:
        in_source = f" In {seen(languages.name(source))}: {shares(*results.means('distinct_1', [source]))}."
    return [
        Finding.of(
            "Is it silence?",
            words,
            numbers=[
                *numbers,
                f"different tokens {shares(*results.means('distinct_1', codes))}",
                f"perplexity of what is written {rise(*judged_text)}",
            ],
            details=[
                f"A scorer finds text clean that says nothing. Of all continuations, {not_sound} {kinds} "
                + _interval(results, compared, "degenerate", codes, "this share", points),
                f"Different tokens are counted among all of a prompt’s samples.{in_source} "
                + _interval(results, compared, "distinct_1", codes, "their share", points),
                f"The model before rates what is written now: perplexity {arrow(*judged_text)}. "
                + _interval(results, compared, "continuation_perplexity", codes, "this"),
            ],
        )
    ]


def training(results: StudyResults) -> list[Finding]:
    """Say how tuning went, where nothing was compared after it."""
    if "compare" in results.stages:
        return []
    losses = {
        name: [row[name] for row in results.training if math.isfinite(row.get(name, math.nan))]
        for name in ("loss", "eval_loss")
    }
    if not losses["loss"]:
        return []
    validation = losses["eval_loss"]
    return [
        Finding.of(
            "Did tuning learn its pairs?",
            f"The loss {moves(losses['loss'][0], losses['loss'][-1])}.",
            numbers=[f"validation loss {arrow(validation[0], validation[-1])}" if validation else ""],
            details=["What it did to the text was not compared, so this shows nothing of toxicity."],
        )
    ]


def prediction(results: StudyResults) -> list[Finding]:
    """Say whether retrieval before tuning goes with the drop; without drops, only how much is retrieved."""
    transfer = results.transfer
    if transfer is None:
        return _retrieved(results)
    title, measure = "Can the reach be foretold?", in_words(transfer.measure)
    others = [
        f"For the drop in {in_words(name)}: {_correlation(summary.pearson_r, summary.p_value)}."
        for name, summary in results.transfer_by_measure.items()
        if name != transfer.measure
    ]
    verdict = claims.verdict_on(results.verdicts, claims.PREDICTED)
    if not math.isfinite(transfer.pearson_r * transfer.p_value):
        words = "No correlation is defined: too few languages, or no spread."
        return [Finding.of(title, words, verdict=verdict, numbers=[f"drop in {measure}"], details=others)]
    r = stress(f"r\u00a0=\u00a0{number(transfer.pearson_r, 2)}")
    if transfer.p_value >= 0.05:
        words = f"Retrieval and the drop have {r}: not significant at 5 %."
    else:
        more = "more" if transfer.pearson_r > 0 else "less"
        words = f"Languages whose translations are found more often gained {more}: {r}."
    numbers, details = _uncertainty(results)
    return [
        Finding.of(
            title,
            words,
            verdict=verdict,
            numbers=[f"drop in {measure}", f"{len(transfer.drop)} languages", p_value(transfer.p_value), *numbers],
            details=[*details, *others],
        )
    ]


def _uncertainty(results: StudyResults) -> tuple[list[str], list[str]]:
    """Say how uncertain the correlation is over so few languages, where the results hold it."""
    summary = results.transfer_by_measure.get(results.transfer.measure) if results.transfer else None
    row = next((row for row in summary.predictors if row["predictor"] == "retrieval"), None) if summary else None
    if row is None:
        return [], []
    error, guess = (number(row[name], 2) for name in ("error", "guess"))
    known = math.isfinite(row["pearson_low"])
    interval = (
        f"goes from {span(row['pearson_low'], row['pearson_high'], 2)}"
        if known
        else "is not defined for so few languages"
    )
    tested = ""
    if math.isfinite(p := row.get("error_p", math.nan)):
        better = "better" if p < 0.05 and row["error"] < row["guess"] else "no better"
        tested = f": {better} than chance (permutation test, {p_value(p)})"
    return [f"a language left out is missed by {error}, by guessing by {guess}"], [
        f"The 95 % interval of r {interval}. A line through the other languages misses the drop of one that is left "
        f"out by {error} on average, the mean of the others by {guess}{tested}."
    ]


def _retrieved(results: StudyResults) -> list[Finding]:
    found = {code: share for code, share in results.retrieval.items() if math.isfinite(share)}
    if not found:
        return []
    pivot, ranked = seen(languages.name(results.retrieved_from)), sorted(found, key=lambda code: found[code])
    ends = [f"{percent(found[code])} ({seen(languages.name(code))})" for code in (ranked[0], ranked[-1])]
    sizes = sorted(set(results.n_parallel.values()))
    return [
        Finding.of(
            "Do translations lie near each other?",
            f"The model finds {stress(percent(sum(found.values()) / len(found)))} of translations from {pivot} and "
            "back, on average.",
            numbers=[
                f"from {' to '.join(ends)}" if len(found) > 1 else "",
                f"among {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} sentences" if sizes else "",
                f"by chance {percent(1 / sizes[0], digits=1)}" if sizes else "",
            ],
            details=["Accuracy is that of the nearest neighbour, averaged over layers. It says how much languages "
                     "share, and nothing of toxicity."],
        )
    ]  # fmt: skip


def _interval(
    results: StudyResults,
    comparison: Comparison,
    measure: str,
    codes: Sequence[str],
    what: str,
    form: Callable[[float, float], str] = span,
) -> str:
    """Return the interval of the change in a measure's mean over these languages, in words, or "" where it is unknown.

    It is known for the source language alone, for the others, and for all.
    """
    interval = None
    if list(codes) == [results.source_language]:
        interval = comparison.changes.get(results.source_language, {}).get(measure)
    else:
        all_of_them = len(codes) == len(results.languages)
        changes = comparison.mean_changes if all_of_them else comparison.changes_of_others
        if change := changes.get(measure):
            interval = change.low, change.high
    if interval is None:
        return ""
    return f"95 % interval of the change of {what}: {form(*COMPARED[measure].possible_change(*interval))}."


def _n_surely_fell(comparison: Comparison, codes: Sequence[str]) -> int:
    """Return in how many languages the interval of the change of average toxicity lies below zero."""
    intervals = (comparison.changes.get(code, {}).get("average_toxicity") for code in codes)
    return sum(interval is not None and interval[1] < 0 for interval in intervals)


def _correlation(r: float, p: float) -> str:
    return f"r\u00a0=\u00a0{number(r, 2)}, {p_value(p)}"
