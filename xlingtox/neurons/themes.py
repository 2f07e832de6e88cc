"""Group neurons by the themes of the tokens that they promote: insults, threats, politics (paper, Tables 8 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import Neuron, NeuronSet
from xlingtox.text import appearance

_SHORTEST = 4
"""The fewest letters of a token that stands for a longer word."""

OTHER = "other"
"""The theme of the neurons that promote no word of any theme."""


@checked
def themes(
    neurons: NeuronSet,
    lm: HookedLM,
    themes: Mapping[str, Sequence[str]],
    *,
    k: int = 30,
    control: NeuronSet | None = None,
) -> pd.DataFrame:
    """Group neurons by the themes whose words their promoted tokens hold (paper, Tables 8 and 9).

    The paper's authors read the tokens and named the themes. Here the caller names them and lists their words, in any
    languages, so that the same count can be made of other neurons. Give `control`, such as
    `neurons.random_like(lm, seed=0)`: a theme that chance neurons hold as often says nothing about these.

    A token stands for a word if it is the word, or begins it with four letters or more and half of its letters: many
    words are several tokens. Case and surrounding blanks do not count.

    Args:
        themes: the words of each theme. A neuron may belong to several.
        k: how many of a neuron's promoted tokens are read; 30 in the paper.
        control: neurons whose groups are counted for comparison.

    Returns:
        One row for each theme, and last one for the neurons of no theme ("other"). `n_neurons` counts the neurons of
        the theme, `n_control` those of `control` (only with it), and `n_tokens` their promoted tokens that stand for
        its words. `neurons` lists them as `layer.index`, and `tokens` these tokens, the commonest first.

    Raises:
        ValueError: there is no theme, a theme has no words or is called "other", k is out of range, or a neuron is
            outside the model.

    Example:
        >>> table = xt.neurons.themes(sources, lm, xt.mini.themes(), control=sources.random_like(lm, seed=0))
        >>> table.columns.tolist()
        ['theme', 'n_neurons', 'n_control', 'n_tokens', 'neurons', 'tokens']
        >>> table.theme.tolist()
        ['insults', 'hostile acts', 'kind acts', 'good qualities', 'other']
    """
    if not themes:
        raise ValueError("there are no themes: expected a dict from theme to its words")
    if empty := [theme for theme, words in themes.items() if not any(word.strip() for word in words)]:
        raise ValueError(f"the theme {empty[0]!r:.60} has no words: expected at least one")
    if OTHER in themes:
        raise ValueError(f'a theme is called "{OTHER}", which is the name of the neurons of no theme: choose another')
    themes_by_text: dict[str, set[str]] = {}
    for theme, words in themes.items():
        for text in (text for word in words for text in _texts_for(word)):
            themes_by_text.setdefault(text, set()).add(theme)
    found = _grouped(neurons, lm, themes_by_text, k)
    control_found = None if control is None else _grouped(control, lm, themes_by_text, k)
    rows = []
    for theme in (*themes, OTHER):
        members = found.get(theme, {})
        tokens = pd.Series([token for held in members.values() for token in held], dtype=object)
        row = {"theme": theme, "n_neurons": len(members)}
        row |= {} if control_found is None else {"n_control": len(control_found.get(theme, {}))}
        names = [f"{layer}.{index}" for layer, index in members]
        # Counts are sorted by a stable sort, so that ties stay in the order of the neurons.
        commonest = tokens.value_counts(sort=False).sort_values(ascending=False, kind="stable").index.tolist()
        rows.append(row | {"n_tokens": len(tokens), "neurons": names, "tokens": commonest})
    return pd.DataFrame(rows)


def _texts_for(word: str) -> set[str]:
    """Return the texts of tokens that stand for a word."""
    whole = _compared(word)
    fewest = max(_SHORTEST, (len(whole) + 1) // 2)
    return {whole} | {whole[:n] for n in range(fewest, len(whole))} if whole else set()


def _compared(text: str) -> str:
    return appearance(text).casefold()


def _grouped(
    neurons: NeuronSet, lm: HookedLM, themes_by_text: Mapping[str, set[str]], k: int
) -> dict[str, dict[Neuron, list[str]]]:
    """Return the neurons of each theme, with the tokens for which they are there; those of no theme have no tokens."""
    groups: dict[str, dict[Neuron, list[str]]] = {}
    table = neurons.promoted_tokens(lm, k=k)
    placed: set[Neuron] = set()
    for layer, index, token in zip(table["layer"], table["index"], table["token"], strict=True):
        for theme in themes_by_text.get(_compared(token), ()):
            groups.setdefault(theme, {}).setdefault((layer, index), []).append(token.strip())
            placed.add((layer, index))
    groups[OTHER] = {neuron: [] for neuron in neurons if neuron not in placed}
    return groups
