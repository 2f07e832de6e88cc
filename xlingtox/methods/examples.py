"""Examples: the toxic and the clean sentences that a method is fitted on."""

from __future__ import annotations

from dataclasses import dataclass

from xlingtox.checking import checked
from xlingtox.data.columns import PAIR_FIELDS, Labelled, PreferencePairs, check_pairs, labelled_texts
from xlingtox.data.tabular import column_names, columns


@checked
@dataclass(frozen=True)
class Examples:
    """The sentences of a table of labelled sentences or of preference pairs.

    Attributes:
        toxic, clean: the sentences of label 1 and of label 0. Of pairs, the prompt followed by the rejected side, and
            the prompt followed by the chosen side.
        paired: whether `toxic[i]` and `clean[i]` belong together.

    Example:
        >>> from xlingtox.methods.examples import Examples
        >>> examples = Examples.of(xt.mini.labelled("en", n=100))
        >>> len(examples.toxic) + len(examples.clean), examples.paired
        (100, False)
        >>> Examples.of(xt.mini.pairs("en", n=10)).paired
        True
    """

    toxic: tuple[str, ...]
    clean: tuple[str, ...]
    paired: bool

    @classmethod
    @checked
    def of(cls, labelled: Labelled | PreferencePairs) -> Examples:
        """Read a table of labelled sentences, or of pairs.

        Raises:
            ValueError: the table lacks a column, or has sentences of one label only.
        """
        if "chosen" in (column_names(labelled) or ()):
            pairs = columns(check_pairs(labelled), PAIR_FIELDS, "preference pairs")
            toxic, clean = (
                tuple(prompt + answer for prompt, answer in zip(pairs["prompt"], pairs[side], strict=True))
                for side in ("rejected", "chosen")
            )
            return cls(toxic, clean, paired=True)
        texts, labels = labelled_texts(labelled)
        toxic, clean = (
            tuple(text for text, label in zip(texts, labels, strict=True) if label == kind) for kind in (1, 0)
        )
        return cls(toxic, clean, paired=False)

    def labelled(self) -> list[dict[str, str | int]]:
        """Return the sentences as a table with the columns `text, label`, the toxic ones first."""
        sides = ((1, self.toxic), (0, self.clean))
        return [{"text": text, "label": label} for label, texts in sides for text in texts]
