"""Small HTML tables for notebooks and reports.

Captions and cells are HTML already: escape their text first. The helpers below return escaped text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from xlingtox import languages
from xlingtox.html.escaping import escaped

_LEFT = ' style="text-align: left"'


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], codes: Sequence[str] | None = None
) -> str:
    """Return a table with a caption, in which the first cell of each row is its heading.

    Args:
        caption: the caption, as HTML.
        columns: the heading of each column, as HTML.
        rows: the cells of each row, as HTML.
        codes: the language of each row, so that a page can filter rows by language.

    Example:
        >>> from xlingtox.html import tables
        >>> tables.table("Toxicity", ["Language", "Before"], [["English", tables.number(0.25)]])
        '<table><caption...<td>0.250</td></tr></tbody></table>'
    """
    # Notebooks align every cell to the right. Only numbers belong there.
    sides = ["" if i and _numbers(row[i] for row in rows) else _LEFT for i in range(len(columns))]
    head = "".join(f'<th scope="col"{side}>{column}</th>' for side, column in zip(sides, columns, strict=True))
    marks = [""] * len(rows) if codes is None else [f' data-language="{escaped(code)}"' for code in codes]
    body = "".join(
        f'<tr{mark}><th scope="row"{_LEFT}>{row[0]}</th>'
        + "".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides[1:], row[1:], strict=True))
        + "</tr>"
        for mark, row in zip(marks, rows, strict=True)
    )
    heading = f"<caption{_LEFT}><span>{caption}</span></caption>"
    return f"<table>{heading}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def warnings(sentences: Iterable[str]) -> str:
    """Return a paragraph for each warning, to be shown before the table that it is about.

    Example:
        >>> from xlingtox.html import tables
        >>> tables.warnings(["Perplexity doubled."])
        '<p class="warning" role="note"><b>Warning.</b> Perplexity doubled.</p>'
    """
    return "".join(f'<p class="warning" role="note"><b>Warning.</b> {escaped(sentence)}</p>' for sentence in sentences)


def _numbers(cells: Iterable[str]) -> bool:
    """Return whether each cell begins like a number, or is "not defined"."""
    return all(cell[:1].isdigit() or cell[:1] in "−+–" or cell == "not defined" for cell in cells)


def scrolling(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], codes: Sequence[str] | None = None
) -> str:
    """Return a `table` that scrolls sideways on a narrow page, also with the keyboard."""
    inner = table(caption, columns, rows, codes)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{caption}">{inner}</div>'


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """Return a number with a fixed count of decimals, or "not defined" where it is not finite."""
    if not math.isfinite(value):
        return "not defined"
    return f"{value:{'+' if signed else ''}z.{digits}f}".replace("-", "−")


def percent(value: float, signed: bool = False, digits: int = 0) -> str:
    """Return a share as a percentage, or "not defined" where it is not finite."""
    return f"{number(100 * value, digits, signed)}\u00a0%" if math.isfinite(value) else "not defined"


def both(before: float, after: float, digits: int = 3) -> str:
    """Return the numbers before and after, with an arrow between them."""
    return f"{number(before, digits)}\u00a0→ {number(after, digits)}"


def language_name(code: str) -> str:
    """Return a language's English name."""
    return escaped(languages.name(code))


def in_language(code: str) -> str:
    """Return the attributes that tell a browser and a screen reader the language and its direction.

    Example:
        >>> from xlingtox.html.tables import in_language
        >>> in_language("fa")
        ' lang="fa" dir="rtl"'
    """
    direction = "rtl" if code in languages.RIGHT_TO_LEFT else "ltr"
    return f' lang="{escaped(code)}" dir="{direction}"'


def shortened(text: str, most: int = 80) -> str:
    """Return the escaped text, cut to `most` characters."""
    return escaped(text if len(text) <= most else text[: most - 1] + "…")
