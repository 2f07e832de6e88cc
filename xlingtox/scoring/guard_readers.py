"""Read the probabilities of a guard's verdicts: from a model on this machine, or from a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from xlingtox.models.batching import MOST_TEXTS, by_length, each_batch, rows_that_fit
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.loading import from_checkpoint, from_memory
from xlingtox.models.next_tokens import listed_with_tokenizer, names_of, next_tokens
from xlingtox.models.served import Served

MOST_OPEN = 0.01
"""The largest share of the verdicts' probability that a server may leave open by not listing a verdict's token."""


class Masses(NamedTuple):
    """Probabilities of tokens at the first position of some answers.

    Attributes:
        rows: the numbers of the prompts.
        of_tokens: the probability of each token after each prompt.
        left_open: an upper bound of the probability that the reader does not know, for each prompt.
    """

    rows: list[int]
    of_tokens: Float[np.ndarray, "row token"]
    left_open: Float[np.ndarray, "row"]


class Reader(Protocol):
    """A guard that can be read: what it is, and the probabilities of tokens after prompts."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    most_tokens: int | None

    def identity(self) -> Identity:
        """Return the identity of the guard's weights."""
        ...

    def masses(self, prompts: Sequence[np.ndarray], tokens: Sequence[int]) -> Iterator[Masses]:
        """Yield the probabilities of tokens after each prompt, batch by batch."""
        ...


class LocalReader:
    """A guard on this machine: one forward pass for each batch of prompts of similar length."""

    def __init__(self, lm: HookedLM, batch_size: int | None) -> None:
        self._lm, self._batch_size, self._fingerprint = lm, batch_size, lm.identity().fingerprint
        self.name, self.tokenizer = lm.name, lm.tokenizer
        self.most_tokens: int | None = lm.n_positions
        self.vocabulary = int(lm.unembedding().shape[0])

    def identity(self) -> Identity:
        return self._lm.identity()

    def masses(self, prompts: Sequence[np.ndarray], tokens: Sequence[int]) -> Iterator[Masses]:
        lm = self._lm
        if lm.hooked or lm.prefix is not None:
            raise RuntimeError(
                f"{self.name}: an edit or another hook is on the guard: score outside its `with` block, or give the "
                "scorer a model of its own"
            )
        if lm.fingerprint() != self._fingerprint:
            raise RuntimeError(f"{self.name}: the guard's weights have changed since: make another GuardScorer")
        lengths = [len(prompt) for prompt in prompts]
        size = self._batch_size or min(MOST_TEXTS, rows_that_fit(lm, max(lengths)))

        def run(rows: list[int]) -> Float[np.ndarray, "row token"]:
            ids, mask = lm.pad([prompts[i].tolist() for i in rows])
            with torch.inference_mode():
                logits = lm.only_tokens(lm.logits(ids, mask, last=1))[:, -1].float()
                return logits.softmax(-1)[:, list(tokens)].double().cpu().numpy()

        for rows, of_tokens in each_batch(by_length(lengths), size, run):
            yield Masses(rows, of_tokens, np.zeros(len(rows)))


class ServedReader:
    """A guard at a server whose completions API tells the log-likelihoods of the likeliest tokens."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._model, self.tokenizer = listed_with_tokenizer(server)
        self.name, self.vocabulary = self._model.name, len(self.tokenizer)
        self.most_tokens = None if self._model.n_positions is None else self._model.n_positions - 1

    def identity(self) -> Identity:
        return self._server.identity()

    def masses(self, prompts: Sequence[np.ndarray], tokens: Sequence[int]) -> Iterator[Masses]:
        names = [names_of(self.tokenizer, token) for token in tokens]
        for row, likeliest in next_tokens(self._server, self._model, [prompt.tolist() for prompt in prompts]):
            values = [next((likeliest[name] for name in spelled if name in likeliest), None) for spelled in names]
            known = np.exp(list(likeliest.values()))
            # A token that is not listed is no likelier than the last one that is, and than what the list leaves.
            most = max(0.0, min(float(known.min(initial=1.0)), 1 - float(known.sum())))
            of_tokens = np.array([[0.0 if value is None else np.exp(value) for value in values]])
            yield Masses([row], of_tokens, np.array([values.count(None) * most]))


def reader_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    revision: str | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    batch_size: int | None,
) -> Reader:
    """Load a guard, or find it at its server.

    Raises:
        TypeError: it is no model, nor the name of one.
        ValueError: an option is for another kind of guard, or the model cannot be loaded.
    """
    options = {"revision": revision, "device": device, "dtype": dtype}
    is_hub_name = isinstance(model, str | Path) and not Path(model).exists()
    for option, value in ({} if is_hub_name else options).items():
        if value is not None and (option == "revision" or isinstance(model, HookedLM | Served)):
            raise ValueError(f"{option} is for a guard that is loaded here by its name: leave it out, or give a name")
    if isinstance(model, Served):
        if tokenizer is not None or batch_size is not None:
            raise ValueError("tokenizer and batch_size are for a guard on this machine: Served takes tokenizer=")
        return ServedReader(model)
    if isinstance(model, HookedLM):
        if tokenizer is not None:
            raise ValueError(f"{model.name} has its tokenizer: leave tokenizer= out")
        return LocalReader(model, batch_size)
    if isinstance(model, str | Path):
        loaded = from_checkpoint(str(model), tokenizer=tokenizer, revision=revision, device=device, dtype=dtype)
    elif isinstance(model, torch.nn.Module):
        loaded = from_memory(model, tokenizer=tokenizer, adapter=None, dtype=dtype, device=device)
    else:
        raise TypeError(
            f"GuardScorer: model is a {type(model).__name__}, expected a hub name, a folder, a model in memory with "
            "its tokenizer, a HookedLM or a Served"
        )
    return LocalReader(HookedLM.unbridged(loaded), batch_size)
