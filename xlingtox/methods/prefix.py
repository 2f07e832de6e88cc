"""Prefix: clean sentences that the model reads before every text, as the trivial baseline."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Dial, Fitted, Method
from xlingtox.models.hooked import HookedLM

N_SENTENCES = 3
"""The most sentences in a prefix that is drawn."""


@checked
@dataclass(frozen=True)
class Prefix(Method):
    """Let the model read some clean text before every text. Weights and activations are left alone.

    Whatever a method does must be more than this does. The prefix is in the language of the labelled sentences, also
    before texts in other languages. It is there or not, so the dial is a switch.

    Attributes:
        text: the prefix, with the space or the line end after it; None for up to three clean sentences, each on a line.
            They are drawn by chance, and take at most a third of the model's context.

    Example:
        >>> fitted = xt.methods.Prefix().fit(lm, xt.mini.labelled("en", n=200), progress=False)
        >>> polite = fitted.at(1.0)
        >>> polite.n_positions < lm.n_positions, polite.prefix.text.count("\\n")
        (True, 2)
        >>> fitted.at(0.0) is lm
        True
    """

    text: str | None = None
    name: str = field(default="polite prefix", kw_only=True)
    citation: str = field(default="this library", kw_only=True)
    dial: Dial = field(default="switch", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        """Draw the sentences, unless the prefix is given.

        Raises:
            ValueError: as in `Method.fit`. The prefix is blank or leaves no room for texts. The model has a prefix
                already, is under an edit, or was given as a TransformerLens model.
        """
        examples = Examples.of(labelled)
        lm.check_unedited("would not act behind the prefix")
        text = drawn(lm, examples.clean, seed=seed) if self.text is None else self.text
        prefixed = lm.prefixed(text)
        return Fitted.of(self, lambda strength: prefixed if strength else lm)


def drawn(lm: HookedLM, sentences: tuple[str, ...], *, seed: int) -> str:
    """Return a prefix of up to three sentences, drawn by chance, in a third of the model's context."""
    lines = [f"{sentence.strip()}\n" for sentence in sentences]
    sizes = dict(zip(lines, map(len, lm.token_ids(lines)), strict=True))
    room, chosen = lm.n_positions // 3, list[str]()
    for line in random.Random(seed).sample(lines, len(lines)):
        if len(chosen) < N_SENTENCES and sizes[line] <= room:
            chosen.append(line)
            room -= sizes[line]
    # Where every sentence is too long, `prefixed` refuses the shortest if it leaves no room at all.
    return "".join(chosen) or min(lines, key=sizes.__getitem__)
