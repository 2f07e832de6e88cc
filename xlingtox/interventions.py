"""Edits of neurons: values that add up, that a model runs under, and that can be baked into its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlingtox import baking, strictjson
from xlingtox.engine import Hook
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet

Positions = Literal["all", "prompt", "new"]


class Intervention:
    """An edit of post-activations; `a + b` applies a, then b."""

    def steps(self) -> tuple[_Step, ...]:
        raise NotImplementedError

    def __add__(self, other: Intervention) -> Intervention:
        return _Sum(self.steps() + other.steps())

    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model under this edit; afterwards it is as before, also after an exception.

        Raises:
            ValueError: a neuron is outside the model.
            HookNeverFired: the model did not run in the block.
        """
        self._check(lm)
        with lm.hooks(post=_hooks(lm, self.steps())):
            yield

    def bake(self, lm: HookedLM, output_dir: str | Path | None = None) -> HookedLM:
        """A new model with this edit in its weights: what `on` does, at no cost, for any server of checkpoints.

        An offset becomes a bias of the down-projection; a scale multiplies its rows. Mistral and Qwen 2 have no such
        bias and are written as Llama, which can have one.

        Args:
            output_dir: where an ordinary checkpoint is written, with its tokenizer and `bake.json`, which says what was
                done (default: the model is only in memory).

        Raises:
            ValueError: this edit has no exact place in this model's weights; `control_vectors` may do.
            OSError: the folder cannot be written.
        """
        self._check(lm)
        return baking.bake(lm, *self._affine(lm, "be baked into weights"), self.on, repr(self), output_dir)

    def control_vectors(self, lm: HookedLM) -> baking.ControlVectors:
        """A vector a layer which, added to the block's output, does what `on` does.

        Raises:
            ValueError: this edit is no constant vector in this model.
        """
        self._check(lm)
        return baking.control_vectors(lm, *self._affine(lm, "be a control vector"), self.on)

    def save(self, path: str | Path, lm: HookedLM) -> None:
        """Write `path` (safetensors), and beside it (JSON) what it means and for which model it was made."""
        self._check(lm)
        file, tensors = Path(path), dict[str, Tensor]()
        for i, step in enumerate(self.steps()):
            tensors[f"neurons.{i}"] = torch.tensor(list(step.neurons), dtype=torch.int64)
            tensors[f"scores.{i}"] = torch.tensor(step.neurons.scores, dtype=torch.float64)
            tensors[f"value.{i}"] = torch.tensor(step.amounts(), dtype=torch.float64)
        save_file(tensors, file)
        kinds = [
            {"kind": type(step).__name__, "positions": step.positions, "one": isinstance(step.value, float)}
            for step in self.steps()
        ]
        about = {"steps": kinds, "model": dataclasses.asdict(lm.identity())}
        strictjson.beside(file).write_text(json.dumps(about, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(path: str | Path, lm: HookedLM, any_model: bool = False) -> Intervention:
        """Read an edit that was saved for this model.

        Args:
            any_model: take it for another model too, where it fits.

        Raises:
            ValueError: it was saved for a model of other weights, or does not fit this one.
        """
        file = Path(path)
        about, tensors = json.loads(strictjson.beside(file).read_text("utf-8")), load_file(file)
        made = about["model"]
        if not any_model and made["fingerprint"] != lm.fingerprint():
            raise ValueError(
                f"{file} was saved for {made['name']} ({made['fingerprint']}), not for {lm.name} ({lm.fingerprint()}): "
                "load(..., any_model=True) takes it all the same"
            )
        steps: list[_Step] = []
        for i, row in enumerate(about["steps"]):
            neurons = NeuronSet.of(tensors[f"neurons.{i}"].tolist(), tensors[f"scores.{i}"].tolist())
            amounts = tuple(tensors[f"value.{i}"].tolist())
            steps.append(_KINDS[row["kind"]](neurons, amounts[0] if row["one"] else amounts, row["positions"]))
        edit = steps[0] if len(steps) == 1 else _Sum(tuple(steps))
        edit._check(lm)
        return edit

    def _check(self, lm: HookedLM) -> None:
        for step in self.steps():
            step.neurons.check(lm)

    def _affine(self, lm: HookedLM, wish: str) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """By layer, what each neuron is multiplied by, and what is then added: `[d_mlp]` each, in float64."""
        gains: dict[int, Tensor] = {}
        shifts: dict[int, Tensor] = {}
        for step in self.steps():
            if step.positions != "all":
                raise ValueError(f"{step!r} cannot {wish}: it acts at some positions only")
            amounts = torch.tensor(step.amounts(), dtype=torch.float64)
            for layer, (indices, columns) in step.neurons.by_layer().items():
                gain = gains.setdefault(layer, torch.ones(lm.d_mlp, dtype=torch.float64))
                shift = shifts.setdefault(layer, torch.zeros(lm.d_mlp, dtype=torch.float64))
                gain[indices], shift[indices] = step.composed(gain[indices], shift[indices], amounts[columns])
        return gains, shifts


@dataclass(frozen=True, repr=False)
class _Step(Intervention):
    """One kind of edit.

    Attributes:
        neurons: what is edited.
        value: one number for all of them, or one for each.
        positions: where: "all" (as in the paper), "prompt" (what is read in one pass), or "new" (what is read after it,
            from the cache: all generated tokens but the last).
    """

    neurons: NeuronSet
    value: float | tuple[float, ...]
    positions: Positions = "all"

    def __post_init__(self) -> None:
        given = self.value
        single = isinstance(given, int | float)
        numbers = [float(given)] if isinstance(given, int | float) else [float(each) for each in given]
        if wrong := [number for number in numbers if not math.isfinite(number)]:
            raise ValueError(f"{type(self).__name__} by {wrong[0]}: expected a finite number")
        if not single and len(numbers) != len(self.neurons):
            raise ValueError(f"{len(numbers)} values for {len(self.neurons)} neurons: expected one, or one for each")
        if self.positions not in ("all", "prompt", "new"):
            raise ValueError(f"positions is {self.positions!r}: expected 'all', 'prompt' or 'new'")
        object.__setattr__(self, "value", numbers[0] if single else tuple(numbers))

    def __repr__(self) -> str:
        what = f"{self.value:g}" if isinstance(self.value, float) else f"{len(self.value)} values"
        where = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"{type(self).__name__}({self.neurons!r}, {what}{where})"

    def steps(self) -> tuple[_Step, ...]:
        return (self,)

    def amounts(self) -> Sequence[float]:
        """One number a neuron."""
        return [self.value] * len(self.neurons) if isinstance(self.value, float) else self.value

    def apply(self, activation: Float[Tensor, "*any neuron"], amount: Float[Tensor, "neuron"]) -> Tensor:
        raise NotImplementedError

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        """Of x, first `gain * x + shift`, then this edit: the gain and shift of both."""
        raise NotImplementedError


class Offset(_Step):
    """Add `value` to the post-activations of `neurons` (paper, section 4.2)."""

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return activation + amount

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return gain, shift + amount


class Scale(_Step):
    """Multiply the post-activations of `neurons` by `value`; 0 ablates them."""

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return activation * amount

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return gain * amount, shift * amount


class Set(_Step):
    """Hold the post-activations of `neurons` at `value`."""

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return amount.expand_as(activation)

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(gain), amount


_KINDS: dict[str, type[_Step]] = {"Offset": Offset, "Scale": Scale, "Set": Set}


@dataclass(frozen=True, repr=False)
class _Sum(Intervention):
    parts: tuple[_Step, ...]

    def steps(self) -> tuple[_Step, ...]:
        return self.parts

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _hooks(lm: HookedLM, steps: tuple[_Step, ...]) -> dict[int, Hook]:
    edits: dict[int, list[tuple[_Step, Tensor, Tensor]]] = {}
    for step in steps:
        amounts = torch.tensor(step.amounts(), dtype=lm.dtype)
        for layer, (indices, columns) in step.neurons.by_layer().items():
            device = lm.device_of(layer)
            own = torch.tensor(indices, device=device)
            edits.setdefault(layer, []).append((step, own, amounts[columns].to(device)))

    def hook(own: list[tuple[_Step, Tensor, Tensor]]) -> Hook:
        def edit(value: Tensor) -> Tensor | None:
            edited = None
            for step, indices, amount in own:
                if step.positions == "all" or (step.positions == "new") == lm.continuing:
                    edited = value.clone() if edited is None else edited
                    edited[..., indices] = step.apply(edited[..., indices], amount)
            return edited

        return edit

    return {layer: hook(own) for layer, own in edits.items()}
