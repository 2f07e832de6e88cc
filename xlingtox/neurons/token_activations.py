"""Token by token: what neurons do over a text and its continuation, in characters that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import regex
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompts, as_prompts
from xlingtox.models.backend import Hook
from xlingtox.models.batching import by_length, in_batches, rows_that_fit
from xlingtox.models.generation import check_lengths, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet


@checked
@dataclass(frozen=True)
class TokenActivations:
    """Post-activations of `neurons` over one text, piece by piece.

    A piece is a token, or several where one is only part of a character. Special tokens are left out.

    Attributes:
        language: of the prompt.
        pieces: what was read, in order; joined they are the text.
        n_prompt: how many of the pieces are the prompt's; the others are the model's greedy continuation.
        values: of a piece of several tokens, their mean.
        neurons: the last axis of `values` is in their order.
        model: which model it was.
    """

    language: str
    pieces: tuple[str, ...]
    n_prompt: int
    values: Float[Tensor, "piece neuron"]
    neurons: NeuronSet
    model: Identity


@checked
def read_tokens(
    lm: HookedLM,
    prompts: Prompts,
    neurons: NeuronSet,
    *,
    max_new_tokens: int = 20,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[TokenActivations]:
    """Continue each prompt greedily, and read `neurons` at every token of prompt and continuation.

    Args:
        max_new_tokens: 0 to read the texts as they are.
        batch_size: prompts that are read at once (default: as many as the free memory allows).

    Raises:
        ValueError: a neuron outside the model, no prompts, or one that is blank or too long.
    """
    neurons.check(lm)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected 0 or more")
    given = as_prompts(prompts, tokenizer=lm.tokenizer)
    lengths = check_lengths(lm, given, max_new_tokens)
    found: dict[int, TokenActivations] = {}
    special = torch.tensor(sorted(lm.tokenizer.all_special_ids), device=lm.device)
    with tqdm(total=len(given), desc="reading tokens", unit="prompt", disable=not progress, leave=False) as bar:

        def read(rows: list[int]) -> None:
            ids, mask = lm.encode([given[i].text for i in rows])
            n_prompt, spoken = ids.shape[1], [given[i].language for i in rows]
            if max_new_tokens:
                new, counts = decode(lm, ids, mask, max_new_tokens, pick=pick_greedily, languages=spoken)
                ids, mask = torch.cat([ids, new], 1), torch.cat([mask, counts], 1)
            values = torch.empty(*ids.shape, len(neurons))
            with lm.hooks(post={layer: _reader(values, *own) for layer, own in neurons.by_layer().items()}, edit=None):
                lm.logits(ids, mask, languages=spoken, last_only=True)
            shown = (mask & ~torch.isin(ids, special)).cpu()
            for row, i in enumerate(rows):
                own = ids[row, shown[row]].tolist()
                start = int(shown[row, :n_prompt].sum())
                groups = [*whole_characters(lm, own, 0, start), *whole_characters(lm, own, start, len(own))]
                kept = values[row, shown[row]]
                found[i] = TokenActivations(
                    given[i].language,
                    tuple(text for text, _ in groups),
                    sum(last <= start for _, (_, last) in groups),
                    torch.stack([kept[first:last].mean(0) for _, (first, last) in groups]),
                    neurons,
                    lm.identity(),
                )
            bar.update(len(rows))

        in_batches(by_length(lengths), batch_size or rows_that_fit(lm, max(lengths) + max_new_tokens), read)
    return [found[i] for i in range(len(given))]


def _reader(out: Float[Tensor, "row pos neuron"], indices: list[int], columns: list[int]) -> Hook:
    def read(value: Tensor) -> None:
        out[:, :, columns] = value[..., indices].float().cpu()

    return read


def whole_characters(lm: HookedLM, ids: Sequence[int], start: int, end: int) -> list[tuple[str, tuple[int, int]]]:
    """Split tokens `start` to `end` of a text into the fewest that each spell whole characters.

    Characters are those that a reader sees (grapheme clusters: a letter with its vowel signs is one). What is still
    incomplete at the end stands as U+FFFD.

    Returns:
        each group's text and its range of tokens.
    """
    groups: list[tuple[str, tuple[int, int]]] = []
    # A token's text may depend on the one before it (a leading space), so each is read after the group before it.
    before = first = start
    if start:
        before = start - 1
    for last in range(start + 1, end + 1):
        known = _text(lm, ids[before:first])
        text = _text(lm, ids[before:last])[len(known) :]
        if text.endswith("\ufffd") and last < end:
            continue
        if groups and _same_character(groups[-1][0], text):
            joined, (earlier, _) = groups.pop()
            groups.append((joined + text, (earlier, last)))
        else:
            groups.append((text, (first, last)))
        before, first = first, last
    return groups


def _text(lm: HookedLM, ids: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""


def _same_character(one: str, other: str) -> bool:
    """Whether the last character of one goes on in the other."""
    if not one or not other:
        return True
    return len(one) not in {found.end() for found in regex.finditer(r"\X", one + other)}


@checked
def top_tokens(readings: Sequence[TokenActivations], *, k: int = 5) -> pd.DataFrame:
    """The k distinct pieces on which each neuron is most active, in each language.

    Returns:
        columns `layer, index, language, rank, token, context, activation`; `context` is the text up to the piece.

    Raises:
        ValueError: nothing was read, or the texts were read with different neurons.
    """
    if not readings:
        raise ValueError("there are no texts: read some first")
    if k < 1:
        raise ValueError(f"k is {k}: expected at least 1")
    neurons = readings[0].neurons
    if any(each.neurons.neurons != neurons.neurons for each in readings):
        raise ValueError("the texts were read with different neurons")
    rows = []
    for code in languages.in_order(each.language for each in readings):
        own = [each for each in readings if each.language == code]
        places = [(each, i) for each in own for i in range(len(each.pieces))]
        values = torch.cat([each.values for each in own])
        for column, (layer, index) in enumerate(neurons):
            best: dict[str, tuple[float, str]] = {}
            for place in values[:, column].argsort(descending=True, stable=True).tolist():
                each, i = places[place]
                token = each.pieces[i].strip()
                if token and token not in best:
                    best[token] = float(values[place, column]), "".join(each.pieces[: i + 1])
                if len(best) == k:
                    break
            for rank, (token, (value, context)) in enumerate(best.items(), start=1):
                rows.append((layer, index, code, rank, token, context, value))
    columns = ["layer", "index", "language", "rank", "token", "context", "activation"]
    return pd.DataFrame(rows, columns=columns)
