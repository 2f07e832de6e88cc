"""The parts that the page of one study and the page of several share: sections, warnings, sentences and the menu."""

from __future__ import annotations

from collections.abc import Sequence

from xlingtox.html.escaping import escaped
from xlingtox.html.tables import language_name
from xlingtox.study.finding import Finding


def section(title: str, content: str) -> str:
    """Return a section with a heading; "" where it has no content."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def warnings(sentences: Sequence[str]) -> str:
    """Return the warnings about figures that cannot carry a finding, in a box; "" where there are none."""
    items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings" role="note"><h2>Read this first</h2><ul>{items}</ul></section>' if items else ""


def sentence(finding: Finding, *, first: int = 0) -> str:
    """Return the sentence of a finding with its stressed parts in bold, from the end of the `first` ones on."""
    html, end = "", finding.stressed[first - 1][1] if first else 0
    for begin, next_end in finding.stressed[first:]:
        part = finding[begin:next_end]
        is_verdict = bool(finding.verdict) and part == f"{finding.verdict.capitalize()}."
        bold = verdict_word(finding.verdict, part) if is_verdict else f"<b>{escaped(part)}</b>"
        html += escaped(finding[end:begin]) + bold
        end = next_end
    return (html + escaped(finding[end:])).strip()


def verdict_word(verdict: str, word: str = "") -> str:
    """Return a verdict as HTML with a colour of its own; `word` is how it is written, if not as it is."""
    return f'<b class="{verdict.replace(" ", "-")}">{word or verdict}</b>'


def menu(codes: Sequence[str], *, has_words: bool) -> str:
    """Return the controls with which a reader chooses languages and shows toxic words; "" where there is no choice."""
    boxes = "".join(
        f'<label><input type="checkbox" name="language" value="{escaped(code)}" checked> {language_name(code)}</label>'
        for code in codes
    )
    choice = (
        '<details><summary>Languages: <span id="shown" role="status">'
        f"all {len(codes)}</span></summary><fieldset><legend>Languages in figures, tables and samples</legend>"
        '<p><button type="button" id="all">All</button> <button type="button" id="none">None</button></p>'
        f'<div class="boxes">{boxes}</div></fieldset></details>'
    )
    unmask = '<button type="button" id="unmask" data-shown="false">Show toxic words</button>'
    parts = (choice if len(codes) > 1 else "") + (unmask if has_words else "")
    return f'<section class="menu" aria-label="What is shown">{parts}</section>' if parts else ""
