"""Read labelled sentences: activations pooled over each text, or moments over the tokens of all texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.models.batches import Batches
from xlingtox.models.hooked import HookedLM
from xlingtox.models.pooled import Pool, read_pooled
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.reading import Moments, Reader
from xlingtox.progress import bar

__all__ = ["Pool", "TokenMoments", "read_moments", "read_pooled"]


@checked
@dataclass(frozen=True, eq=False)
class TokenMoments:
    """The mean and the standard deviation of neurons over the tokens of some texts.

    Attributes:
        neurons: the neurons, in the order of the other two.
        means: each neuron's mean post-activation.
        stds: each neuron's standard deviation. The divisor is the number of tokens.

    Example:
        >>> from xlingtox.methods.reading import read_moments
        >>> moments = read_moments(lm, ["the cat", "la casa"], candidates, progress=False)
        >>> moments.means.shape, bool((moments.stds > 0).all())
        (torch.Size([100]), True)
    """

    neurons: NeuronSet
    means: Float[Tensor, "neuron"]
    stds: Float[Tensor, "neuron"]

    def mean(self) -> Float[Tensor, "neuron"]:
        """Return the means. Random neurons of the same activity are drawn by them."""
        return self.means


@checked
def read_moments(
    lm: HookedLM,
    texts: Sequence[str],
    neurons: NeuronSet,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> TokenMoments:
    """Return the mean and the standard deviation of neurons over the tokens of all texts.

    Special tokens, such as a beginning of sequence, do not count: activations there are often huge, and no text.

    Args:
        texts: the texts to read. Of a text that is longer than the model's context, only the beginning is read.
        batch_size: texts in one pass. By default as many as the free memory allows, at most 64.

    Raises:
        ValueError: there are no texts, a text has no tokens, no token counts, or a neuron is outside the model.

    Example:
        >>> from xlingtox.methods.reading import read_moments
        >>> read_moments(lm, ["the cat"], sources, progress=False).neurons == sources
        True
    """
    neurons.check(lm)
    total, special = Moments(1, len(neurons)), torch.tensor(sorted(lm.tokenizer.all_special_ids), device=lm.device)

    def read(rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> Moments:
        # Rows are padded on the left, and special tokens stand first. The tokens that count are the last ones.
        n_tokens = (mask & ~torch.isin(ids, special)).sum(1, keepdim=True)
        counts = torch.arange(ids.shape[1], device=ids.device) < n_tokens
        reader = Reader(lm, neurons, torch.ones(1, len(rows)), n_kept_steps=0)
        with lm.hooks(post=reader.at_once(counts, counts.sum(1)), edit=None):
            lm.logits(ids, mask, last=1)
        return reader.moments()

    with bar("reading neurons", total=len(texts), unit="text", progress=progress) as shown:

        def keep(rows: list[int], of_batch: Moments) -> None:
            total.add(of_batch)
            shown.update(len(rows))

        Batches(None, "moments", [lm]).each_text(texts, batch_size, read, keep)
    if not (n_tokens := int(total.counts[0])):
        raise ValueError("the texts have special tokens only: there is nothing to average")
    stds = (total.squares[0] / n_tokens).sqrt()
    return TokenMoments(neurons, (total.sums[0] / n_tokens).float(), stds.float())
