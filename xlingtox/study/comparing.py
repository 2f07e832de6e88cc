"""Several studies on one page, and in one table for a terminal: what differs first, then verdicts and figures."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from plotly.offline import get_plotlyjs

from xlingtox import figures, files, languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.html import pages
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import both, language_name, number, percent, scrolling
from xlingtox.measures import COMPARED
from xlingtox.study import differences, page_figures, page_parts, provenance, under_judges
from xlingtox.study.results import StudyResults
from xlingtox.study.sentences import without_warnings
from xlingtox.study.terminal import in_ascii
from xlingtox.text import in_line, seen

Studies: TypeAlias = Mapping[str, StudyResults] | Sequence[str | Path]
"""Studies by a name for each, or the folders of studies (or their `results.json`), which are named after the folder."""

_DRAWN = ("average_toxicity", "toxicity_probability", "emt", "perplexity")
"""The measures of which a figure is drawn, as in the paper's Figures 12 to 15."""

_VERDICT = 11
"""The width of a verdict in a terminal."""


@checked
def compare_studies(studies: Studies) -> str:
    """Return one HTML page on several studies: what differs, what each found, the verdicts, and figures side by side.

    Args:
        studies: the folders of two studies or more, or a dict of results by name.

    Raises:
        ValueError: fewer than two studies, a folder without a `results.json` that can be read, or studies that have no
            language in common.

    Example:
        >>> page = xt.study.comparing.compare_studies(["runs/mgpt", "runs/bloom"])  # doctest: +SKIP
    """
    by_name = named(studies)
    codes = languages.in_order(code for results in by_name.values() for code in results.languages)
    drawn, plots = page_figures.html_of(_plots(by_name), codes)
    title = f"{len(by_name)} studies side by side"
    body = "\n".join(
        [
            f"<header><h1>{title}: {escaped(', '.join(by_name))}</h1></header>\n<main>",
            _differences(by_name),
            page_parts.warnings(_warnings(by_name)),
            page_parts.section("What was found", _found(by_name)),
            page_parts.section("Do the claims stand?", _verdicts(by_name)),
            page_parts.menu(codes, has_words=False),
            page_parts.section("Figures and numbers", plots + _by_language(by_name, codes)),
            "</main>",
        ]
    )
    return pages.document(title, body, "report", drawn, libraries=[get_plotlyjs()])


@checked
def write(studies: Studies, path: str | Path) -> None:
    """Write the page of several studies to `path`: one HTML file, which needs no network. See `compare_studies`.

    Example:
        >>> xt.study.comparing.write(["runs/mgpt", "runs/bloom"], "compared.html")  # doctest: +SKIP
    """
    files.write_text(path, compare_studies(studies))


@checked
def summary(studies: Studies, width: int = 80) -> str:
    """Return several studies as text for a terminal: what differs, warnings, main figures, and verdicts.

    Raises:
        ValueError: what `compare_studies` refuses.

    Example:
        >>> print(xt.study.comparing.summary(["runs/mgpt", "runs/bloom"]))  # doctest: +SKIP
    """
    by_name = named(studies)
    fill = [differences.sentence(by_name), *differences.lacking(by_name)]
    warned = [f"Beware. {warning}" for warning in _warnings(by_name)]
    paragraphs = [
        [f"{place}  {seen(name)}" for place, name in enumerate(by_name, start=1)],
        [textwrap.fill(in_ascii(text), width, break_on_hyphens=False) for text in [*fill, *warned]],
        _main_lines(by_name, width),
        _verdict_lines(by_name, width),
    ]
    return in_ascii("\n\n".join("\n".join(lines) for lines in paragraphs if lines))


