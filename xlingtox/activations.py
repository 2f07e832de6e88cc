"""Activations: what neurons do while the model continues prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox import languages
from xlingtox.data import Prompts, as_prompts
from xlingtox.engine import Hook
from xlingtox.generation import batched, decode, greediest
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet


@dataclass(frozen=True)
class Activations:
    """Post-activations of `neurons` over the steps of a greedy continuation.

    Attributes:
        neurons: what was read; the last axis of `values` is in its order.
        values: the input of the down-projection, at the last prompt token and at each new token but the last.
        mask: False where the continuation had already ended.
        languages: of each prompt.
    """

    neurons: NeuronSet
    values: Float[Tensor, "prompt step neuron"]
    mask: Bool[Tensor, "prompt step"]
    languages: tuple[str, ...]

    def mean(self, language: str | None = None) -> Float[Tensor, "neuron"]:
        """Mean of each neuron over steps and prompts, of one language or of all.

        Raises:
            ValueError: no prompt is in that language.
        """
        values, mask = self.values, self.mask
        if language is not None:
            rows = [i for i, own in enumerate(self.languages) if own == language]
            if not rows:
                raise ValueError(f"no prompts in {language!r}: there are {', '.join(sorted(set(self.languages)))}")
            values, mask = values[rows], mask[rows]
        return (values * mask.unsqueeze(-1)).sum((0, 1)) / mask.sum()

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, layer, index, mean`: one row a language and neuron."""
        rows = [
            (language, layer, index, value)
            for language in languages.in_order(self.languages)
            for (layer, index), value in zip(self.neurons, self.mean(language).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["language", "layer", "index", "mean"])

    def save(self, path: str | Path) -> None:
        """Write `path` (safetensors) and what it means beside it (JSON)."""
        file = Path(path)
        save_file({"values": self.values.contiguous(), "mask": self.mask.contiguous()}, file)
        about = {
            "neurons": self.neurons.neurons,
            "scores": self.neurons.scores,
            "languages": self.languages,
        }
        file.with_name(file.name + ".json").write_text(json.dumps(about), "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        file = Path(path)
        tensors = load_file(file)
        about = json.loads(file.with_name(file.name + ".json").read_text("utf-8"))
        neurons = NeuronSet.of(about["neurons"], about["scores"])
        return cls(neurons, tensors["values"], tensors["mask"], tuple(about["languages"]))


def collect_activations(
    lm: HookedLM,
    prompts: Prompts,
    neurons: NeuronSet,
    n_new_tokens: int = 20,
    batch_size: int = 64,
    progress: bool = True,
) -> Activations:
    """Read `neurons` while the model greedily continues each prompt by `n_new_tokens` (paper, section 4.1).

    The positions are those that produce the new tokens: the last of the prompt and all new ones but the last.

    Raises:
        ValueError: a neuron outside the model, no prompts, or one that is blank or too long.
    """
    neurons.check(lm)
    if n_new_tokens < 1:
        raise ValueError(f"n_new_tokens is {n_new_tokens}: expected at least 1")
    given = as_prompts(prompts)
    values = torch.zeros(len(given), n_new_tokens, len(neurons))
    mask = torch.zeros(len(given), n_new_tokens, dtype=torch.bool)
    batches = batched(lm, given, n_new_tokens, batch_size)
    with tqdm(total=len(given), desc="reading neurons", unit="prompt", disable=not progress, leave=False) as bar:
        for rows, ids, attention in batches:
            reader = _Reader(lm, neurons, len(rows), n_new_tokens)
            with lm.hooks(post=reader.hooks()):
                _, counts = decode(lm, ids, attention, n_new_tokens, greediest, watch=reader.watch)
            values[rows], mask[rows] = reader.values.cpu(), counts.cpu()
            bar.update(len(rows))
    values *= mask.unsqueeze(-1)
    return Activations(neurons, values, mask, tuple(prompt.language for prompt in given))


class _Reader:
    """Keeps the asked columns at the last position of every pass, on the model's device: copies off it would wait."""

    def __init__(self, lm: HookedLM, neurons: NeuronSet, n_rows: int, n_steps: int) -> None:
        self.layers = {
            layer: (torch.tensor(indices, device=lm.device), torch.tensor(columns, device=lm.device))
            for layer, (indices, columns) in neurons.by_layer().items()
        }
        self.values = torch.zeros(n_rows, n_steps, len(neurons), device=lm.device)

    def watch(self, step: int, rows: Int[Tensor, "row"]) -> None:
        self.step, self.rows = step, rows

    def hooks(self) -> dict[int, Hook]:
        return {layer: self._hook(*both) for layer, both in self.layers.items()}

    def _hook(self, indices: Int[Tensor, "own"], columns: Int[Tensor, "own"]) -> Hook:
        def read(value: Tensor) -> None:
            self.values[self.rows[:, None], self.step, columns] = value[:, -1].index_select(-1, indices).float()

        return read
