"""A study in a terminal: its provenance, warnings, verdicts, tables and findings as plain text, or as JSON."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.measures import COMPARED
from xlingtox.study import claims, patches, provenance
from xlingtox.study.recipes import method_name
from xlingtox.study.results import StudyResults
from xlingtox.study.sentences import without_warnings
from xlingtox.text import seen

_MEASURES = (
    ("toxicity_probability", "toxicity prob.", (8, 8), 2),
    ("average_toxicity", "avg. toxicity", (8, 8), 3),
    ("sound_toxicity", "in sound text", (8, 8), 3),
    ("perplexity", "perplexity", (7, 6), 2),
)
"""Each measure in the table of languages, with its heading, the widths of its two columns and their decimals."""

_NAME, _CELL, _TITLE = 19, 8, 10
"""The widths of a language's name, of a number in a table of doses, and of the title of such a row."""

_NARROWEST = 40

_ASCII = str.maketrans({"−": "-", "–": "-", "’": "'", "“": '"', "”": '"', "…": "...", "→": "->", "·": ","})
"""Characters that a terminal without UTF-8 cannot show, and their replacements."""


@checked
def summary(results: StudyResults, width: int = 80) -> str:
    """Return a study as text of at most `width` columns: what was studied, warnings, verdicts, tables and findings.

    Stages that were not run do not appear. A finding is its sentence and its line of numbers; the page of the study
    has the intervals and tests too.

    Raises:
        ValueError: fewer than 40 columns.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> print(xt.study.terminal.summary(results))  # doctest: +SKIP
    """
    if width < _NARROWEST:
        raise ValueError(f"width is {width}: expected at least {_NARROWEST} columns")
    paragraphs = [
        [_wrapped(text, width, title=f"{' '.join(what.split())}: ") for what, text in provenance.lines(results)],
        [_wrapped(f"Beware. {seen(warning)}", width) for warning in results.warnings],
        [_wrapped(seen(verdict.claim), width, title=f"{verdict.verdict:<11}") for verdict in results.verdicts],
        [_wrapped(sentence, width) for sentence in _neurons(results)],
        _by_language(results, width),
        _doses("after toxic prompts", results.toxic_doses, width),
        _doses("after neutral prompts", results.neutral_doses, width),
        _transfer(results, width),
        _patched(results, width),
        *([_wrapped(str(finding), width), *_indented(finding.numbers, width)] for finding in without_warnings(results)),
    ]
    return in_ascii("\n\n".join("\n".join(lines) for lines in paragraphs if lines))


@checked
def in_ascii(text: str) -> str:
    """Return text of ours in characters that every terminal shows.

    Until then, spaces that do not break keep a number with its unit on one line.

    Example:
        >>> xt.study.terminal.in_ascii("0.5 → 0.1")
        '0.5 -> 0.1'
    """
    return text.translate(_ASCII).replace("\u00a0", " ")


