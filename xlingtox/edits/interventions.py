"""Edits of neurons: values that add up, that a model runs under, and that can be baked into its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.edits import baking
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.neuron_set import NeuronSet

Positions = Literal["all", "prompt", "new"]
Seen = Mapping[HookedLM, Mapping[int, Tensor]]
Amount = Callable[[], Tensor]


class Intervention:
    """An edit of post-activations; `a + b` applies a, then b."""

    def steps(self) -> tuple[Step, ...]:
        raise NotImplementedError

    def __add__(self, other: Intervention) -> Intervention:
        return _Sum(self.steps() + other.steps()) if isinstance(other, Intervention) else NotImplemented

    @checked
    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model under this edit; afterwards it is as before, also after an exception.

        Raises:
            ValueError: a neuron is outside the model, or another model is being patched from this one.
            HookNeverFired: the model did not run in the block, or an edit of some positions never met one.
        """
        self._check(lm)
        lm.check_alone()
        steps = self.steps()
        layers: dict[HookedLM, set[int]] = {}
        for step in steps:
            for source, own in step.sources().items():
                layers.setdefault(source, set()).update(own)
        idle = {id(step): step for step in steps if step.positions != "all"}
        with (
            _beside(lm, list(layers.items())) as seen,
            lm.hooks(post=_hooks(lm, steps, seen, idle), edit=_Description(self)),
        ):
            yield
        for step in idle.values():
            raise HookNeverFired(
                f"{step!r} never acted on {lm.name}: what is read in one pass is 'prompt', what is then generated "
                "from its cache is 'new'"
            )

    @checked
    def bake(self, lm: HookedLM, *, output_dir: str | Path | None = None) -> HookedLM:
        """A new model with this edit in its weights: what `on` does, at no cost, for any server of checkpoints.

        An offset becomes a bias of the down-projection; a scale multiplies its rows. Mistral and Qwen 2 have no such
        bias and are written as Llama, which can have one. A checkpoint is read again and compared before it appears.

        Args:
            output_dir: a new or empty folder for an ordinary checkpoint, with its tokenizer and `bake.json`, which says
                what was done (default: the model is only in memory). A process that is killed leaves no such folder.

        Raises:
            ValueError: this edit has no exact place in this model's weights (`control_vectors` may do); other hooks act
                on it; the folder is not empty; transformers reads what was written otherwise.
            OSError: the folder cannot be written.
        """
        self._check(lm)
        affine = self._affine(lm, "be baked into weights")
        steps = [
            {"kind": type(step).__name__, "neurons": step.neurons.neurons, "value": step.value}
            for step in self._constants("be baked into weights")
        ]
        return baking.bake(lm, *affine, self.on, {"edit": repr(self), "steps": steps}, output_dir)

    @checked
    def control_vectors(self, lm: HookedLM) -> baking.ControlVectors:
        """A vector a layer which, added to the block's output, does what `on` does.

        Raises:
            ValueError: this edit is no constant vector in this model.
        """
        self._check(lm)
        return baking.control_vectors(lm, *self._affine(lm, "be a control vector"))

    @checked
    def save(self, path: str | Path, lm: HookedLM) -> None:
        """Write one safetensors file, whose metadata say which edits these are and for which model they were made."""
        self._check(lm)
        tensors = dict[str, Tensor]()
        steps = self._constants("be saved")
        for i, step in enumerate(steps):
            tensors[f"neurons.{i}"] = torch.tensor(list(step.neurons), dtype=torch.int64)
            tensors[f"scores.{i}"] = torch.tensor(step.neurons.scores, dtype=torch.float64)
            tensors[f"value.{i}"] = torch.tensor(step.amounts(), dtype=torch.float64)
        kinds = [
            {"kind": type(step).__name__, "positions": step.positions, "one": isinstance(step.value, float)}
            for step in steps
        ]
        about = {"steps": kinds, "model": dataclasses.asdict(lm.identity())}
        files.write_tensors(path, tensors, about)

    @staticmethod
    @checked
    def load(path: str | Path, lm: HookedLM, *, any_model: bool = False) -> Intervention:
        """Read an edit that was saved for this model.

        Args:
            any_model: take it for another model too, where it fits.

        Raises:
            ValueError: it was saved for a model of other weights, or does not fit this one; the file holds no edit.
        """
        tensors, about = files.read_tensors(path)
        steps: list[_Constant] = []
        with files.understood(path, "edit"):
            name, fingerprint = about["model"]["name"], about["model"]["fingerprint"]
            for i, row in enumerate(about["steps"]):
                neurons = NeuronSet.of(tensors[f"neurons.{i}"].tolist(), scores=tensors[f"scores.{i}"].tolist())
                amounts = tuple(tensors[f"value.{i}"].tolist())
                steps.append(_KINDS[row["kind"]](neurons, amounts[0] if row["one"] else amounts, row["positions"]))
        if not any_model and fingerprint != lm.fingerprint():
            raise ValueError(
                f"{Path(path).expanduser()} was saved for {name} ({fingerprint}), not for {lm.name} "
                f"({lm.fingerprint()}): load(..., any_model=True) takes it all the same"
            )
        edit = steps[0] if len(steps) == 1 else _Sum(tuple(steps))
        edit._check(lm)
        return edit

    def _check(self, lm: HookedLM) -> None:
        for step in self.steps():
            step.check(lm)

    def _constants(self, wish: str) -> list[_Constant]:
        steps = [step for step in self.steps() if isinstance(step, _Constant)]
        if len(steps) < len(self.steps()):
            raise ValueError(
                f"a Patch cannot {wish}: it depends on another run. Set(neurons, activations.mean(language)) holds its "
                "neurons at their means, and can"
            )
        return steps

    def _affine(self, lm: HookedLM, wish: str) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """By layer, what each neuron is multiplied by, and what is then added: `[d_mlp]` each, in float64."""
        gains: dict[int, Tensor] = {}
        shifts: dict[int, Tensor] = {}
        for step in self._constants(wish):
            if step.positions != "all":
                raise ValueError(f"{step!r} cannot {wish}: it acts at some positions only; run it with edit.on(lm)")
            amounts = torch.tensor(step.amounts(), dtype=torch.float64)
            for layer, (indices, columns) in step.neurons.by_layer().items():
                gain = gains.setdefault(layer, torch.ones(lm.d_mlp, dtype=torch.float64))
                shift = shifts.setdefault(layer, torch.zeros(lm.d_mlp, dtype=torch.float64))
                gain[indices], shift[indices] = step.composed(gain[indices], shift[indices], amounts[columns])
        return gains, shifts


