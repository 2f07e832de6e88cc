"""TokenActivations: how active neurons are at each token of a text, in pieces that a person can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import regex
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.backend import Hook
from xlingtox.models.batches import Batches
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.generation import check_lengths, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.packing import packed, unpacked
from xlingtox.progress import bar

_MOST_ROWS = 10
"""The most neurons that a notebook shows."""


@checked
@dataclass(frozen=True, eq=False)
class TokenActivations:
    """Post-activations of `neurons` over one text, piece by piece.

    A piece is a token. Where a token is only part of a character, a piece is all tokens of that character. Special
    tokens are left out.

    Attributes:
        language: the language of the prompt.
        pieces: the parts of the text, in order; joined they are the text.
        n_prompt: how many of the pieces belong to the prompt. The others are the model's greedy continuation.
        values: the activations of each neuron at each piece; a piece of several tokens has their mean.
        neurons: the neurons that were read, in the order of the last axis of `values`.
        model: which model was read, and under which edit.

    Example:
        >>> reading = xt.read_tokens(lm, {"en": ["the dog"]}, sources, max_new_tokens=2, progress=False)[0]
        >>> "".join(reading.pieces[: reading.n_prompt])
        'the dog'
        >>> reading.to_frame().columns.tolist()
        ['language', 'position', 'part', 'piece', 'layer', 'index', 'activation']
    """

    language: str
    pieces: tuple[str, ...]
    n_prompt: int
    values: Float[Tensor, "piece neuron"]
    neurons: NeuronSet
    model: Identity

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each piece and neuron.

        The columns are `language, position, part, piece, layer, index, activation`; `part` is "prompt" or
        "continuation".
        """
        rows = []
        for position, (piece, activations) in enumerate(zip(self.pieces, self.values.tolist(), strict=True)):
            part = "prompt" if position < self.n_prompt else "continuation"
            for (layer, index), activation in zip(self.neurons, activations, strict=True):
                rows.append((self.language, position, part, piece, layer, index, activation))
        columns = ["language", "position", "part", "piece", "layer", "index", "activation"]
        return pd.DataFrame(rows, columns=columns)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the piece at which each of the first neurons is most active."""
        rows = []
        for column, (layer, index) in enumerate(self.neurons.neurons[:_MOST_ROWS] if self.pieces else ()):
            activations = self.values[:, column]
            best = int(activations.argmax())
            piece = f"<bdi{tables.in_language(self.language)}>{tables.shortened(self.pieces[best])}</bdi>"
            numbers = [tables.number(float(value)) for value in (activations.mean(), activations[best])]
            rows.append([f"{layer}.{index}", *numbers, piece])
        text = tables.shortened("".join(self.pieces))
        shown = f"<bdi{tables.in_language(self.language)}>{text}</bdi>"
        caption = f"{len(self.neurons)} neurons of {escaped(self.model)} over “{shown}”"
        return tables.table(caption, ["Neuron", "Mean", "Highest", "Where it is highest"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the text and the model's identity in its metadata."""
        tensors, evidence = packed(self.neurons)
        tensors["values"] = self.values
        about = evidence | {"language": self.language, "pieces": self.pieces, "n_prompt": self.n_prompt}
        files.write_tensors(path, tensors, about | {"model": dataclasses.asdict(self.model)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> TokenActivations:
        """Read what `save` wrote; raise ValueError, with the path, where the file holds no token activations."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "token activations"):
            return cls(
                about["language"],
                tuple(about["pieces"]),
                about["n_prompt"],
                tensors["values"],
                unpacked(tensors, about),
                Identity(**about["model"]),
            )


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
        max_new_tokens: tokens of the continuation; 0 reads the texts as they are.
        batch_size: prompts that are read at once (default: as many as the free memory allows).

    Returns:
        one `TokenActivations` for each prompt, in their order.

    Raises:
        ValueError: a neuron is outside the model, there are no prompts, or one is blank or too long.

    Example:
        >>> readings = xt.read_tokens(lm, prompts, sources, max_new_tokens=4, progress=False)
        >>> [reading.language for reading in readings]
        ['en', 'en', 'es', 'es']
    """
    neurons.check(lm)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected 0 or more")
    prompt_list = lm.as_prompts(prompts)
    lengths = check_lengths(lm, prompt_list, max_new_tokens)
    readings: dict[int, TokenActivations] = {}
    special = torch.tensor(sorted(lm.tokenizer.all_special_ids), device=lm.device)
    with bar("reading tokens", total=len(prompt_list), unit="prompt", progress=progress) as progress_bar:

        def read(rows: list[int]) -> list[TokenActivations]:
            ids, mask = lm.encode([prompt_list[i].text for i in rows])
            n_prompt, row_languages = ids.shape[1], [prompt_list[i].language for i in rows]
            if max_new_tokens:
                new, counts = decode(lm, ids, mask, max_new_tokens, pick=pick_greedily, languages=row_languages)
                ids, mask = torch.cat([ids, new], 1), torch.cat([mask, counts], 1)
            values = torch.empty(*ids.shape, len(neurons))
            hooks = {
                layer: _reader(values, indices, columns) for layer, (indices, columns) in neurons.by_layer().items()
            }
            with lm.hooks(post=hooks, edit=None):
                lm.logits(ids, mask, languages=row_languages, last=1)
            shown = (mask & ~torch.isin(ids, special)).cpu()
            of_rows = []
            for row, i in enumerate(rows):
                row_ids, row_values = ids[row, shown[row]].tolist(), values[row, shown[row]]
                start = int(shown[row, :n_prompt].sum())
                groups = [
                    *whole_characters(lm, row_ids, 0, start),
                    *whole_characters(lm, row_ids, start, len(row_ids)),
                ]
                of_rows.append(
                    TokenActivations(
                        prompt_list[i].language,
                        tuple(text for text, _ in groups),
                        sum(last <= start for _, (_, last) in groups),
                        torch.stack([row_values[first:last].mean(0) for _, (first, last) in groups]),
                        neurons,
                        lm.identity(),
                    )
                )
            return of_rows

        def keep(rows: list[int], of_rows: list[TokenActivations]) -> None:
            readings.update(zip(rows, of_rows, strict=True))
            progress_bar.update(len(rows))

        batches, positions = Batches(None, "tokens", [lm]), max(lengths) + max_new_tokens
        size = batch_size or batches.size(positions, lambda: rows_that_fit(lm, positions))
        batches.each(by_length(lengths), size, read, keep)
    return [readings[i] for i in range(len(prompt_list))]


def _reader(values: Float[Tensor, "row pos neuron"], indices: list[int], columns: list[int]) -> Hook:
    """Return a hook that copies these indices of its layer into these columns of `values`."""

    def read(value: Tensor) -> None:
        values[:, :, columns] = value[..., indices].float().cpu()

    return read


def whole_characters(lm: HookedLM, ids: Sequence[int], start: int, end: int) -> list[tuple[str, tuple[int, int]]]:
    """Split tokens `start` to `end` of a text into the smallest groups that each spell whole characters.

    Characters are those that a reader sees (grapheme clusters): a letter with its vowel signs is one. A character that
    is still incomplete at the end stands as U+FFFD.

    Returns:
        each group's text and its range of tokens.
    """
    groups: list[tuple[str, tuple[int, int]]] = []
    # A token's text may depend on the one before it (a leading space). So each group is decoded together with the group
    # before it, whose tokens begin at `previous`.
    previous = first = start
    if start:
        previous = start - 1
    for last in range(start + 1, end + 1):
        known = _text(lm, ids[previous:first])
        text = _text(lm, ids[previous:last])[len(known) :]
        if text.endswith("\ufffd") and last < end:
            continue
        if groups and _same_character(groups[-1][0], text):
            joined, (earlier, _) = groups.pop()
            groups.append((joined + text, (earlier, last)))
        else:
            groups.append((text, (first, last)))
        previous, first = first, last
    return groups


def _text(lm: HookedLM, ids: Sequence[int]) -> str:
    return str(lm.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""


def _same_character(left: str, right: str) -> bool:
    """Return whether the last character of the left text goes on in the right one."""
    if not left or not right:
        return True
    return len(left) not in {match.end() for match in regex.finditer(r"\X", left + right)}


@checked
def top_tokens(readings: Sequence[TokenActivations], *, k: int = 5) -> pd.DataFrame:
    """List the k distinct pieces on which each neuron is most active, in each language.

    Returns:
        the columns `layer, index, language, rank, token, context, activation`; `context` is the text up to the piece.

    Raises:
        ValueError: there are no readings, they are of different neurons, or k is below 1.

    Example:
        >>> readings = xt.read_tokens(lm, prompts, sources, max_new_tokens=4, progress=False)
        >>> xt.top_tokens(readings, k=2)["rank"].unique().tolist()
        [1, 2]
    """
    if not readings:
        raise ValueError("there are no texts: read some first")
    if k < 1:
        raise ValueError(f"k is {k}: expected at least 1")
    neurons = readings[0].neurons
    if any(reading.neurons.neurons != neurons.neurons for reading in readings):
        raise ValueError("the texts were read with different neurons")
    rows = []
    for code in languages.in_order(reading.language for reading in readings):
        in_language = [reading for reading in readings if reading.language == code]
        places = [(reading, i) for reading in in_language for i in range(len(reading.pieces))]
        values = torch.cat([reading.values for reading in in_language])
        for column, (layer, index) in enumerate(neurons):
            best: dict[str, tuple[float, str]] = {}
            for place in values[:, column].argsort(descending=True, stable=True).tolist():
                reading, i = places[place]
                token = reading.pieces[i].strip()
                if token and token not in best:
                    best[token] = float(values[place, column]), "".join(reading.pieces[: i + 1])
                if len(best) == k:
                    break
            for rank, (token, (value, context)) in enumerate(best.items(), start=1):
                rows.append((layer, index, code, rank, token, context, value))
    columns = ["layer", "index", "language", "rank", "token", "context", "activation"]
    return pd.DataFrame(rows, columns=columns)