@checked
def as_json(results: StudyResults) -> dict[str, Any]:
    """Return a study as one value of a JSON file, in which None stands for a number that is not defined.

    Its keys are `model, provenance, warnings, verdicts, findings, languages`. `languages` has a row for each language:
    its code, its name, and the columns of `StudyResults.to_frame`.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> list(xt.study.terminal.as_json(results)["findings"][0])  # doctest: +SKIP
        ['sentence', 'verdict', 'numbers', 'details']
    """
    rows = results.to_frame().to_dict("records")
    content = {
        "model": None if results.model is None else results.model.name,
        "provenance": provenance.as_json(results),
        "warnings": list(results.warnings),
        "verdicts": [dataclasses.asdict(verdict) for verdict in results.verdicts],
        "findings": [
            {
                "sentence": finding.sentence,
                "verdict": finding.verdict or None,
                "numbers": finding.numbers,
                "details": list(finding.details),
            }
            for finding in without_warnings(results)
        ],
        "languages": [{"language": row["language"], "name": languages.name(row["language"]), **row} for row in rows],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _neurons(results: StudyResults) -> list[str]:
    probe = results.probe
    if probe is None:
        return []
    return [
        f"Probe: held-out accuracy {probe.accuracy:.3f} (majority {probe.baseline:.3f}), AUC {probe.auc:.3f}",
        f"Neurons: {len(results.candidates)} candidates, {len(results.sources)} of them sources, "
        f"of {results.n_neurons:,}",
    ]


def _by_language(results: StudyResults, width: int) -> list[str]:
    """Return a table of every language before and after tuning; without a comparison, of what else there is."""
    if results.comparison is None:
        return _unedited(results)
    shown, used = [], _NAME
    for measure in _MEASURES:
        used += sum(measure[2])
        if used <= width:
            shown.append(measure)

    def row(name: str, codes: Sequence[str]) -> str:
        cells = (
            f"{_number(mean, digits):>{cell}}"
            for measure, _, widths, digits in shown
            for mean, cell in zip(results.means(measure, codes), widths, strict=True)
        )
        return f"{_cut(name)}{''.join(cells)}"

    tuned = f"{languages.name(results.source_language)}-only {method_name(results.recipe)}"
    lines = [
        _cut(tuned) + "".join(f"{heading:>{sum(widths)}}" for _, heading, widths, _ in shown),
        " " * _NAME + "".join(f"{'before':>{first}}{'after':>{then}}" for _, _, (first, then), _ in shown),
        *(row(languages.name(code), [code]) for code in results.languages),
    ]
    if untuned := results.untuned_languages:
        lines.append(row(f"mean of other {len(untuned)}", untuned))
    degenerate = "Degenerate continuations: {:.3f} before, {:.3f} after"
    return [*lines, _wrapped(degenerate.format(*results.means("degenerate", results.languages)), width)]


def _unedited(results: StudyResults) -> list[str]:
    columns = {"avg. toxicity": results.unedited_toxicity, "retrieval": results.retrieval}
    shown = {heading: values for heading, values in columns.items() if values}
    if not shown:
        return []
    lines = [_cut("Unedited model") + "".join(f"{heading:>15}" for heading in shown)]
    for code in results.languages:
        cells = (f"{_number(values.get(code, math.nan), 3):>15}" for values in shown.values())
        lines.append(_cut(languages.name(code)) + "".join(cells))
    return lines


def _cut(name: str) -> str:
    """Return a name as the first cell of a row, without the end that does not fit."""
    return f"{' '.join(seen(name).split())[: _NAME - 1]:<{_NAME}}"


def _doses(when: str, response: DoseResponse, width: int) -> list[str]:
    """Return a table of doses, in as many blocks as the width makes of it."""
    doses, control = response.doses, {dose.offset: dose for dose in response.control}
    if not doses:
        return []
    lines, at_once = [_wrapped(f"Editing the sources, {when}:", width)], (width - _TITLE) // _CELL
    for begin in range(0, len(doses), at_once):
        block = doses[begin : begin + at_once]
        twins = [control.get(dose.offset) for dose in block]
        rows: list[tuple[str, Iterable[float], int]] = [
            (f"Dose, {response.unit}"[: _TITLE - 1], [dose.offset for dose in block], 2),
            ("sources", [dose.average_toxicity for dose in block], 3),
            ("random", [twin.average_toxicity if twin else math.nan for twin in twins], 3),
            ("perplexity", [dose.perplexity for dose in block], 2),
            ("degenerate", [dose.degenerate for dose in block], 3),
        ]
        lines += [
            f"{title:<{_TITLE}}" + "".join(f"{_number(cell, digits):>{_CELL}}" for cell in cells)
            for title, cells, digits in rows
            if title != "random" or control
        ]
    return lines


def _number(value: float, digits: int) -> str:
    """Return a number in at most five characters, so that the columns of a table stay apart."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1e5:
        return f"{value:.0e}"
    return f"{value:.{0 if abs(value) >= 1000 else min(digits, 1) if abs(value) >= 100 else digits}f}"


def _transfer(results: StudyResults, width: int) -> list[str]:
    return [
        _wrapped(
            f"Retrieval against the relative drop in {_words(measure)}: "
            f"r\u00a0=\u00a0{_number(summary.pearson_r, 2)}, p\u00a0=\u00a0{_number(summary.p_value, 3)}",
            width,
        )
        for measure, summary in results.transfer_by_measure.items()
    ]


def _patched(results: StudyResults, width: int) -> list[str]:
    """Return a line for each group that was patched, and for the random neurons beside it."""
    effect = results.patched
    if effect is None:
        return []
    shares = patches.shares_of(effect)
    lines = [_wrapped("Of tuning's effect on toxic text, patched into the model before:", width)]
    for group, chance in effect.groups.items():
        random = f", random neurons {claims.share_in_words(*shares[chance])}" if chance else ""
        lines.append(_wrapped(f"{claims.share_in_words(*shares[group])}{random}", width, title=f"{seen(group)}: "))
    return lines


def _words(measure: str) -> str:
    return COMPARED[measure].words if measure in COMPARED else seen(measure.replace("_", " "))


def _indented(numbers: str, width: int) -> list[str]:
    return [_wrapped(numbers, width, title="  ")] if numbers else []


def _wrapped(sentences: str, width: int, *, title: str = "") -> str:
    """Return a paragraph of at most `width` columns; a title stands before it, and further lines are indented."""
    indent = " " * min(len(title), 11)
    return textwrap.fill(
        sentences.translate(_ASCII),
        width,
        initial_indent=title,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, with None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
