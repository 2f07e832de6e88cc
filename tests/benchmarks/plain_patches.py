"""Exact patching with plain PyTorch hooks on plain Hugging Face models: the other opinion on `attribute`.

Texts are padded on the right, where a causal model needs no mask. Units are `(site, layer, index)`, with a site of
"neurons" (an input of the down-projection) or "heads" (a head's part of the input of attention's output projection).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import families
import numpy as np
import torch
import transformers
from torch import Tensor

Unit = tuple[str, int, int]
Values = dict[tuple[str, int], Tensor]


class Models(NamedTuple):
    """Two plain models of one shape, and the family's name in `families.LAYOUTS`."""

    base: Any
    tuned: Any
    family: str

    @property
    def n_layers(self) -> int:
        return int(self.base.config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        return int(self.base.config.num_attention_heads)

    def all_units(self, site: str) -> list[Unit]:
        width = len(families.values(self.base, self.family, 0)) if site == "neurons" else self.n_heads
        return [(site, layer, index) for layer in range(self.n_layers) for index in range(width)]


def plain(source: str) -> Any:
    """Read the plain model of a checkpoint folder, of "mini", or of "smollm2"."""
    from xlingtox.models.loading import mini_checkpoint, smollm2_file

    if source == "smollm2":
        file = smollm2_file()
        model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    else:
        folder = mini_checkpoint() if source == "mini" else Path(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    return model.eval()


def log_probabilities(model: Any, rows: Sequence[Any], ids: Tensor, times: int = 1) -> Tensor:
    """Return the log-probability of what counts of each text, `[time, row]`, under the hooks that are set."""
    first, longest = min(row.begin for row in rows), ids.shape[1]
    kept = torch.arange(first - 1, longest - 1)
    logits = model(input_ids=ids.repeat(times, 1), use_cache=False, logits_to_keep=kept).logits
    targets = ids[:, first:].repeat(times, 1)
    chances = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    places = torch.arange(first, longest)
    counted = torch.stack([(places >= row.begin) & (places < len(row.ids)) for row in rows]).repeat(times, 1)
    return (chances * counted).sum(1).reshape(times, len(rows))


def patched(models: Models, rows: Sequence[Any], sets: Sequence[Sequence[Unit]], at_once: int = 96) -> np.ndarray:
    """Return the log-probability of each text in the base model with each set patched from the tuned one.

    The result is `[set, row]`, with two more sets in front: nothing patched, and the tuned model itself.
    """
    values = np.zeros((len(sets) + 2, len(rows)))
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(rows), at_once):
        places = by_length[start : start + at_once]
        batch = [rows[i] for i in places]
        ids = _padded(batch)
        with torch.no_grad():
            with _watched(models) as after:
                values[1, places] = log_probabilities(models.tuned, batch, ids)[0].numpy()
            values[0, places] = log_probabilities(models.base, batch, ids)[0].numpy()
            step = max(1, at_once // len(batch))
            for first in range(0, len(sets), step):
                some = sets[first : first + step]
                with _replaced(models, some, after, len(batch)):
                    found = log_probabilities(models.base, batch, ids, len(some))
                values[2 + first : 2 + first + len(some), places] = found.numpy()
    return values


def mean_over_languages(values: np.ndarray, rows: Sequence[Any]) -> np.ndarray:
    """Return the mean of the languages' means over prompts, from values whose last axis is the texts."""
    n_prompts: dict[str, set[int]] = {}
    for row in rows:
        n_prompts.setdefault(row.language, set()).add(row.prompt)
    weights = [row.weight / len(n_prompts[row.language]) / len(n_prompts) for row in rows]
    return values @ np.array(weights)


def _padded(rows: Sequence[Any]) -> Tensor:
    longest = max(len(row.ids) for row in rows)
    return torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])


def _module(model: Any, family: str, site: str, layer: int) -> Any:
    return (families.down if site == "neurons" else families.out)(model, family, layer)


@contextlib.contextmanager
def _watched(models: Models) -> Iterator[Values]:
    """Keep the input of each down-projection and each output projection of the tuned model."""
    seen: Values = {}
    with contextlib.ExitStack() as undo:
        for site in ("neurons", "heads"):
            for layer in range(models.n_layers):

                def keep(_: Any, args: Any, place: tuple[str, int] = (site, layer)) -> None:
                    seen[place] = args[0].detach()

                module = _module(models.tuned, models.family, site, layer)
                undo.callback(module.register_forward_pre_hook(keep).remove)
        yield seen


@contextlib.contextmanager
def _replaced(models: Models, sets: Sequence[Sequence[Unit]], after: Values, n_rows: int) -> Iterator[None]:
    """Replace the units of the first set in the first `n_rows` rows, those of the second in the next, and so on."""
    chosen: dict[tuple[str, int], dict[int, list[int]]] = {}
    for number, units in enumerate(sets):
        for site, layer, index in units:
            width = after[site, layer].shape[-1] // models.n_heads if site == "heads" else 1
            columns = range(index * width, (index + 1) * width)
            chosen.setdefault((site, layer), {}).setdefault(number, []).extend(columns)
    with contextlib.ExitStack() as undo:
        for place, by_set in chosen.items():

            def replace(
                _: Any, args: Any, place: tuple[str, int] = place, by_set: dict[int, list[int]] = by_set
            ) -> tuple[Tensor]:
                value = args[0].clone()
                for number, columns in by_set.items():
                    rows = slice(number * n_rows, (number + 1) * n_rows)
                    value[rows, :, columns] = after[place][:, :, columns]
                return (value,)

            undo.callback(_module(models.base, models.family, *place).register_forward_pre_hook(replace).remove)
        yield
