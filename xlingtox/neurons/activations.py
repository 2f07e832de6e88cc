"""Activations: how active neurons are while the model continues prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox import files, languages
from xlingtox.checking import checked, shown
from xlingtox.data import Prompt, Prompts
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.batches import Batches, Codec
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.greedy import BatchReading, Rows, Written, counted, n_thought_of, read_batch
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.packing import packed, unpacked
from xlingtox.neurons.reading import Moments
from xlingtox.progress import bar

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
        squares: each neuron's squared deviations from its mean in the language, added up as `sums` are; None in files
            of earlier versions.
        writer: which other model wrote the continuations that were read; None where the model wrote them itself.

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
    squares: Float[Tensor, "language neuron"] | None = None
    writer: Identity | None = None

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
        rows = self._rows(language)
        return (self.sums[rows].sum(0) / self.steps[rows].sum()).float()

    @checked
    def std(self, *, language: str | None = None) -> Float[Tensor, "neuron"]:
        """Return the standard deviation of each neuron over steps and prompts, of one language or of all.

        All steps that count are taken together, so differences between languages count too. The divisor is the number
        of steps.

        Raises:
            ValueError: no prompt is in that language, or an earlier version wrote the file, without squares.

        Example:
            >>> bool((activations.std(language="en") > 0).all())
            True
        """
        rows = self._rows(language)
        if self.squares is None:
            raise ValueError(
                "these activations were stored by an earlier version, without what a standard deviation needs: collect "
                "them again with collect_activations"
            )
        steps = self.steps[rows].double()
        gaps = self.sums[rows] / steps[:, None] - self.sums[rows].sum(0) / steps.sum()
        squares = self.squares[rows].sum(0) + (steps[:, None] * gaps.square()).sum(0)
        return (squares / steps.sum()).sqrt().float()

    def _rows(self, language: str | None) -> list[int]:
        """Return the rows of a language, or of all, or raise ValueError where no prompt is in the language."""
        codes = self.language_codes
        if language is not None and language not in codes:
            raise ValueError(f"no prompts in {language!r}: there are {', '.join(sorted(codes))}")
        return list(range(len(codes))) if language is None else [codes.index(language)]

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
        neurons, about = packed(self.neurons)
        tensors = {"sums": self.sums, "steps": self.steps, "mask": self.mask} | neurons
        for name, optional in (("values", self.kept), ("squares", self.squares)):
            if optional is not None:
                tensors[name] = optional
        about |= {"languages": self.languages, "model": dataclasses.asdict(self.model)}
        if self.writer is not None:
            about["writer"] = dataclasses.asdict(self.writer)
        files.write_tensors(path, tensors, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Activations:
        """Read activations that `save` wrote; raise ValueError, with the path, where the file holds none."""
        tensors, about = files.read_tensors(path)
        with files.understood(path, "activations"):
            return cls(
                unpacked(tensors, about),
                tensors["sums"],
                tensors["steps"],
                tensors["mask"],
                tuple(about["languages"]),
                tensors.get("values"),
                Identity(**about["model"]),
                tensors.get("squares"),
                Identity(**about["writer"]) if "writer" in about else None,
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
    writer: HookedLM | None = None,
) -> Activations:
    """Read `neurons` while the model greedily continues each prompt by `max_new_tokens` (paper, section 4.1).

    The positions that count are those that produce the new tokens: the last of the prompt and all new ones but the
    last. All neurons of a model may be read at once, because sums are added up step by step. Of a model that was loaded
    with `chat=`, these are the tokens of the answer, its end included. What it thinks before does not count.

    Two models that each read their own continuation differ in the text that they read, and not only in themselves. Give
    one of them as `writer`, and both read the same tokens.

    Args:
        batch_size: prompts that are continued at once (default: as many as the free memory allows).
        stop_at_end: leave out what follows an end of sequence. The code of the paper's authors goes on to
            `max_new_tokens` and counts it (`study.published.collect_activations`).
        writer: another model of the same shape and tokenizer, which writes the continuations in place of `lm`. Then
            `lm` reads each prompt and its continuation in one pass, at the positions that count for the writer. An edit
            of `lm` for the prompt only acts on that whole pass.

    Raises:
        ValueError: a neuron is outside the model, there are no prompts, one is blank or too long, a number is below 1,
            or the writer has another shape or gives prompts other tokens.

    Example:
        >>> activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=4, progress=False)
        >>> sources = candidates.where(activations.mean(language="en") > 0)
    """
    neurons.check(lm)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    prompt_list = lm.as_prompts(prompts)
    lengths = check_lengths(lm, prompt_list, max_new_tokens)
    if writer is not None:
        _check_writer(lm, writer, prompt_list, max_new_tokens)
    [activations], _ = collect_together(
        lm,
        prompt_list,
        [neurons],
        lengths=lengths,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        stop_at_end=stop_at_end,
        writer=writer,
    )
    return activations


def collect_together(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    sets: Sequence[NeuronSet],
    *,
    max_new_tokens: int,
    progress: bool,
    keep_values: Sequence[bool] = (),
    lengths: Sequence[int] = (),
    batch_size: int | None = None,
    stop_at_end: bool = True,
    writer: HookedLM | Written | None = None,
) -> tuple[list[Activations], Written]:
    """Read several sets of neurons at once, on greedy continuations that are written once.

    Args:
        keep_values: for each set, whether the values of each step may be kept, or only their sums (default: all may).
            Values that would take more than a gibibyte are never kept.
        lengths: the prompts' lengths in tokens, where they are known.
        writer: another model, or what it has written; None where `lm` itself writes.

    Returns:
        the activations of each set, and the continuations.

    Raises:
        ValueError: a prompt is blank or too long.
    """
    lengths = lengths or check_lengths(lm, prompts, max_new_tokens)
    prompt_languages = tuple(prompt.language for prompt in prompts)
    codes = languages.in_order(prompt_languages)
    moments = [Moments(len(codes), len(neurons)) for neurons in sets]
    kept_steps = [
        max_new_tokens if keep and few_enough(len(prompts), max_new_tokens, len(neurons)) else 0
        for neurons, keep in zip(sets, keep_values or [True] * len(sets), strict=True)
    ]
    values = [
        torch.zeros(len(prompts), steps, len(neurons)) if steps else None
        for neurons, steps in zip(sets, kept_steps, strict=True)
    ]
    tokens: list[tuple[int, ...]] = [()] * len(prompts)
    asked: dict[str, Any] = {"codes": codes, "kept_steps": kept_steps, "n_steps": max_new_tokens}
    asked["stop_at_end"] = stop_at_end
    models = [lm, writer] if isinstance(writer, HookedLM) else [lm]
    batches = Batches("numbers", "activations", models, asked | {"neurons": [neurons.neurons for neurons in sets]})
    positions = max(lengths) + max_new_tokens
    with bar("reading neurons", total=len(prompts), unit="prompt", progress=progress) as progress_bar:

        def source(rows: list[int]) -> HookedLM | Rows | None:
            return tuple(writer.tokens[i] for i in rows) if isinstance(writer, Written) else writer

        def thought(rows: list[int]) -> list[int]:
            n_thought = writer.n_thought if isinstance(writer, Written) else ()
            return [n_thought[i] for i in rows] if n_thought else []

        def described(rows: list[int]) -> list[Any]:
            some, written = [prompts[i] for i in rows], source(rows)
            token_ids = lm.token_ids([prompt.text for prompt in some])
            return [some, token_ids, written if isinstance(written, tuple) else len(models), *thought(rows)]

        def keep(rows: list[int], reading: BatchReading) -> None:
            for i, new in zip(rows, reading.tokens, strict=True):
                tokens[i] = new
            for total, of_batch in zip(moments, reading.moments, strict=True):
                total.add(of_batch)
            for kept, of_rows in zip(values, reading.values, strict=True):
                if kept is not None and of_rows is not None:
                    kept[rows] = of_rows
            progress_bar.update(len(rows))

        batches.each(
            by_length(lengths),
            batch_size or batches.size(positions, lambda: rows_that_fit(lm, positions)),
            lambda rows: read_batch(
                lm, [prompts[i] for i in rows], sets, **asked, writer=source(rows), n_thought=thought(rows)
            ),
            keep,
            about=described,
            codec=Codec(dump=BatchReading.to_bytes, load=BatchReading.of_bytes),
        )
    if isinstance(writer, Written):
        n_thought = writer.n_thought
    else:
        n_thought = n_thought_of(lm if writer is None else writer, prompts, tuple(tokens))
    mask = counted(tuple(tokens), max_new_tokens, n_thought)
    for kept in values:
        if kept is not None:
            kept *= mask.unsqueeze(-1)
    other = None if writer is None else writer.writer if isinstance(writer, Written) else writer.identity()
    collected = [
        Activations(neurons, sums.sums, sums.counts, mask, prompt_languages, kept, lm.identity(), sums.squares, other)
        for neurons, sums, kept in zip(sets, moments, values, strict=True)
    ]
    return collected, Written(tuple(tokens), other or lm.identity(), n_thought)


def _check_writer(lm: HookedLM, writer: HookedLM, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raise ValueError unless the writer has the shape of the model, and reads the prompts as the same tokens."""
    lm.check_alike(writer)
    check_lengths(writer, prompts, max_new_tokens)
    texts = [prompt.text for prompt in prompts]
    for text, read, written in zip(texts, lm.token_ids(texts), writer.token_ids(texts), strict=True):
        if read != written:
            raise ValueError(
                f"{lm.name} and {writer.name} read {shown(text)} as different tokens: expected the same tokenizer"
            )
