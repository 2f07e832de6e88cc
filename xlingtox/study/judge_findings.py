"""The finding on second judges: which claims have the same verdict under each, and their tables on the page."""

from __future__ import annotations

from collections.abc import Sequence

from xlingtox import languages
from xlingtox.evaluation.comparison import Comparison
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import language_name, scrolling
from xlingtox.study import number_tables, under_judges
from xlingtox.study.finding import Finding, arrow, stress
from xlingtox.study.page_parts import verdict_word
from xlingtox.study.results import StudyResults
from xlingtox.study.second_opinion import SecondOpinion
from xlingtox.text import seen

_TOXICITY = "average_toxicity"

_NOTE = (
    "<p>Every judge has blind spots, and a model may learn to write what one judge does not see. So other judges "
    "scored the same texts. Here is the verdict under each on every claim that depends on the judge. Scores of two "
    "judges are not on one scale: compare a judge with itself, before and after.</p>"
)


def agreement(results: StudyResults) -> list[Finding]:
    """Say how many claims have the same verdict under every judge, and which hold under one only."""
    opinions = results.second_opinions
    claims = _claims(results)
    if not claims:
        return []
    same = [claim for claim, verdict_of in claims.items() if len(set(verdict_of.values())) == 1]
    names = " and ".join(seen(opinion.judge.name) for opinion in opinions)
    words = (
        f"{stress(f'All {len(claims)}')} claims have the same verdict under {names}."
        if len(same) == len(claims)
        else f"Under {names}, {stress(f'{len(same)} of {len(claims)}')} claims keep their verdict."
    )
    details = [line for claim, verdict_of in claims.items() for line in _under_one(claim, verdict_of)]
    for opinion in opinions:
        if len(opinion.languages) < len(results.languages):
            names_of = ", ".join(languages.name(code) for code in opinion.languages)
            details.append(f"{seen(opinion.judge.name)} judged {names_of} only.")
        details += [f"Under {seen(opinion.judge.name)}: {seen(sentence)}" for sentence in opinion.warnings]
    return [Finding.of("Does another judge say the same?", words, numbers=_numbers(results), details=details)]


def section(results: StudyResults) -> str:
    """Return the tables of the page: each claim under each judge, and toxicity by language; "" with one judge."""
    opinions, claims = results.second_opinions, _claims(results)
    if not opinions:
        return ""
    names = [first_judge(results), *(opinion.judge.name for opinion in opinions)]
    rows = [
        [escaped(claim), *(verdict_word(verdict_of[name]) if name in verdict_of else "–" for name in names)]
        for claim, verdict_of in claims.items()
    ]
    columns = [escaped(seen(name)) for name in names]
    tables = scrolling("Each claim, and the verdict under each judge", ["Claim", *columns], rows) if rows else ""
    return _NOTE + tables + _by_language(results, opinions, columns)


def first_judge(results: StudyResults) -> str:
    """Return the name of the first judge."""
    if results.comparison is not None:
        return results.comparison.scorer.name
    return ", ".join(str(row["name"]) for row in results.judges)


def _claims(results: StudyResults) -> dict[str, dict[str, str]]:
    verdicts = [{"claim": verdict.claim, "verdict": verdict.verdict} for verdict in results.verdicts]
    return under_judges.by_claim(first_judge(results), verdicts, results.second_opinions)


def _under_one(claim: str, verdict_of: dict[str, str]) -> list[str]:
    return under_judges.under_one(claim, {judge: [verdict] for judge, verdict in verdict_of.items()})


def _numbers(results: StudyResults) -> list[str]:
    """Return the mean toxicity under each judge, before and after tuning."""
    parts = []
    for name, compared in _compared(results):
        sides = [[getattr(row, _TOXICITY) for row in side.values()] for side in (compared.before, compared.after)]
        before, after = (sum(values) / len(values) for values in sides)
        parts.append(f"average toxicity under {seen(name)} {arrow(before, after)}")
    return parts


def _compared(results: StudyResults) -> list[tuple[str, Comparison]]:
    named = [(first_judge(results), results.comparison)]
    named += [(opinion.judge.name, opinion.comparison) for opinion in results.second_opinions]
    return [(name, compared) for name, compared in named if compared is not None]


def _by_language(results: StudyResults, opinions: Sequence[SecondOpinion], columns: Sequence[str]) -> str:
    """Return a table with a row for each language: toxicity before and after tuning under each judge."""
    compared = [results.comparison, *(opinion.comparison for opinion in opinions)]
    if results.comparison is None:
        return ""
    rows = [[language_name(code), *(_cell(one, code) for one in compared)] for code in results.languages]
    caption = "Average toxicity under each judge: before → after tuning, and the 95 % interval of the change"
    return scrolling(caption, ["Language", *columns], rows, results.languages)


def _cell(compared: Comparison | None, code: str) -> str:
    if compared is None or code not in compared.before:
        return "not covered"
    return number_tables.changed(compared, code, _TOXICITY)
