"""Nucleus sampling with random numbers that are drawn before, so that a text does not depend on its batch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_NUCLEUS_GUESS = 64
"""The number of likeliest tokens that are looked at first. Most often they hold the whole nucleus."""

_TRIES = 5
"""Uniform numbers per token. All but the last are tried on the unsorted vocabulary, because sorting it is slow."""

_CHUNK_LOGITS = 2**19
"""The number of logits that a CPU handles at a time, so that they stay in its cache."""


def chances(texts: Sequence[str], samples: Sequence[int], steps: int, seed: int) -> Float[Tensor, "row step try"]:
    """Draw uniform numbers in [0, 1) that depend only on the prompt's text, the sample, the step and the seed.

    Args:
        samples: the numbers of the samples that the draws are for.
    """
    n_samples = max(samples) + 1
    seeds = [[seed, zlib.crc32(text.encode("utf-8", "surrogatepass"))] for text in texts]
    # Two streams of random numbers. In each, those of a sample do not depend on how many samples come after it.
    first = [np.random.default_rng(words).random((n_samples, steps, 1))[samples] for words in seeds]
    rest = [np.random.default_rng([*words, 1]).random((n_samples, steps, _TRIES - 1))[samples] for words in seeds]
    return torch.from_numpy(np.concatenate([np.concatenate(first), np.concatenate(rest)], -1))


class Sampler:
    """Picks tokens from the exact nucleus, with uniform numbers that were drawn before.

    The nucleus is the smallest set of likeliest tokens that holds `top_p` of the probability. Of equally likely tokens
    at its edge, it holds only as many as are needed.
    """

    def __init__(self, chance: Float[Tensor, "row step try"], temperature: float, top_p: float) -> None:
        self.chance, self.temperature, self.top_p = chance, temperature, top_p

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        chance = self.chance[rows, step]
        # On a CPU, a chunk of rows at a time stays in the cache, and reuses memory that is already allocated.
        chunk = len(rows) if logits.is_cuda else max(1, _CHUNK_LOGITS // logits.shape[-1])
        starts = range(0, len(logits), chunk)
        return torch.cat([self._chosen(logits[i : i + chunk], chance[i : i + chunk]) for i in starts])

    def _chosen(self, logits: Tensor, chance: Tensor) -> Tensor:
        """Choose one token for each row."""
        mass = (logits.float() / self.temperature).softmax(-1)
        top, ids = mass.topk(min(_NUCLEUS_GUESS, mass.shape[-1]))
        chosen = self._draw(top.double(), ids, chance[:, :1])
        # Where the likeliest tokens do not hold the whole nucleus, draw the row again from the whole vocabulary.
        short = top.sum(-1) < self.top_p
        if top.shape[-1] < mass.shape[-1] and bool(short.any()):
            chosen[short] = self._draw_from_all(mass[short], chance[short])
        return chosen

    def _draw(self, mass: Tensor, ids: Tensor, chance: Tensor) -> Tensor:
        """Draw tokens from probabilities in descending order, which hold the whole nucleus."""
        nucleus = torch.where(mass.cumsum(-1) - mass < self.top_p, mass, 0.0)
        reached = nucleus.cumsum(-1)
        place = (reached <= chance * reached[:, -1:]).sum(-1, keepdim=True)
        last = (nucleus > 0).sum(-1, keepdim=True) - 1
        return ids.gather(-1, place.minimum(last)).squeeze(-1)

    def _draw_from_all(self, mass: Tensor, chance: Tensor) -> Tensor:
        """Draw from the whole vocabulary until a token is in the nucleus. Sort only for rows where no try succeeds."""
        reached = mass.cumsum(-1, dtype=torch.float64)
        numbers = torch.arange(mass.shape[-1], device=mass.device)
        chosen = torch.empty_like(mass[:, 0], dtype=torch.long)
        undecided = torch.arange(len(mass), device=mass.device)
        for i in range(chance.shape[-1] - 1):
            row_mass, up_to = mass[undecided], reached[undecided]
            token = torch.searchsorted(up_to, chance[undecided, i : i + 1] * up_to[:, -1:], right=True)
            token = token.clamp(max=mass.shape[-1] - 1)
            likely = row_mass.gather(-1, token)
            before = (row_mass > likely) | ((row_mass == likely) & (numbers < token))
            inside = torch.where(before, row_mass, 0.0).sum(-1, dtype=torch.float64) < self.top_p
            chosen[undecided[inside]] = token[inside, 0]
            undecided = undecided[~inside]
            if len(undecided) == 0:
                return chosen
        ordered, ids = mass[undecided].sort(descending=True, stable=True)
        chosen[undecided] = self._draw(ordered.double(), ids, chance[undecided, -1:])
        return chosen
