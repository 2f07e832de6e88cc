"""The side effects of tuning in a study: a finding, and a section of the page with one table."""

from __future__ import annotations

from collections.abc import Sequence

from xlingtox import languages
from xlingtox.evaluation.side_effects_result import COLUMNS, SideEffects, Verdict, cells
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import in_words
from xlingtox.study.finding import Finding, span, stress
from xlingtox.study.results import StudyResults
from xlingtox.text import seen

_QUESTION = "What else did tuning do?"

_UNFOLDED = 3
"""So many warnings are shown at once; more of them are folded."""

_NOTE = (
    "<p>A measure is called worse or better only where two things hold: the 95&nbsp;% interval of its change excludes "
    "zero, and its test stands after Holm’s correction for all rows of this table. No verdict does not mean no effect: "
    "the interval says what these items still allow.</p>"
)


def findings(results: StudyResults) -> list[Finding]:
    """Say how many measures got worse, and in which languages; or that none is shown to have got worse."""
    effects = results.side_effects
    if effects is None or not effects.rows:
        return []
    shown: tuple[tuple[Verdict, str], ...] = (
        ("worse", "worse"),
        ("better", "better"),
        ("rose", "up"),
        ("fell", "down"),
    )
    numbers = [f"{word}: {listed}" for verdict, word in shown if (listed := _listed(effects, verdict))]
    changed = [
        f"{seen(in_words(row.measure))}, {_names([row.language])}: {span(row.low, row.high)} ({verdict})"
        for row, verdict in zip(effects.rows, effects.verdicts, strict=True)
        if verdict
    ]
    details = [
        f"95 % intervals of the changes: {'; '.join(changed)}." if changed else "",
        "Worse and better need an interval without zero, and a test that stands after correction for all rows.",
        *map(seen, effects.warnings[:_UNFOLDED]),
    ]
    return [Finding.of(_QUESTION, _sentence(effects), numbers=numbers, details=details)]


def section(results: StudyResults) -> str:
    """Return the section's content: a sentence, the warnings and one table; "" where nothing was measured."""
    effects = results.side_effects
    if effects is None:
        return ""
    sentences = "".join(f"<p>{escaped(finding.removeprefix(_QUESTION).strip())}</p>" for finding in findings(results))
    codes = [row.language for row in effects.rows]
    table = tables.scrolling("Before and after tuning, on the same items", COLUMNS, cells(effects), codes)
    return sentences + _NOTE + _warnings(effects.warnings) + table


def _sentence(effects: SideEffects) -> str:
    n, n_languages = len(effects.measures), len(effects.languages)
    measures = "1 measure" if n == 1 else f"{n} measures"
    places = "the one language" if n_languages == 1 else f"any of {n_languages} languages"
    worse = [row for row, verdict in zip(effects.rows, effects.verdicts, strict=True) if verdict == "worse"]
    if not worse:
        return f"{stress('None')} of {measures} is shown to get worse in {places}; that does not mean no effect."
    got_worse = stress(f"{len({row.measure for row in worse})} of {measures}")
    return f"{got_worse} got worse, in {_names([row.language for row in worse])}."


def _listed(effects: SideEffects, verdict: Verdict) -> str:
    """Return the measures with this verdict, each with its languages."""
    by_measure: dict[str, list[str]] = {}
    for row, row_verdict in zip(effects.rows, effects.verdicts, strict=True):
        if row_verdict == verdict:
            by_measure.setdefault(row.measure, []).append(row.language)
    return ", ".join(f"{seen(in_words(measure))} in {_names(codes)}" for measure, codes in by_measure.items())


_MOST_NAMES = 4


def _names(codes: Sequence[str]) -> str:
    """Return the names of languages, or their number where they are many."""
    names = [seen(languages.name(code)) for code in languages.in_order(codes)]
    if len(names) > _MOST_NAMES:
        return f"{len(names)} languages"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _warnings(sentences: Sequence[str]) -> str:
    folded = tables.warnings(sentences[_UNFOLDED:])
    more = f"<details><summary>{len(sentences) - _UNFOLDED} more warnings</summary>{folded}</details>" if folded else ""
    return tables.warnings(sentences[:_UNFOLDED]) + more