@checked
def named(studies: Studies) -> dict[str, StudyResults]:
    """Return the studies by name, read from their folders where they are not in memory.

    Raises:
        ValueError: what `compare_studies` refuses.

    Example:
        >>> list(xt.study.comparing.named(["runs/mgpt", "runs/bloom"]))  # doctest: +SKIP
        ['mgpt', 'bloom']
    """
    by_name = dict(studies) if isinstance(studies, Mapping) else _read(studies)
    if len(by_name) < 2:
        raise ValueError(f"the number of studies is {len(by_name)}: give two or more to compare")
    if not set.intersection(*(set(results.languages) for results in by_name.values())):
        spoken = "; ".join(
            f"{in_line(name)} has {', '.join(map(languages.name, results.languages))}"
            for name, results in by_name.items()
        )
        raise ValueError(f"the studies have no language in common: {spoken}"[:400])
    return by_name


def _read(paths: Sequence[str | Path] | str) -> dict[str, StudyResults]:
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        place = Path(path).expanduser().absolute()
        file = place if place.is_file() else place / "results.json"
        if not file.is_file():
            raise ValueError(f"{in_line(path)} has no results.json: give the folder of a study that has run")
        if file in found:
            raise ValueError(f"{in_line(path)} is given twice: give each study once")
        found.append(file)
    folders = [file.parent if file.name == "results.json" else file.with_suffix("") for file in found]
    return {name: StudyResults.load(file) for name, file in zip(_names(folders), found, strict=True)}


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as tell them apart."""
    depth, names = 0, [""] * (len(folders) + 1)
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return names


def _warnings(studies: Mapping[str, StudyResults]) -> list[str]:
    alone = under_judges.alone(studies, _claims(studies))
    return alone + [
        f"{seen(name)}: {seen(warning)}" for name, results in studies.items() for warning in results.warnings
    ]


def _differences(studies: Mapping[str, StudyResults]) -> str:
    found = differences.between(studies)
    rows = [[escaped(difference.key), *map(escaped, difference.values)] for difference in found]
    table = scrolling("Every fact that is not the same", ["What", *map(escaped, studies)], rows)
    sentences = [differences.sentence(studies), *differences.lacking(studies)]
    html = "".join(f"<p>{escaped(text)}</p>" for text in sentences)
    folded = f"<details><summary>What differs, study by study</summary>{table}</details>" if rows else ""
    return page_parts.section("What differs", html + _models(studies) + folded)


def _models(studies: Mapping[str, StudyResults]) -> str:
    rows = []
    for name, results in studies.items():
        rows.append([escaped(name), escaped(provenance.model_name(results)), *map(escaped, _figures(results))])
    return scrolling("The studies", ["Study", "Model", *_HEADINGS], rows)


_HEADINGS = (
    "Languages",
    "Sources",
    "Toxicity, tuned language",
    "Toxicity, the others",
    "Perplexity",
    "r with retrieval",
)


def _figures(results: StudyResults) -> list[str]:
    """Return the main figures of a study in words; "–" for those that it has not."""
    compared, source, others = results.comparison, results.source_language, results.untuned_languages
    cells = [str(len(results.languages)), str(len(results.sources)) if results.probe else "–"]
    if compared is None:
        cells += ["–"] * 3
    else:
        for codes in ([source] if source in results.languages else [], others):
            cells.append(both(*results.means("average_toxicity", codes)) if codes else "–")
        before, after = results.means("perplexity", results.languages)
        cells.append(percent(after / before - 1, signed=True) if before > 0 else "–")
    r = results.transfer.pearson_r if results.transfer else math.nan
    return [*cells, number(r, 2) if math.isfinite(r) else "–"]


def _found(studies: Mapping[str, StudyResults]) -> str:
    """Return a table with a row for each question, and in it the sentence of each study."""
    by_title: dict[str, dict[str, str]] = {}
    for name, results in studies.items():
        for finding in without_warnings(results):
            begin, end = finding.stressed[0]
            by_title.setdefault(finding[begin:end], {})[name] = page_parts.sentence(finding, first=1)
    rows = [[escaped(title), *(cells.get(name, "–") for name in studies)] for title, cells in by_title.items()]
    return scrolling("Each question, and what each study found", ["Question", *map(escaped, studies)], rows)


def _claims(studies: Mapping[str, StudyResults]) -> dict[str, dict[str, str]]:
    """Return the verdict of each study on each claim; claims that differ in numbers or languages alone are one."""
    shown: dict[str, str] = {}
    verdicts: dict[str, dict[str, str]] = {}
    for name, results in studies.items():
        for verdict in results.verdicts:
            begin = verdict.claim.split(":")[0]
            key = re.sub(r"\d+", "#", begin)
            shown.setdefault(key, seen(begin if begin.endswith(".") else f"{begin}."))
            verdicts.setdefault(key, {})[name] = verdict.verdict
    return {shown[key]: of_studies for key, of_studies in verdicts.items()}


def _verdicts(studies: Mapping[str, StudyResults]) -> str:
    rows = [
        [escaped(claim), *(page_parts.verdict_word(found[name]) if name in found else "–" for name in studies)]
        for claim, found in _claims(studies).items()
    ]
    table = scrolling("Each claim, and the verdict of each study", ["Claim", *map(escaped, studies)], rows)
    return table if rows else ""


def _plots(studies: Mapping[str, StudyResults]) -> list[page_figures.Plot]:
    """Return a figure for each measure, with a panel for each study, or one panel for studies that differ in seeds."""
    compared = {name: results.comparison for name, results in studies.items() if results.comparison is not None}
    if not compared:
        return []
    groups: dict[str, Comparison | list[Comparison]] = {}
    for names in differences.seeds_of_one({name: studies[name] for name in compared}):
        comparisons = [compared[name] for name in names]
        groups[", ".join(names)] = comparisons[0] if len(names) == 1 else comparisons
    plots = []
    for measure in _DRAWN:
        title = f"{COMPARED[measure].label} before and after tuning"
        plots.append(page_figures.Plot(figures.models(groups, measure=measure), title, _CAPTION))
    return plots


_CAPTION = (
    "A panel for each study, on the same axes. Each pair of bars is a language, before and after tuning. The thin line "
    "is the 95 % interval of the change; where studies differ in their seed alone, it goes from the least to the "
    "greatest."
)


def _by_language(studies: Mapping[str, StudyResults], codes: Sequence[str]) -> str:
    compared = {name: results.comparison for name, results in studies.items() if results.comparison is not None}
    rows = [[language_name(code), *(_sides(comparison, code) for comparison in compared.values())] for code in codes]
    table = scrolling("Average toxicity, before → after tuning", ["Language", *map(escaped, compared)], rows, codes)
    return f"<details><summary>The numbers, language by language</summary>{table}</details>" if compared else ""


def _sides(comparison: Comparison, code: str) -> str:
    if code not in comparison.before:
        return "–"
    return both(comparison.before[code].average_toxicity, comparison.after[code].average_toxicity)


def _main_lines(studies: Mapping[str, StudyResults], width: int) -> list[str]:
    """Return the main figures, a line for each, with the studies by number."""
    cell = max(min((width - 26) // len(studies), 20), 7)
    columns = [[provenance.model_name(results), *_figures(results)] for results in studies.values()]
    lines = [" " * 26 + "".join(f"{place:>{cell}}" for place in range(1, len(studies) + 1))]
    for heading, *cells in zip(("Model", *_HEADINGS), *columns, strict=True):
        if any(text != "–" for text in cells):
            lines.append(f"{heading:<26}" + "".join(f"{in_ascii(text)[: cell - 1]:>{cell}}" for text in cells))
    return lines


def _verdict_lines(studies: Mapping[str, StudyResults], width: int) -> list[str]:
    """Return each claim with the verdicts of the studies, by number, before it."""
    cell = min(_VERDICT, max((width - 30) // len(studies), 6))
    lines = ["".join(f"{place:<{cell}}" for place in range(1, len(studies) + 1)).rstrip()]
    for claim, found in _claims(studies).items():
        title = "".join(f"{found.get(name, '-')[: cell - 1]:<{cell}}" for name in studies)
        columns, indent = max(width, len(title) + 20), " " * len(title)
        lines.append(textwrap.fill(in_ascii(claim), columns, initial_indent=title, subsequent_indent=indent))
    return lines if len(lines) > 1 else []
