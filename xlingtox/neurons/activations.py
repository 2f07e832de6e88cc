"""Activations: how active neurons are while the model continues prompts."""

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
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.backend import Hook
from xlingtox.models.batching import by_length, in_batches, rows_that_fit
from xlingtox.models.generation import check_lengths, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet

_MOST_BYTES = 2**30
"""If the activations of all steps take more bytes, only their sums are kept."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Activations:
    """Post-activations of `neurons` over the steps of greedy continuations.

    A post-activation is the input of the MLP's down-projection. A step is a forward pass that produces one new token.
    A neuron adds its activation times its value vector to the residual stream. So a candidate is a source if its mean
    activation on toxic prompts is positive.

    Attributes:
        neurons: the neurons that were read, in the order of the last axis of `sums` and `values`.
        sums: each neuron's activations in each language, added up over the steps that count. Languages are in the order
            of `language_codes`.
        steps: the number of steps that count in each language, in the same order.
        mask: True for the steps that count, False where the continuation had already ended.
        languages: the language of each prompt.
        kept: the activations at each step, or None where they would have taken more than a gibibyte. Read them by
            `values`.
        model: which model was read, and under which edit.

    Example:
        >>> activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=4, progress=False)
        >>> activations.mean(language="en").shape
        torch.Size([100])
        >>> activations.to_frame().columns.tolist()
        ['language', 'layer', 'index', 'mean']
    """

    neurons: NeuronSet
    sums: Float[Tensor, "language neuron"]
    steps: Int[Tensor, "language"]
    mask: Bool[Tensor, "prompt step"]
    languages: tuple[str, ...]
    kept: Float[Tensor, "prompt step neuron"] | None
    model: Identity

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = f"{len(self.neurons)} neurons of {self.model}, {len(self.languages)} prompts"
        return f"Activations({counts} in {', '.join(self.language_codes)})"

    @property
    def language_codes(self) -> tuple[str, ...]:
        """Return the languages of the prompts, each once, in the order of `xlingtox.languages`."""
        return languages.in_order(self.languages)

    @property
    def values(self) -> Float[Tensor, "prompt step neuron"]:
        """Return the input of the down-projection at the last prompt token and at each new token but the last.

        Raises:
            ValueError: the values were too many to keep.
        """
        if self.kept is None:
            raise ValueError(
                f"only the means of {len(self.neurons)} neurons were kept, not the values of each step, which take "
                "more than a gibibyte: choose fewer neurons or prompts"
            )
        return self.kept

    @checked
    def mean(self, *, language: str | None = None) -> Float[Tensor, "neuron"]:
        """Return the mean of each neuron over steps and prompts, of one language or of all.

        Raises:
            ValueError: no prompt is in that language.
        """
        codes = self.language_codes
        if language is not None and language not in codes:
            raise ValueError(f"no prompts in {language!r}: there are {', '.join(sorted(codes))}")
        rows = slice(None) if language is None else [codes.index(language)]
        return (self.sums[rows].sum(0) / self.steps[rows].sum()).float()

    def to_frame(self) -> pd.DataFrame:
        """Return the columns `language, layer, index, mean`: one row for each language and neuron."""
        rows = [
            (language, layer, index, value)
            for language in self.language_codes
            for (layer, index), value in zip(self.neurons, self.mean(language=language).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["language", "layer", "index", "mean"])

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with one row for each language."""
        rows = []
        for code, steps in zip(self.language_codes, self.steps.tolist(), strict=True):
            means = self.mean(language=code)
            cells = [f"{self.languages.count(code)}", f"{steps}", tables.number(float(means.mean()))]
            rows.append([tables.language_name(code), *cells, tables.percent(float((means > 0).float().mean()))])
        caption = f"Activations of {len(self.neurons)} neurons of {escaped(self.model)}"
        return tables.table(caption, ["Language", "Prompts", "Steps", "Mean", "Neurons with a mean above 0"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with the prompts' languages and the model's identity in its metadata.

        Example:
            >>> activations.save(tmp_path / "activations.safetensors")
            >>> xt.Activations.load(tmp_path / "activations.safetensors") == activations
            True
        """
        tensors = {"sums": self.sums, "steps": self.steps, "mask": self.mask}
        tensors["neurons"] = torch.tensor(self.neurons.neurons, dtype=torch.int64)
        tensors["scores"] = torch.tensor(self.neurons.scores, dtype=torch.float64)
        if self.kept is not None:
            tensors["values"] = self.kept
        files.write_tensors(path, tensors, {"languages": self.languages, "model": dataclasses.asdict(self.model)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Activations:
        """Read activations that `save` wrote; raise ValueError, with the path, where the file holds none."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "activations"):
            # Earlier versions wrote the neurons to the JSON.
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
    """Return whether the activations of every step are few enough to be kept, and not their sums alone."""
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

    The positions that count are those that produce the new tokens: the last of the prompt and all new ones but the
    last. All neurons of a model may be read at once, because sums are added up step by step.

    Args:
        batch_size: prompts that are continued at once (default: as many as the free memory allows).
        stop_at_end: leave out what follows an end of sequence. The code of the paper's authors goes on to
            `max_new_tokens` and counts it (`study.published.collect_activations`).

    Raises:
        ValueError: a neuron is outside the model, there are no prompts, one is blank or too long, or a number is below
            1.

    Example:
        >>> activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=4, progress=False)
        >>> sources = candidates.where(activations.mean(language="en") > 0)
    """
    neurons.check(lm)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    prompt_list = as_prompts(prompts, tokenizer=lm.tokenizer)
    lengths = check_lengths(lm, prompt_list, max_new_tokens)
    prompt_languages = tuple(prompt.language for prompt in prompt_list)
    codes = languages.in_order(prompt_languages)
    sums = torch.zeros(len(codes), len(neurons), dtype=torch.float64)
    mask = torch.zeros(len(prompt_list), max_new_tokens, dtype=torch.bool)
    values = None
    if few_enough(len(prompt_list), max_new_tokens, len(neurons)):
        values = torch.zeros(len(prompt_list), max_new_tokens, len(neurons))
    with tqdm(total=len(prompt_list), desc="reading neurons", unit="prompt", disable=not progress, leave=False) as bar:

        def read(rows: list[int]) -> None:
            ids, attention = lm.encode([prompt_list[i].text for i in rows])
            row_languages = [prompt_languages[i] for i in rows]
            belongs = torch.tensor([[code == language for language in row_languages] for code in codes])
            reader = _Reader(lm, neurons, belongs.float(), n_kept_steps=0 if values is None else max_new_tokens)
            with lm.hooks(post=reader.hooks(), edit=None):
                _, counts = decode(
                    lm,
                    ids,
                    attention,
                    max_new_tokens,
                    pick=pick_greedily,
                    before_pass=reader.begin_step,
                    languages=row_languages,
                    stop_at_end=stop_at_end,
                )
            mask[rows] = counts.cpu()
            sums.add_(reader.sums.cpu())
            if values is not None and reader.values is not None:
                values[rows] = reader.values.cpu()
            bar.update(len(rows))

        in_batches(by_length(lengths), batch_size or rows_that_fit(lm, max(lengths) + max_new_tokens), read)
    if values is not None:
        values *= mask.unsqueeze(-1)
    steps = torch.stack([mask[[language == code for language in prompt_languages]].sum() for code in codes])
    return Activations(neurons, sums, steps, mask, prompt_languages, values, lm.identity())


class _Reader:
    """Hooks that add up activations at the last position of every pass, by language, on the model's device.

    Attributes:
        sums: each neuron's activations in each language, added up over the steps so far of rows that have not ended.
        values: the activations at each row and step, or None where only the sums are wanted.
    """

    def __init__(
        self, lm: HookedLM, neurons: NeuronSet, belongs: Float[Tensor, "language row"], *, n_kept_steps: int
    ) -> None:
        """Prepare for a batch.

        Args:
            belongs: 1 where a row is in a language, else 0.
            n_kept_steps: steps whose values are kept; 0 for the sums alone.
        """
        device = lm.device
        all_indices = list(range(lm.d_mlp))
        self.layers: dict[int, tuple[Tensor | None, Tensor]] = {}
        for layer, (indices, columns) in neurons.by_layer().items():
            chosen = None if indices == all_indices else torch.tensor(indices, device=lm.device_of(layer))
            self.layers[layer] = chosen, torch.tensor(columns, device=device)
        self.belongs = belongs.to(device)
        n_languages, n_rows = belongs.shape
        self.sums = torch.zeros(n_languages, len(neurons), dtype=torch.float64, device=device)
        self.values = torch.zeros(n_rows, n_kept_steps, len(neurons), device=device) if n_kept_steps else None

    def begin_step(self, step: int, rows: Int[Tensor, "row"], going: Bool[Tensor, "row"]) -> None:
        """Note which rows of the batch the next pass reads, and which of them have not ended."""
        self.step, self.rows = step, rows
        self.weights = self.belongs[:, rows] * going

    def hooks(self) -> dict[int, Hook]:
        """Return one hook for each layer that has neurons to read."""
        return {layer: self._hook(chosen, columns) for layer, (chosen, columns) in self.layers.items()}

    def _hook(self, chosen: Tensor | None, columns: Int[Tensor, "column"]) -> Hook:
        def read(value: Tensor) -> None:
            last = value[:, -1]
            activations = (last if chosen is None else last.index_select(-1, chosen)).float()
            activations = activations.to(self.sums.device)
            self.sums[:, columns] += self.weights @ activations
            if self.values is not None:
                self.values[self.rows[:, None], self.step, columns] = activations

        return read
