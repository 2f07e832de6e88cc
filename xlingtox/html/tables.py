"""Small tables as HTML, for notebooks and for the report: every cell is HTML already, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from xlingtox import languages
from xlingtox.html.escaping import escaped

_LEFT = ' style="text-align: left"'


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], codes: Sequence[str] | None = None
) -> str:
    """A table with a caption; the first cell of a row names it.

    Args:
        codes: the language of each row, by which a page may filter them.
    """
    # A notebook sets every cell to the right, where only numbers belong.
    sides = ["" if i and _numbers(row[i] for row in rows) else _LEFT for i in range(len(columns))]
    head = "".join(f'<th scope="col"{side}>{column}</th>' for side, column in zip(sides, columns, strict=True))
    marks = [""] * len(rows) if codes is None else [f' data-language="{escaped(code)}"' for code in codes]
    body = "".join(
        f'<tr{mark}><th scope="row"{_LEFT}>{row[0]}</th>'
        + "".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides[1:], row[1:], strict=True))
        + "</tr>"
        for mark, row in zip(marks, rows, strict=True)
    )
    named = f"<caption{_LEFT}><span>{caption}</span></caption>"
    return f"<table>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _numbers(cells: Iterable[str]) -> bool:
    """Whether each begins as a number does, or is none for want of one."""
    return all(cell[:1].isdigit() or cell[:1] in "−+–" or cell == "not defined" for cell in cells)


def scrolling(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], codes: Sequence[str] | None = None
) -> str:
    """A table that scrolls by itself where the page is narrow, with the keyboard too."""
    inner = table(caption, columns, rows, codes)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{caption}">{inner}</div>'


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "not defined"
    return f"{value:{'+' if signed else ''}z.{digits}f}".replace("-", "−")


def percent(value: float, signed: bool = False, digits: int = 0) -> str:
    return f"{number(100 * value, digits, signed)}\u00a0%" if math.isfinite(value) else "not defined"


def both(before: float, after: float, digits: int = 3) -> str:
    return f"{number(before, digits)}\u00a0→ {number(after, digits)}"


def language_name(code: str) -> str:
    return escaped(languages.name(code))


def in_language(code: str) -> str:
    """Attributes that tell a browser and a screen reader the language and its direction."""
    return f' lang="{escaped(code)}" dir="{"rtl" if code == "ar" else "ltr"}"'


def shortened(text: str, most: int = 80) -> str:
    """A text of at most `most` characters, escaped."""
    return escaped(text if len(text) <= most else text[: most - 1] + "…")