class Step(Intervention):
    """One kind of edit, of `neurons`, at some or all positions."""

    neurons: NeuronSet
    positions: Positions

    def steps(self) -> tuple[Step, ...]:
        return (self,)

    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless this edit fits the model."""
        self.neurons.check(lm)

    def acts(self, lm: HookedLM) -> bool:
        """Whether it is for the pass at hand."""
        if self.positions == "all":
            return True
        if lm.current_pass is None:
            raise RuntimeError(f"{self!r} needs HookedLM's own calls: those of .tl do not tell what is prompt or new")
        return (self.positions == "new") == lm.current_pass.continuing

    def sources(self) -> dict[HookedLM, set[int]]:
        """Other models that have to run on the same tokens, and the layers at which they are read."""
        return {}

    def amount(self, lm: HookedLM, layer: int, indices: list[int], columns: list[int], seen: Seen) -> Amount:
        """What is asked in each pass for the numbers that `apply` gets."""
        raise NotImplementedError

    def apply(self, activation: Float[Tensor, "batch pos neuron"], amount: Tensor) -> Tensor:
        raise NotImplementedError

    def content(self) -> str:
        """All that makes it another edit than others, for a digest."""
        return f"{type(self).__name__} {self.neurons.neurons} {self.positions}"

    def _named(self, what: str) -> str:
        where = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"{type(self).__name__}({self.neurons!r}, {what}{where})"


@checked
@dataclass(frozen=True, repr=False)
class _Constant(Step):
    """An edit by numbers.

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
        single = not isinstance(self.value, tuple)
        numbers = [float(number) for number in (self.value if isinstance(self.value, tuple) else (self.value,))]
        if wrong := [number for number in numbers if not math.isfinite(number)]:
            raise ValueError(f"{type(self).__name__} by {wrong[0]}: expected a finite number")
        if not single and len(numbers) != len(self.neurons):
            raise ValueError(f"{len(numbers)} values for {len(self.neurons)} neurons: expected one, or one for each")
        object.__setattr__(self, "value", numbers[0] if single else tuple(numbers))

    def __repr__(self) -> str:
        return self._named(f"{self.value:g}" if isinstance(self.value, float) else f"{len(self.value)} values")

    def check(self, lm: HookedLM) -> None:
        super().check(lm)
        if not bool(torch.tensor(self.amounts(), dtype=lm.dtype).isfinite().all()):
            raise ValueError(f"{self!r} goes beyond the numbers that {lm.name} has ({lm.dtype})")

    def content(self) -> str:
        return f"{super().content()} {self.amounts()}"

    def amounts(self) -> Sequence[float]:
        """One number a neuron."""
        return [self.value] * len(self.neurons) if isinstance(self.value, float) else self.value

    def amount(self, lm: HookedLM, layer: int, indices: list[int], columns: list[int], seen: Seen) -> Amount:
        held = torch.tensor(self.amounts(), dtype=lm.dtype)[columns].to(lm.device_of(layer))
        return lambda: held

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        """Of x, first `gain * x + shift`, then this edit: the gain and shift of both."""
        raise NotImplementedError


