"""Shape: what two models must share, so that their neurons and tokens correspond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes and the vocabulary of a model. It holds no model, so that two need not be in memory to be checked.

    Attributes:
        sizes: the number of layers, the neurons per layer, the width of the residual stream.
        gated: whether the MLPs are gated.
        vocabulary: the tokenizer's tokens and their numbers.
        shown: the model in words, for messages.

    Example:
        >>> lm.shape().sizes
        (4, 512, 128)
        >>> lm.shape().check_alike(lm.shape())
    """

    sizes: tuple[int, int, int]
    gated: bool
    vocabulary: Mapping[str, int]
    shown: str

    def check_alike(self, other: Shape) -> None:
        """Raise ValueError unless both have the same sizes and vocabulary."""
        if self.sizes != other.sizes:
            raise ValueError(f"the models differ in shape: {self.shown} and {other.shown}")
        if self.gated != other.gated:
            gated = self if self.gated else other
            raise ValueError(f"the models differ in shape: only the MLPs of {gated.shown} are gated")
        if self.vocabulary != other.vocabulary:
            raise ValueError("the models differ in their tokenizers' vocabularies")
