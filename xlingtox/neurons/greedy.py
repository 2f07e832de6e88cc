"""Read several sets of neurons in one batch, while a model continues prompts greedily or reads what was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.data import Prompt
from xlingtox.models.backend import Hook
from xlingtox.models.generation import BeforePass, decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.reading import Moments, Reader

Rows = tuple[tuple[int, ...], ...]
"""The new tokens of each prompt, up to its end."""


@dataclass(frozen=True)
class Written:
    """Greedy continuations as tokens. Another model can read them when the writer is no longer in memory.

    Attributes:
        tokens: the new tokens of each prompt, up to the end of its text. The steps that write them count.
        writer: the model that wrote them.
        n_thought: how many of the first tokens of each prompt are a thought, so that they do not count; empty if none.
    """

    tokens: Rows
    writer: Identity
    n_thought: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchReading:
    """The activations of several sets of neurons in one batch of prompts.

    Attributes:
        tokens: the new tokens of each prompt, up to its end.
        moments: the sums of each set, by language.
        values: the activations of each set at each row and step; None for sets of which only the sums are wanted.
    """

    tokens: Rows
    moments: list[Moments]
    values: list[Float[Tensor, "row step neuron"] | None]

    def to_bytes(self) -> bytes:
        """Return the reading as the bytes of a safetensors file."""
        tensors = {f"tokens.{row}": torch.tensor(ids, dtype=torch.int64) for row, ids in enumerate(self.tokens)}
        for i, (moments, values) in enumerate(zip(self.moments, self.values, strict=True)):
            tensors |= {f"{name}.{i}": tensor.contiguous() for name, tensor in vars(moments).items()}
            if values is not None:
                tensors[f"values.{i}"] = values.contiguous()
        return safetensors.torch.save(tensors)

    @classmethod
    def of_bytes(cls, content: bytes) -> BatchReading:
        """Return what `to_bytes` wrote."""
        tensors = safetensors.torch.load(content)
        n_rows, n_sets = (sum(name.startswith(f"{kind}.") for name in tensors) for kind in ("tokens", "sums"))
        moments = [Moments(*tensors[f"sums.{i}"].shape) for i in range(n_sets)]
        for i, one in enumerate(moments):
            one.counts, one.sums, one.squares = (tensors[f"{name}.{i}"] for name in ("counts", "sums", "squares"))
        tokens = tuple(tuple(tensors[f"tokens.{row}"].tolist()) for row in range(n_rows))
        return cls(tokens, moments, [tensors.get(f"values.{i}") for i in range(n_sets)])


def read_batch(
    lm: HookedLM,
    prompts: Sequence[Prompt],
    sets: Sequence[NeuronSet],
    *,
    codes: Sequence[str],
    kept_steps: Sequence[int],
    n_steps: int,
    stop_at_end: bool,
    writer: HookedLM | Rows | None,
    n_thought: Sequence[int] = (),
) -> BatchReading:
    """Continue a batch of prompts greedily, or read their continuations in one pass, and read the sets meanwhile.

    What a chat model thinks before its answer does not count. It is known only when it is written. So a batch with a
    thought in it is written twice, and read the second time.

    Args:
        codes: the languages, in the order in which sums are returned.
        kept_steps: for each set, how many steps' values are kept; 0 for the sums alone.
        n_steps: the number of new tokens.
        writer: the model that writes, or the tokens that were written. None if the model itself writes.
        n_thought: how many of the first tokens that were written are a thought, row by row; empty if none.
    """
    belongs = torch.tensor([[code == prompt.language for prompt in prompts] for code in codes]).float()

    def new_readers() -> list[Reader]:
        both = zip(sets, kept_steps, strict=True)
        return [Reader(lm, neurons, belongs, n_kept_steps=steps) for neurons, steps in both]

    readers = new_readers()
    how: dict[str, Any] = {"stop_at_end": stop_at_end}
    if writer is None:
        tokens = _write_and_read(lm, readers, prompts, n_steps, **how)
        if any(thoughts := n_thought_of(lm, prompts, tokens)):
            readers = new_readers()
            _write_and_read(lm, readers, prompts, n_steps, **how, written=tokens, n_thought=thoughts)
    elif isinstance(writer, HookedLM):
        tokens = _write(writer, prompts, n_steps, **how)
        _read_written(lm, readers, prompts, tokens, n_steps, n_thought_of(writer, prompts, tokens))
    else:
        tokens = writer
        _read_written(lm, readers, prompts, tokens, n_steps, n_thought)
    values = [None if reader.values is None else reader.values.cpu() for reader in readers]
    return BatchReading(tokens, [reader.moments() for reader in readers], values)


def n_thought_of(lm: HookedLM, prompts: Sequence[Prompt], tokens: Rows) -> tuple[int, ...]:
    """Return how many of the tokens that a model wrote after each prompt are a thought; empty if it has none."""
    if lm.thought_marks is None:
        return ()
    return tuple(lm.n_thought(lm.token_ids([prompt.text for prompt in prompts]), tokens))


def counted(tokens: Rows, n_steps: int, n_thought: Sequence[int] = ()) -> Bool[Tensor, "row step"]:
    """Return the mask of the steps that count: those of an answer, or of a text that is no answer."""
    steps, first = torch.arange(n_steps), torch.tensor(n_thought or [0] * len(tokens))
    return (steps >= first[:, None]) & (steps < torch.tensor([len(ids) for ids in tokens])[:, None])


def _write_and_read(
    lm: HookedLM,
    readers: Sequence[Reader],
    prompts: Sequence[Prompt],
    n_steps: int,
    *,
    stop_at_end: bool,
    written: Rows | None = None,
    n_thought: Sequence[int] = (),
) -> Rows:
    """Continue prompts greedily, and read the neurons in each step.

    Args:
        written: what the model wrote before, which it writes again; None if this is not known.
        n_thought: how many of the first of these tokens do not count, row by row.
    """
    counts = None if written is None else counted(written, n_steps, n_thought).to(lm.device)

    def begin_step(step: int, rows: Int[Tensor, "row"], going: Bool[Tensor, "row"]) -> None:
        for reader in readers:
            reader.begin_step(step, rows, going if counts is None else going & counts[rows, step])

    with lm.hooks(post=_together(reader.newest() for reader in readers), edit=None):
        return _write(lm, prompts, n_steps, stop_at_end=stop_at_end, before_pass=begin_step)


def _write(
    lm: HookedLM, prompts: Sequence[Prompt], n_steps: int, *, stop_at_end: bool, before_pass: BeforePass | None = None
) -> Rows:
    """Continue prompts greedily, and return the new tokens up to the end of each row."""
    tokens, counts = decode(
        lm,
        *lm.encode([prompt.text for prompt in prompts]),
        n_steps,
        pick=pick_greedily,
        before_pass=before_pass,
        languages=[prompt.language for prompt in prompts],
        stop_at_end=stop_at_end,
    )
    return tuple(tuple(new[keep].tolist()) for new, keep in zip(tokens.cpu(), counts.cpu(), strict=True))


def _read_written(
    lm: HookedLM,
    readers: Sequence[Reader],
    prompts: Sequence[Prompt],
    tokens: Rows,
    n_steps: int,
    n_thought: Sequence[int],
) -> None:
    """Let the model read prompts with their continuations in one pass, up to the last token but one."""
    counts = counted(tokens, n_steps, n_thought).to(lm.device)
    lengths = torch.tensor([len(new) for new in tokens], device=lm.device)
    read = lm.token_ids([prompt.text for prompt in prompts])
    rows = [[*prompt, *new[:-1]] for prompt, new in zip(read, tokens, strict=True)]
    with lm.hooks(post=_together(reader.at_once(counts, lengths) for reader in readers), edit=None):
        lm.logits(*lm.pad(rows), languages=[prompt.language for prompt in prompts], last=1)


def _together(hooks_of_readers: Iterable[Mapping[int, Hook]]) -> dict[int, Hook]:
    """Return one hook for each layer, which calls those of all readers."""
    by_layer: dict[int, list[Hook]] = {}
    for hooks in hooks_of_readers:
        for layer, hook in hooks.items():
            by_layer.setdefault(layer, []).append(hook)

    def every(hooks: list[Hook]) -> Hook:
        def read(value: Tensor) -> None:
            for hook in hooks:
                hook(value)

        return read

    return {layer: every(hooks) for layer, hooks in by_layer.items()}
