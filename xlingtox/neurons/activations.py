"""Activations: what neurons do while the model continues prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompts, as_prompts
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.backend import Hook
from xlingtox.models.batching import by_length, in_batches, rows_that_fit
from xlingtox.models.generation import check_lengths, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet

_MOST_BYTES = 2**30
"""Of more than these, values of single steps are not kept."""


@checked
@dataclass(frozen=True, repr=False)
class Activations:
    """Post-activations of `neurons` over the steps of a greedy continuation.

    Attributes:
        neurons: what was read; the last axis of `sums` and of `values` is in its order.
        sums, steps: by language, in the order of `language_codes`, the sum over the steps that count, and their number.
        mask: False where the continuation had already ended.
        languages: of each prompt.
        kept: the values of each step, or None where they would have taken more than a gibibyte.
        model: which model it was, and under which edit.
    """

    neurons: NeuronSet
    sums: Float[Tensor, "language neuron"]
    steps: Int[Tensor, "language"]
    mask: Bool[Tensor, "prompt step"]
    languages: tuple[str, ...]
    kept: Float[Tensor, "prompt step neuron"] | None
    model: Identity

    def __repr__(self) -> str:
        what = f"{len(self.neurons)} neurons of {self.model}, {len(self.languages)} prompts"
        return f"Activations({what} in {', '.join(self.language_codes)})"

    @property
    def language_codes(self) -> tuple[str, ...]:
        return languages.in_order(self.languages)

    @property
    def values(self) -> Float[Tensor, "prompt step neuron"]:
        """The input of the down-projection, at the last prompt token and at each new token but the last.

        Raises:
            ValueError: they were too many to keep.
        """
        if self.kept is None:
            raise ValueError(
                f"only the means of {len(self.neurons)} neurons were kept, not the values of each step, which take "
                "more than a gibibyte: choose fewer neurons or prompts"
            )
        return self.kept

    @checked
    def mean(self, *, language: str | None = None) -> Float[Tensor, "neuron"]:
        """Mean of each neuron over steps and prompts, of one language or of all.

        Raises:
            ValueError: no prompt is in that language.
        """
        codes = self.language_codes
        if language is not None and language not in codes:
            raise ValueError(f"no prompts in {language!r}: there are {', '.join(sorted(codes))}")
        own = slice(None) if language is None else [codes.index(language)]
        return (self.sums[own].sum(0) / self.steps[own].sum()).float()

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, layer, index, mean`: one row a language and neuron."""
        rows = [
            (language, layer, index, value)
            for language in self.language_codes
            for (layer, index), value in zip(self.neurons, self.mean(language=language).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["language", "layer", "index", "mean"])

    def _repr_html_(self) -> str:
        """For notebooks: a row a language."""
        rows = []
        for code, steps in zip(self.language_codes, self.steps.tolist(), strict=True):
            means = self.mean(language=code)
            cells = [f"{self.languages.count(code)}", f"{steps}", tables.number(float(means.mean()))]
            rows.append([tables.language_name(code), *cells, tables.percent(float((means > 0).float().mean()))])
        caption = f"Activations of {len(self.neurons)} neurons of {escaped(self.model)}"
        return tables.table(caption, ["Language", "Prompts", "Steps", "Mean", "Neurons with a mean above 0"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the prompts' languages and the model's identity in its metadata."""
        tensors = {"sums": self.sums, "steps": self.steps, "mask": self.mask}
        tensors["neurons"] = torch.tensor(self.neurons.neurons, dtype=torch.int64)
        tensors["scores"] = torch.tensor(self.neurons.scores, dtype=torch.float64)
        if self.kept is not None:
            tensors["values"] = self.kept
        files.write_tensors(path, tensors, {"languages": self.languages, "model": dataclasses.asdict(self.model)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Activations:
        """Read activations that were saved; raises ValueError, with its path, where the file holds none."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "activations"):
            # Files of before have the neurons in the JSON.
            neurons, scores = (
                tensors[name].tolist() if name in tensors else about[name] for name in ("neurons", "scores")
            )
            return cls(
                NeuronSet.of(neurons, scores=scores),
                tensors["sums"],
                tensors["steps"],
                tensors["mask"],
                tuple(about["languages"]),
                tensors.get("values"),
                Identity(**about["model"]),
            )


def few_enough(n_prompts: int, n_steps: int, n_neurons: int) -> bool:
    """Whether the values of every step are kept, and not the means alone."""
    return 4 * n_prompts * n_steps * n_neurons <= _MOST_BYTES


@checked
def collect_activations(
    lm: HookedLM,
    prompts: Prompts,
    neurons: NeuronSet,
    *,
    max_new_tokens: int = 20,
    batch_size: int | None = None,
    progress: bool = True,
    stop_at_end: bool = True,
) -> Activations:
    """Read `neurons` while the model greedily continues each prompt by `max_new_tokens` (paper, section 4.1).

    The positions are those that produce the new tokens: the last of the prompt and all new ones but the last. All
    neurons of a model may be asked for: means are kept as running sums.

    Args:
        batch_size: prompts that are continued at once (default: as many as the free memory allows).
        stop_at_end: leave out what follows an end of sequence. The authors' code goes on to `max_new_tokens` and
            counts it (`published.collect_activations`).

    Raises:
        ValueError: a neuron outside the model, no prompts, or one that is blank or too long, or a number below 1.
    """
    neurons.check(lm)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    given = as_prompts(prompts, tokenizer=lm.tokenizer)
    lengths = check_lengths(lm, given, max_new_tokens)
    own = tuple(prompt.language for prompt in given)
    codes = languages.in_order(own)
    sums = torch.zeros(len(codes), len(neurons), dtype=torch.float64)
    mask = torch.zeros(len(given), max_new_tokens, dtype=torch.bool)
    few = few_enough(len(given), max_new_tokens, len(neurons))
    kept = torch.zeros(len(given), max_new_tokens, len(neurons)) if few else None
    with tqdm(total=len(given), desc="reading neurons", unit="prompt", disable=not progress, leave=False) as bar:

        def read(rows: list[int]) -> None:
            ids, attention = lm.encode([given[i].text for i in rows])
            reader = _Reader(lm, neurons, [codes.index(own[i]) for i in rows], len(codes), max_new_tokens, few)
            with lm.hooks(post=reader.hooks(), edit=None):
                spoken = [own[i] for i in rows]
                _, counts = decode(
                    lm,
                    ids,
                    attention,
                    max_new_tokens,
                    pick=pick_greedily,
                    before_pass=reader.watch,
                    languages=spoken,
                    stop_at_end=stop_at_end,
                )
            mask[rows] = counts.cpu()
            sums.add_(reader.sums.cpu())
            if kept is not None and reader.values is not None:
                kept[rows] = reader.values.cpu()
            bar.update(len(rows))

        in_batches(by_length(lengths), batch_size or rows_that_fit(lm, max(lengths) + max_new_tokens), read)
    if kept is not None:
        kept *= mask.unsqueeze(-1)
    steps = torch.stack([mask[[language == code for language in own]].sum() for code in codes])
    return Activations(neurons, sums, steps, mask, own, kept, lm.identity())


class _Reader:
    """Adds up the asked columns at the last position of every pass, by language, on the model's device."""

    def __init__(
        self, lm: HookedLM, neurons: NeuronSet, codes: list[int], n_codes: int, n_steps: int, keep: bool
    ) -> None:
        device = lm.device
        whole = list(range(lm.d_mlp))
        self.layers: dict[int, tuple[Tensor | None, Tensor]] = {}
        for layer, (indices, columns) in neurons.by_layer().items():
            chosen = None if indices == whole else torch.tensor(indices, device=lm.device_of(layer))
            self.layers[layer] = chosen, torch.tensor(columns, device=device)
        self.belongs = torch.nn.functional.one_hot(torch.tensor(codes, device=device), n_codes).float().T
        self.sums = torch.zeros(n_codes, len(neurons), dtype=torch.float64, device=device)
        self.values = torch.zeros(len(codes), n_steps, len(neurons), device=device) if keep else None

    def watch(self, step: int, rows: Int[Tensor, "row"], going: Bool[Tensor, "row"]) -> None:
        self.step, self.rows = step, rows
        self.counted = self.belongs[:, rows] * going

    def hooks(self) -> dict[int, Hook]:
        return {layer: self._hook(*both) for layer, both in self.layers.items()}

    def _hook(self, chosen: Tensor | None, columns: Int[Tensor, "own"]) -> Hook:
        def read(value: Tensor) -> None:
            last = value[:, -1]
            asked = (last if chosen is None else last.index_select(-1, chosen)).float()
            asked = asked.to(self.sums.device)
            self.sums[:, columns] += self.counted @ asked
            if self.values is not None:
                self.values[self.rows[:, None], self.step, columns] = asked

        return read