class Offset(_Constant):
    """Add `value` to the post-activations of `neurons` (paper, section 4.2)."""

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return activation + amount

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return gain, shift + amount


class Scale(_Constant):
    """Multiply the post-activations of `neurons` by `value`; 0 ablates them."""

    @classmethod
    @checked
    def damping(cls, experts: NeuronSet) -> Scale:
        """Multiply each expert's post-activation by `1 - 2 (AUROC - 0.5)`: the better it tells toxic text, the less.

        The factor is that of AurA (Suau et al. 2024, equation 4), and this is not AurA, which damps the outputs of both
        projections of the MLP. Here a neuron is damped once, at the input of the down-projection.

        Args:
            experts: neurons with their areas under the ROC curve as scores, as `localize.by_auroc` gives them.

        Raises:
            ValueError: a score is not in [0.5, 1].
        """
        if wrong := [score for score in experts.scores if not 0.5 <= score <= 1]:
            raise ValueError(f"a score is {wrong[0]:g}: expected areas under the ROC curve, from 0.5 to 1")
        return cls(experts, tuple(1 - 2 * (score - 0.5) for score in experts.scores))

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return activation * amount

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return gain * amount, shift * amount


class Set(_Constant):
    """Hold the post-activations of `neurons` at `value`."""

    def apply(self, activation: Tensor, amount: Tensor) -> Tensor:
        return amount.expand_as(activation)

    def composed(self, gain: Tensor, shift: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(gain), amount


@dataclass(frozen=True)
class _Description:
    """An edit as results name it: its repr, which is short, and a digest of all that it does."""

    edit: Intervention

    def __str__(self) -> str:
        content = "\n".join(step.content() for step in self.edit.steps())
        return f"{self.edit!r} ({hashlib.sha256(content.encode()).hexdigest()[:8]})"


_KINDS: dict[str, type[_Constant]] = {"Offset": Offset, "Scale": Scale, "Set": Set}


@dataclass(frozen=True, repr=False)
class _Sum(Intervention):
    parts: tuple[Step, ...]

    def steps(self) -> tuple[Step, ...]:
        return self.parts

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


@contextlib.contextmanager
def _beside(lm: HookedLM, layers: list[tuple[HookedLM, set[int]]]) -> Iterator[dict[HookedLM, Mapping[int, Tensor]]]:
    """With all sources beside the model. Not in an ExitStack, which holds on to what an interrupt breaks off in it."""
    if not layers:
        yield {}
        return
    (source, own), *others = layers
    with lm.run_alongside(source, own) as seen, _beside(lm, others) as rest:
        yield {source: seen, **rest}


def _hooks(lm: HookedLM, steps: tuple[Step, ...], seen: Seen, idle: dict[int, Step]) -> dict[int, Hook]:
    """Hooks by layer; a step that has acted is taken out of `idle`."""
    edits: dict[int, list[tuple[Step, Tensor, Amount]]] = {}
    for step in steps:
        for layer, (indices, columns) in step.neurons.by_layer().items():
            own = torch.tensor(indices, device=lm.device_of(layer))
            edits.setdefault(layer, []).append((step, own, step.amount(lm, layer, indices, columns, seen)))

    def hook(own: list[tuple[Step, Tensor, Amount]]) -> Hook:
        def edit(value: Tensor) -> Tensor | None:
            edited = None
            for step, indices, amount in own:
                if step.acts(lm):
                    edited = value.clone() if edited is None else edited
                    edited[..., indices] = step.apply(edited[..., indices], amount())
                    idle.pop(id(step), None)
            return edited

        return edit

    return {layer: hook(own) for layer, own in edits.items()}
