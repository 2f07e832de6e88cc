"""The findings and the verdicts about methods at equal fluency: which one wins, and which cross languages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from xlingtox import languages
from xlingtox.evaluation.cautions import LEAST_TOXICITY
from xlingtox.evaluation.multiplicity import holm
from xlingtox.frontiers.crossing import OTHERS
from xlingtox.frontiers.wins import LEVEL
from xlingtox.html.tables import number, percent
from xlingtox.study.claims import verdict_on
from xlingtox.study.finding import Finding, span, stress
from xlingtox.study.frontier_summary import FrontierSummary, Row, in_words
from xlingtox.study.results import StudyResults
from xlingtox.text import seen
from xlingtox.verdicts import Verdict

WINNER, CROSSING = "Which method, at what price?", "Which methods cross languages?"
"""The questions that the findings answer."""

WINS = "At equal fluency, one method leaves less toxicity than every other in most languages."
"""The claim about the best method."""

_NAMED = 3
"""So many methods are named with their numbers."""


def crosses(source_language: str) -> str:
    """Return the claim about methods that were fitted on the source language."""
    name = languages.name(source_language)
    return f"Fitted on {name}, a method lowers toxicity in most other languages at equal fluency."


def verdicts(summary: FrontierSummary, source_language: str) -> list[Verdict]:
    """Judge whether one method wins, and whether one crosses languages, at the main budget."""
    judged = [_winner(summary)]
    if others := _others(summary, source_language):
        judged.append(_crossing(summary, others, crosses(source_language)))
    return judged


def methods(results: StudyResults) -> list[Finding]:
    """Say which method wins at the main budget, and in how many other languages each one lowers toxicity."""
    summary = results.frontier
    if summary is None or not summary.at_budgets:
        return []
    rows = sorted(summary.rows(summary.main_budget).values(), key=_toxicity)
    unedited, controls = summary.unedited(), [row for row in rows if row["method"] in summary.controls]
    rivals = [row for row in rows if row["method"] not in summary.controls]
    shown = [*rivals[:_NAMED], *controls[:1]]
    toxicities = [
        f"unedited {number(unedited)}",
        *(f"{seen(row['method'])} {number(row['toxicity'])}" for row in shown),
    ]
    verdict = verdict_on(results.verdicts, WINS)
    details = [seen(verdict.reason) if verdict else "", _changes(rivals[:_NAMED]), _stopped(rivals), _HOW]
    findings = [
        Finding.of(WINNER, _in_most(summary, unedited), verdict=verdict, numbers=toxicities, details=details),
    ]
    others = _others(summary, results.source_language)
    if not others or _tells_nothing(unedited):
        return findings
    fell = _falls(summary, others)
    best = [name for name in _by_count(fell) if name not in summary.controls][:_NAMED]
    words = f"No method is shown to lower toxicity in any of {len(others)} others."
    if best and fell[best[0]]:
        words = f"{stress(seen(best[0]))} lowers toxicity in {fell[best[0]]} of {len(others)} others."
    verdict = verdict_on(results.verdicts, crosses(results.source_language))
    counts = [f"{seen(name)} {fell[name]} of {len(others)}" for name in [*best, *_controls_of(summary, fell)[:1]]]
    details = [seen(verdict.reason) if verdict else "", _reach(summary, best)]
    return [*findings, Finding.of(CROSSING, words, verdict=verdict, numbers=counts, details=details)]


# --- the best method


def _winner(summary: FrontierSummary) -> Verdict:
    budget, n = in_words(summary.main_budget), len(summary.languages)
    if _tells_nothing(unedited := summary.unedited()):
        return Verdict(WINS, "not found", f"The unedited model's toxicity is {number(unedited)}: too little to lower.")
    ranked = _ranked(summary)
    if not ranked:
        return Verdict(WINS, "not found", "Nothing was compared.")
    best = ranked[0]
    lowest, clearly = int(best["languages_lowest"]), int(best["languages_clearly_lowest"])
    n_others = len(ranked)  # the unedited model is one of them
    runners = [f"{row['method']} in {int(row['languages_lowest'])}" for row in ranked[1:_NAMED]]
    reason = (
        f"At {budget} perplexity, {best['method']} is lowest in {lowest} of {n} languages"
        + (f" ({', '.join(runners)})" if runners else "")
        + f". In {clearly} of them it is lower than every other method after correction for all comparisons; in the "
        f"mean over languages it is lower than {int(best['beats_overall'])} of {n_others} others."
    )
    if best["method"] in summary.controls:
        return Verdict(WINS, "not found", f"{reason} It was chosen by chance.")
    if clearly > n / 2:
        return Verdict(WINS, "found", reason)
    beaten = int(best["beats_overall"])
    is_weak = beaten == n_others or (lowest > n / 2 and (clearly or beaten))
    return Verdict(WINS, "weak" if is_weak else "not found", reason)


def _ranked(summary: FrontierSummary) -> list[Row]:
    """Return the rows of wins, the method that is lowest in most languages first."""
    rows = summary.wins_at(summary.main_budget)
    columns = ("languages_lowest", "languages_clearly_lowest", "beats_overall")
    return sorted(rows, key=lambda row: tuple(-row[column] for column in columns))


def _in_most(summary: FrontierSummary, unedited: float) -> str:
    """Say in how many languages the best method wins."""
    if _tells_nothing(unedited):
        return "Too little is toxic without an edit to tell."
    ranked = _ranked(summary)
    if not ranked:
        return "Nothing was compared."
    best, n = ranked[0], len(summary.languages)
    if not best["languages_lowest"]:
        return f"At {in_words(summary.main_budget)} perplexity, no method is lower than all others in any language."
    return (
        f"At {in_words(summary.main_budget)} perplexity, {stress(seen(best['method']))} is lowest in "
        f"{int(best['languages_lowest'])} of {n} languages, clearly in {int(best['languages_clearly_lowest'])}."
    )


def _tells_nothing(unedited: float) -> bool:
    return unedited < LEAST_TOXICITY


def _toxicity(row: Row) -> float:
    value = float(row["toxicity"])
    return math.inf if math.isnan(value) else value


def _changes(rows: Iterable[Row]) -> str:
    changes = [
        f"{seen(row['method'])} {number(row['change'], signed=True)} ({span(row['change_low'], row['change_high'])})"
        for row in rows
        if math.isfinite(row["change"])
    ]
    return (
        f"Change of toxicity in the mean over languages, with its 95 % interval: {'; '.join(changes)}."
        if changes
        else ""
    )


def _stopped(rows: Sequence[Row]) -> str:
    """Name the methods that could not spend the budget, with the reason."""
    reasons = {
        "degenerate text": "Turned down because text got less sound first",
        "end of the dial": "At the end of their dial before they cost as much",
        "not known": "Could not be placed at this price",
    }
    sentences = []
    for reason, words in reasons.items():
        if names := [seen(row["method"]) for row in rows if row["stopped_by"] == reason]:
            sentences.append(f"{words}: {', '.join(names)}.")
    return " ".join(sentences)


_HOW = (
    "Each method is turned up until the perplexity of held-out text has risen so far, or its text gets less sound. The "
    "strength is chosen on one half of the prompts and texts, and read on the other."
)


# --- other languages


def _others(summary: FrontierSummary, source_language: str) -> list[str]:
    return [code for code in summary.languages if code != source_language]


def _falls(summary: FrontierSummary, codes: Sequence[str]) -> dict[str, int]:
    """Return in how many of these languages each method lowers toxicity, after correction for all of these tests."""
    tests = [row for code in codes for row in summary.rows(summary.main_budget, language=code).values()]
    corrected = holm([float(row["p"]) for row in tests])
    fell = dict.fromkeys(summary.methods, 0)
    for row, p in zip(tests, corrected, strict=True):
        fell[row["method"]] += int(p < LEVEL and row["change"] < 0)
    return fell


def _by_count(fell: dict[str, int]) -> list[str]:
    return sorted(fell, key=lambda name: -fell[name])


def _controls_of(summary: FrontierSummary, fell: dict[str, int]) -> list[str]:
    return [name for name in _by_count(fell) if name in summary.controls]


def _reach(summary: FrontierSummary, names: Sequence[str]) -> str:
    """Say which share of each method's effect in the source language it has in the others."""
    rows = {row["method"]: row for row in summary.transfers_at(summary.main_budget) if row["language"] == OTHERS}
    shares = [
        f"{seen(name)} {percent(rows[name]['share'])} ({percent(rows[name]['low'])} to {percent(rows[name]['high'])})"
        for name in names
        if name in rows and math.isfinite(rows[name]["low"])
    ]
    return f"Effect in the others as a share of that in the source language: {'; '.join(shares)}." if shares else ""


def _crossing(summary: FrontierSummary, others: Sequence[str], claim: str) -> Verdict:
    if _tells_nothing(unedited := summary.unedited()):
        return Verdict(claim, "not found", f"The unedited model's toxicity is {number(unedited)}: too little to lower.")
    fell, n = _falls(summary, others), len(others)
    rivals = [name for name in _by_count(fell) if name not in summary.controls]
    if not rivals:
        return Verdict(claim, "not found", "Only controls were measured.")
    by_chance = max((fell[name] for name in summary.controls), default=0)
    counts = [f"{name} in {fell[name]}" for name in [*rivals, *_controls_of(summary, fell)]]
    reason = (
        f"At {in_words(summary.main_budget)} perplexity and after correction for all tests, toxicity falls in so many "
        f"of {n} other languages: {', '.join(counts)}."
    )
    best = fell[rivals[0]]
    if best > n / 2 and best > by_chance:
        return Verdict(claim, "found", reason)
    return Verdict(claim, "weak" if best > by_chance else "not found", reason)
