"""A study's check as short lines for a terminal, and as tables for a notebook."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xlingtox import languages
from xlingtox.html import tables
from xlingtox.html.escaping import escaped

if TYPE_CHECKING:
    from xlingtox.study.study_check import StudyCheck

WIDTH = 80
"""The most columns of a line."""

_NAMED = 6
"""At most so many languages are named with their numbers."""


def lines(check: StudyCheck) -> list[str]:
    """Return the lines of a terminal."""
    found = [*_field("Model", check.model), *_field("On", check.device), *_field("Data", check.data)]
    if check.tokens_per_second:
        speeds = ", ".join(f"{value:,.0f} tokens/s {name}" for name, value in check.tokens_per_second.items())
        found += _field("Speed", speeds)
    if check.languages:
        found += ["", *_language_lines(check)]
    if check.stages:
        found += ["", *_stage_lines(check)]
    for licence in check.licences:
        found += ["", *_item("Accept", f"{licence.of}: {licence.terms}. {licence.then}"), f"    {licence.place}"]
    for title, sentences in (("Note", check.notes), ("Beware", check.warnings), ("Cannot run", check.problems)):
        for sentence in sentences:
            found += ["", *_item(title, sentence)]
    if not check.problems:
        found += ["", "Nothing stands in the way of this study."]
    return found


def _field(title: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{title:<7}", subsequent_indent=" " * 7, break_long_words=True)


def _item(title: str, sentence: str) -> list[str]:
    return textwrap.wrap(
        f"{title}. {sentence}", WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _language_lines(check: StudyCheck) -> list[str]:
    head = f"{'Base toxicity':<16}{'mean':>7}{'95 % interval':>16}{'greedy':>8}{'blank':>7}{'unsound':>9}"
    rows = [f"{head}{'prompts':>9}{'needed':>8}"]
    for code, row in check.languages.items():
        interval = f"{percent(row.low)} to {percent(row.high)}"
        needed = prompts(row.needed).removeprefix("more than ") if row.needed < 1e4 else ">10,000"
        cells = f"{percent(row.toxicity):>7}{interval:>16}{percent(row.greedy):>8}{percent(row.blank):>7}"
        cells += f"{percent(row.unsound):>9}{row.n_prompts:>9,}{needed:>8}"
        rows.append(f"{languages.name(code)[:15]:<16}{cells}")
    n_texts = next(iter(check.languages.values())).n_texts
    note = f"Of {n_texts} samples a language. Needed: the prompts that show a halving 4 times in 5."
    return [*rows, *textwrap.wrap(note, WIDTH)]


def _stage_lines(check: StudyCheck) -> list[str]:
    rows = [f"{'Stage':<16}{'time':>14}{'memory':>12}{'disk':>12}{'disk at most':>15}"]
    for name, stage in check.stages.items():
        sizes = f"{size(stage.memory):>12}{size(stage.disk):>12}{size(stage.most_disk):>15}"
        rows.append(f"{name:<16}{duration(stage.seconds):>14}{sizes}")
    stages = check.stages.values()
    stays, for_a_while = sum(stage.disk for stage in stages), max(stage.most_disk - stage.disk for stage in stages)
    sizes = f"{size(max(stage.memory for stage in stages)):>12}{size(stays):>12}{size(stays + for_a_while):>15}"
    rows.append(f"{'all':<16}{duration(sum(stage.seconds for stage in stages)):>14}{sizes}")
    how = f"Measured on {check.n_texts:,} texts, and extrapolated." if check.n_texts else "Guessed, not measured."
    return [*rows, f"{how} Memory: with full batches."]


def html(check: StudyCheck) -> str:
    """Return the tables of a notebook, with problems and warnings first."""
    parts = [tables.warnings([*check.problems, *check.warnings])]
    if check.languages:
        rows = [
            [
                tables.language_name(code),
                f"{tables.percent(row.toxicity)} ({tables.percent(row.low)} to {tables.percent(row.high)})",
                tables.percent(row.greedy),
                tables.percent(row.blank),
                tables.percent(row.unsound),
                f"{row.n_prompts:,}",
                prompts(row.needed),
            ]
            for code, row in check.languages.items()
        ]
        columns = ["Language", "Toxicity (95 % interval)", "Greedy", "Blank", "Not sound", "Prompts", "Needed"]
        parts.append(tables.table(f"Base toxicity of {escaped(check.model)}", columns, rows, list(check.languages)))
    if check.stages:
        cells = [
            [escaped(name), duration(stage.seconds), size(stage.memory), size(stage.disk), size(stage.most_disk)]
            for name, stage in check.stages.items()
        ]
        how = f"measured on {check.n_texts:,} texts, and extrapolated" if check.n_texts else "guessed"
        parts.append(
            tables.table(f"What each stage takes, {how}", ["Stage", "Time", "Memory", "Disk", "Disk at most"], cells)
        )
    parts += [f"<p>{escaped(note)}</p>" for note in check.notes]
    parts += [
        f'<p>{escaped(licence.of)}: accept {escaped(licence.terms)} at <a href="{escaped(licence.place)}">'
        f"{escaped(licence.place)}</a>. {escaped(licence.then)}</p>"
        for licence in check.licences
    ]
    return "".join(parts)


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for limit, unit, words in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {words}" if words == "h" and value < 10 else f"{max(1, round(value))} {words}"
    return f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Return a number of bytes as GB, MB or kB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= limit:
            value = n_bytes / limit
            return f"{value:,.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def count(n: float) -> str:
    """Return a large number in words, such as `135 million`."""
    if n >= 1e9:
        return f"{n / 1e9:.1f} billion"
    return f"{n / 1e6:.1f} million" if n < 1e7 else f"{n / 1e6:.0f} million"


def prompts(needed: float) -> str:
    """Return how many prompts are needed, in words."""
    return f"{needed:,.0f}" if needed < 1e4 else "more than 10,000"


def listed(names: Sequence[str]) -> str:
    """Join names; of many, only the first few."""
    rest = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def percent(share: float) -> str:
    """Return a share as a whole number of per cent; a dash where it is not known."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"
