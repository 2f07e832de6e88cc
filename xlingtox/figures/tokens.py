"""Token views: text coloured by the activations at each token (with CircuitsVis), and the most activating tokens."""

from __future__ import annotations

import html
import math
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import circuitsvis
import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.figures.style import limit, neuron_labels
from xlingtox.html import pages, tables
from xlingtox.html.escaping import escaped, escaped_for_plotly
from xlingtox.neurons.token_activations import TokenActivations

_NEGATIVE, _POSITIVE = "#AF8DC3", "#7FBF7B"
"""The colours of the heat maps, light enough for dark letters to be read on them."""

_LEGEND = (
    f'<p class="key"><span style="background: {_NEGATIVE}"></span> below zero '
    f'<span style="background: {_POSITIVE}"></span> above zero; full colour at <b id="limit"></b>, white at 0</p>'
)
_NARROW_WIDTH, _WIDE_WIDTH, _LINE_HEIGHT = 390, 1000, 29
"""The width of a narrow page, the width of a wide page, and the height of a line, in pixels."""


@checked
@dataclass(frozen=True)
class TokenView:
    """An HTML page that shows tokens. A notebook shows it in a sandboxed frame.

    Attributes:
        html: the whole page, which loads nothing from elsewhere.
        height: the frame's height on a wide page, in pixels.
        narrow: the frame's height on a telephone (default: `height`). On a page of a width in between, the height is in
            between too.

    Example:
        >>> view = xt.plot(xt.read_tokens(lm, prompts, sources, max_new_tokens=4, progress=False)[0])
        >>> view.save(tmp_path / "view.html")
        >>> (tmp_path / "view.html").read_text("utf-8").startswith("<!DOCTYPE html>")
        True
    """

    html: str = field(repr=False)
    height: int
    narrow: int | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        tall = f"{self.height}px"
        if self.narrow is not None and self.narrow > self.height:
            slope = (self.narrow - self.height) / (_WIDE_WIDTH - _NARROW_WIDTH)
            tall = f"clamp({tall}, calc({self.narrow}px - {slope:.3f} * (100vw - {_NARROW_WIDTH}px)), {self.narrow}px)"
        return (
            f'<iframe title="Token view" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width: 100%; height: {tall}; border: 0"></iframe>'
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write the page as an HTML file."""
        files.write_text(path, self.html)


@checked
def token_activations(before: TokenActivations, after: TokenActivations | None = None) -> TokenView:
    """Colour a text by a neuron's activation at each token, with a menu of the neurons, before and after side by side.

    Green is above zero and purple below. For each neuron, both sides have the same scale of colours. Ends of lines are
    shown as ↵ and tabs as ⇥.

    Args:
        before: one text with its activations; it is shown alone if there is no `after`.
        after: the same prompt in the tuned or edited model.

    Raises:
        ValueError: no neurons, or two sides that differ in their neurons or their prompt.

    Example:
        >>> readings = xt.read_tokens(lm, prompts, sources, max_new_tokens=4, progress=False)
        >>> xt.figures.token_activations(readings[0])
        TokenView(height=...)
    """
    sides = [before] if after is None else [before, after]
    if not before.neurons:
        raise ValueError("no neurons to draw")
    for name, part_of in (("neurons", lambda side: side.neurons.neurons), ("prompt", _prompt)):
        if part_of(sides[-1]) != part_of(before):
            raise ValueError(f"before and after differ in their {name}: read the same text and neurons in both models")
    texts: list[dict[str, object]] = []
    shown = []
    for side, name in zip(sides, ("Before", "After") if after else ("",), strict=True):
        parts = []
        for label, part in (("Prompt", slice(0, side.n_prompt)), ("Continuation", slice(side.n_prompt, None))):
            if not side.pieces[part]:
                continue
            # CircuitsVis reads tokens as HTML, and breaks a line at a space only after a zero-width space.
            tokens = [escaped_for_plotly(_visible(piece)).replace(" ", "\u200b ") for piece in side.pieces[part]]
            where = f'id="text-{len(texts)}" class="text"{tables.in_language(side.language)}'
            parts.append(f"<p>{label}, {tables.language_name(side.language)}</p><div {where}></div>")
            values = [[round(value, 3) for value in row] for row in side.values[part].tolist()]
            texts.append({"tokens": tokens, "values": values})
        title = f"{name}: {escaped(side.model)}" if name else escaped(side.model)
        shown.append(f"<div><h2>{title}</h2>{''.join(parts)}</div>")
    labels = enumerate(neuron_labels(before.neurons))
    menu = "".join(f'<option value="{i}">{label}</option>' for i, label in labels)
    body = (
        '<main><h1 class="unseen">Activations by token</h1>'
        f'<label>Neuron <select id="neuron">{menu}</select></label> {_LEGEND}'
        f'<div class="sides">{"".join(shown)}</div></main>'
    )
    data = {
        "texts": texts,
        "limits": [
            limit(value for side in sides for value in side.values[:, column].tolist())
            for column in range(len(before.neurons))
        ],
        "negative": _NEGATIVE,
        "positive": _POSITIVE,
    }
    library = Path(circuitsvis.__file__).with_name("dist") / "cdn" / "iife.js"
    page = pages.document("Activations by token", body, "tokens", data, libraries=[library.read_text("utf-8")])
    # A wide page has room for some eighty letters, or for forty twice. On a telephone one side stands below the other.
    wide = max(_lines(side, 80 // len(sides)) for side in sides)
    narrow = sum(_lines(side, 40) for side in sides)
    return TokenView(page, 130 + _LINE_HEIGHT * wide, 150 + _LINE_HEIGHT * narrow + 30 * (len(sides) - 1))


def _visible(piece: str) -> str:
    """Replace ends of lines and tabs, which cannot be seen, by signs."""
    return piece.replace("\r\n", "↵").replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")


def _lines(side: TokenActivations, letters: int) -> int:
    """Count the lines of the prompt and of the continuation, with one line for the label above each.

    East Asian wide letters count twice.
    """
    lines = 0
    for pieces in (side.pieces[: side.n_prompt], side.pieces[side.n_prompt :]):
        width = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for piece in pieces for letter in piece)
        lines += math.ceil(width / letters) + 1 if pieces else 0
    return lines


def _prompt(side: TokenActivations) -> tuple[str, ...]:
    return side.pieces[: side.n_prompt]


@checked
def top_tokens(table: pd.DataFrame) -> TokenView:
    """Show the tokens on which each neuron is most active, with a row for each neuron and a column for each language.

    Args:
        table: as `xt.top_tokens` gives it; the text before a token is shown on hover.

    Raises:
        ValueError: a column is missing, or there are no rows.

    Example:
        >>> readings = xt.read_tokens(lm, prompts, sources, max_new_tokens=4, progress=False)
        >>> xt.figures.top_tokens(xt.top_tokens(readings, k=3))
        TokenView(height=...)
    """
    required = ["layer", "index", "language", "token", "context", "activation"]
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: expected that of xt.top_tokens")
    if table.empty:
        raise ValueError("no tokens to draw: the table is empty")
    codes = languages.in_order(table["language"])
    neurons = list(dict.fromkeys(zip(table["layer"], table["index"], strict=True)))
    cells: dict[tuple[tuple[int, int], str], list[str]] = {}
    for layer, index, code, token, context, activation in table[required].itertuples(index=False):
        shown = f'<bdi{tables.in_language(code)} title="{escaped(context[-60:])}">{escaped(_visible(token))}</bdi>'
        cells.setdefault(((layer, index), code), []).append(f"{shown} <small>{tables.number(activation, 2)}</small>")
    rows = [
        [label, *("<br>".join(cells.get((neuron, code), ["–"])) for code in codes)]
        for label, neuron in zip(neuron_labels(neurons), neurons, strict=True)
    ]
    columns = ["Neuron", *map(tables.language_name, codes)]
    title = "Top activating tokens"
    body = f'<main><h1 class="unseen">{title}</h1>{tables.scrolling(title, columns, rows)}</main>'
    deepest = max(map(len, cells.values()))
    return TokenView(pages.document(title, body, "tokens"), min(700, 90 + 24 * deepest * len(rows)))
