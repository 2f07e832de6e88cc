"""Interventions: edits of activations that can be added, applied while a block runs, or written into weights."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.edits import baking, control_vectors
from xlingtox.edits.affine import Affine
from xlingtox.edits.change import Change
from xlingtox.edits.step import Columns, Constant, OfUnits, Positions, Step, hooks_of, read_places, sources_running
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.models.sites import Place, Site
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.packing import packed, unpacked


class Intervention:
    """An edit of activations: of MLP neurons, of attention heads, or at another site, such as the residual stream.

    `models.sites.Site` lists the sites. Edits are values: they hold no model, and equal edits are equal. `a + b` is the
    edit that applies a, then b.

    Example:
        >>> edit = xt.Scale(sources, 0.5) + xt.Offset(sources, -1.0)
        >>> with edit.on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> edit == xt.Offset(sources, -1.0) + xt.Scale(sources, 0.5)
        False
    """

    def steps(self) -> tuple[Step, ...]:
        """Return the single edits, in the order in which they apply."""
        raise NotImplementedError

    def __add__(self, other: Intervention) -> Intervention:
        """Return the edit that applies this one, then the other."""
        return _Sum(self.steps() + other.steps()) if isinstance(other, Intervention) else NotImplemented

    @checked
    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model under this edit; afterwards it is as before, also after an exception.

        Blocks can be nested: the outer edit applies first.

        Raises:
            ValueError: a unit is outside the model, or another model is being patched from this one.
            HookNeverFired: the model did not run in the block, or an edit for some positions met none of them.

        Example:
            >>> with xt.Offset(sources, -1.0).on(lm):
            ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
            >>> lm.hooked
            False
        """
        self._check(lm)
        lm.check_alone()
        steps = self.steps()
        idle = {id(step): step for step in steps if step.positions != "all"}
        with (
            sources_running(lm, read_places(steps)) as source_activations,
            lm.hooks(at=hooks_of(lm, steps, source_activations, idle), edit=Description(self)),
        ):
            yield
        for step in idle.values():
            raise HookNeverFired(
                f"{step!r} never acted on {lm.name}: 'prompt' means the tokens of the first pass, 'new' the generated "
                "tokens that are read after it from the cache"
            )

    @checked
    def bake(self, lm: HookedLM, *, output_dir: str | Path | None = None) -> HookedLM:
        """Return a new model with this edit in its weights. It writes the same text as this model under `on`.

        The new model costs nothing more to run, and any server of checkpoints runs it. A factor goes into the rows of
        the module that writes the activation, or into the columns of those that read it. What is added goes into a
        bias: of the norm or projection that writes, or of the projections that read. Some families can have more biases
        than they do, and Mistral and Qwen 2 are written as Llama for them. A checkpoint is read again and compared
        before its folder appears.

        Args:
            output_dir: a new or empty folder for an ordinary checkpoint with its tokenizer (default: the model is only
                in memory). Its file `bake.json` says what was done. A process that is killed leaves no such folder.

        Raises:
            ValueError: this edit has no exact place in this model's weights, and the message says why; other hooks act
                on the model; the folder is not empty; transformers reads something else than was written.
            OSError: the folder cannot be written.

        Example:
            >>> baked = xt.Offset(sources, -1.0).bake(lm, output_dir=tmp_path / "quiet")
            >>> texts = xt.generate(baked, prompts, n_samples=1, max_new_tokens=4, progress=False)
        """
        self._check(lm)
        purpose = "be baked into weights"
        record = {"edit": repr(self), "steps": [step.record() for step in self._constants(purpose)]}
        return baking.bake(lm, self._affine(lm, purpose), on=self.on, record=record, output_dir=output_dir)

    @checked
    def control_vectors(self, lm: HookedLM) -> control_vectors.ControlVectors:
        """Return one vector for each layer. Added to the outputs of the blocks, they do what `on` does.

        Offsets of neurons, of the MLP's output and of the residual stream come to such vectors, and so does `Steer`.

        Raises:
            ValueError: this edit does not come to a constant vector in this model.

        Example:
            >>> vectors = xt.Offset(sources, -1.0).control_vectors(lm)
            >>> set(vectors.vectors) == set(sources.by_layer())
            True
        """
        self._check(lm)
        return control_vectors.control_vectors(lm, self._affine(lm, "be a control vector"))

    @checked
    def save(self, path: str | Path, lm: HookedLM) -> None:
        """Write one safetensors file. Its metadata say what the edit does and for which model it was made.

        Example:
            >>> edit = xt.Offset(sources, -1.0)
            >>> edit.save(tmp_path / "edit.safetensors", lm)
            >>> xt.Intervention.load(tmp_path / "edit.safetensors", lm) == edit
            True
        """
        self._check(lm)
        tensors, rows = dict[str, Tensor](), []
        for i, step in enumerate(self._constants("be saved")):
            step_tensors, about = step.packed(f".{i}")
            tensors |= step_tensors
            rows.append({"kind": type(step).__name__, "positions": step.positions} | about)
        files.write_tensors(path, tensors, {"steps": rows, "model": dataclasses.asdict(lm.identity())})

    @staticmethod
    @checked
    def load(path: str | Path, lm: HookedLM, *, any_model: bool = False) -> Intervention:
        """Read an edit that was saved for this model.

        Args:
            any_model: also take an edit that was saved for a model of other weights, where it fits this one.

        Raises:
            ValueError: the edit was saved for a model of other weights, or does not fit this one; or the file holds no
                edit.
        """
        tensors, about = files.read_tensors(path)
        steps: list[Constant] = []
        with files.understood(path, "edit"):
            name, fingerprint = about["model"]["name"], about["model"]["fingerprint"]
            for i, row in enumerate(about["steps"]):
                steps.append(Constant.kinds[row["kind"]].unpacked(tensors, row, f".{i}"))
        if not any_model and fingerprint != lm.fingerprint():
            raise ValueError(
                f"{Path(path).expanduser()} was saved for {name} ({fingerprint}), not for {lm.name} "
                f"({lm.fingerprint()}): load(..., any_model=True) takes it all the same"
            )
        edit = _Sum(tuple(steps)) if len(steps) != 1 or not isinstance(steps[0], Intervention) else steps[0]
        edit._check(lm)
        return edit

    def _check(self, lm: HookedLM) -> None:
        for step in self.steps():
            step.check(lm)

    def _constants(self, purpose: str) -> list[Constant]:
        """Return the steps, or raise ValueError where one of them is a Patch, which cannot serve this purpose."""
        steps = [step for step in self.steps() if isinstance(step, Constant)]
        if len(steps) < len(self.steps()):
            raise ValueError(
                f"a Patch cannot {purpose}: it depends on another run. Set(neurons, activations.mean(language=...)) "
                "sets its neurons to their means, and can"
            )
        return steps

    def _affine(self, lm: HookedLM, purpose: str) -> Affine:
        """Return the gain and the shift of each column, or raise ValueError where some positions are left out."""
        gains: dict[Place, Tensor] = {}
        shifts: dict[Place, Tensor] = {}
        for step in self._constants(purpose):
            if step.positions != "all":
                raise ValueError(f"{step!r} cannot {purpose}: it acts at some positions only; run it with edit.on(lm)")
            for place, columns in step.by_place(lm).items():
                n_columns, indices, change = places.n_columns(lm, place), columns.indices, step.change(place, columns)
                if change.mixes:
                    raise ValueError(
                        f"{step!r} cannot {purpose}: it mixes the dimensions of {place[0]!r}, and only a gain and a "
                        "shift of each can; run it with edit.on(lm)"
                    )
                gain = gains.setdefault(place, torch.ones(n_columns, dtype=torch.float64))
                shift = shifts.setdefault(place, torch.zeros(n_columns, dtype=torch.float64))
                gain[indices], shift[indices] = change.after(gain[indices], shift[indices])
        return Affine(gains, shifts)


@checked
@dataclass(frozen=True, repr=False)
class _Numbers(OfUnits, Constant, Intervention):
    """An edit of units by numbers. `Offset` explains its fields."""

    neurons: NeuronSet
    value: float | tuple[float, ...]
    positions: Positions = "all"
    site: dataclasses.InitVar[Site | None] = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self, site: Site | None) -> None:
        self._set_site(site)
        single = not isinstance(self.value, tuple)
        numbers = [float(number) for number in (self.value if isinstance(self.value, tuple) else (self.value,))]
        if wrong := [number for number in numbers if not math.isfinite(number)]:
            raise ValueError(f"{type(self).__name__} by {wrong[0]}: expected a finite number")
        kind, n_units = self.neurons.site, len(self.neurons)
        if not single and len(numbers) != n_units and (kind == "neurons" or not n_units or len(numbers) % n_units):
            raise ValueError(f"{len(numbers)} values for {n_units} {kind}: expected one, or one for each")
        object.__setattr__(self, "value", numbers[0] if single else tuple(numbers))

    def __repr__(self) -> str:
        by = f"{self.value:g}" if isinstance(self.value, float) else f"{len(self.value)} values"
        return self._named(f"{self.neurons!r}, {by}")

    def check(self, lm: HookedLM) -> None:
        OfUnits.check(self, lm)
        per_unit, kind = self._numbers_per_unit(), self.neurons.site
        for layer in self.neurons.by_layer() if per_unit > 1 else ():
            if (width := places.width(lm, (kind, layer))) != per_unit:
                raise ValueError(
                    f"{self!r} has {per_unit} for each of {len(self.neurons)} {kind}: expected one, or {width}, "
                    f"because so many numbers are in each of those of {lm.name}"
                )
        Constant.check(self, lm)

    def content(self) -> str:
        return f"{super().content()} {self.amounts()}"

    def values(self) -> Sequence[float]:
        """Return the numbers that were given, one for each unit, or one for each number of a head."""
        return [self.value] * len(self.neurons) if isinstance(self.value, float) else self.value

    def _numbers_per_unit(self) -> int:
        return len(self.values()) // max(1, len(self.neurons)) or 1

    def amounts(self) -> Sequence[float]:
        """Return the numbers that `apply` takes, in the order of `values`."""
        return self.values()

    def change(self, place: Place, columns: Columns) -> Change:
        return self._change(torch.tensor(self.amounts(), dtype=torch.float64)[columns.numbers])

    def _change(self, numbers: Tensor) -> Change:
        """Return what these numbers, one for each column, do."""
        raise NotImplementedError

    def packed(self, suffix: str) -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors, about = packed(self.neurons, suffix)
        tensors[f"value{suffix}"] = torch.tensor(self.values(), dtype=torch.float64)
        return tensors, {"one": isinstance(self.value, float)} | about

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any], suffix: str) -> Self:
        values = tuple(tensors[f"value{suffix}"].tolist())
        return cls(unpacked(tensors, about, suffix), values[0] if about["one"] else values, about["positions"])

    def record(self) -> dict[str, object]:
        record: dict[str, object] = {"kind": type(self).__name__, "neurons": self.neurons.neurons, "value": self.value}
        record |= {"weights": self.neurons.weights} if self.neurons.weights else {}
        return record if self.neurons.site == "neurons" else record | {"site": self.neurons.site}


class Offset(_Numbers):
    """Add `value` to the post-activations of `neurons` (paper, section 4.2), or to units of another site.

    The MLP's output then moves by `value` times the sum of their value vectors. Neurons with weights get `value` times
    their weight. So an offset of -1 takes `neurons.weighted(activations.std())` one standard deviation down.

    A head's output is its part of what attention's output projection reads: `lm.head_width(layer)` numbers. At other
    sites, such as the residual stream, a unit is one dimension.

    Attributes:
        neurons: the neurons, heads or dimensions that are edited.
        value: one number for all of them, or one for each; weights multiply it. A head's number is for all numbers of
            its output. Heads may also get one for each of these, head after head.
        positions: "all" (as in the paper), "prompt" (the tokens of the first pass), or "new" (the generated tokens but
            the last, which the model never reads).
        site: what the pairs of the set name, such as "neurons", "heads" or "ln2" (default: what the set says).

    Example:
        >>> with xt.Offset(sources, -1.0).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.Offset(xt.NeuronSet.of([(3, 1)]), 0.5, site="heads")
        Offset(NeuronSet(1 heads: 3.1), 0.5)
    """

    def amounts(self) -> Sequence[float]:
        """Return the numbers that are added: each value times its unit's weight."""
        # Read once: a set without weights makes its amounts anew each time.
        per_unit, amounts = self._numbers_per_unit(), self.neurons.amounts
        return [value * amounts[i // per_unit] for i, value in enumerate(self.values())]

    def _change(self, numbers: Tensor) -> Change:
        return Change(shift=numbers)


class Scale(_Numbers):
    """Multiply the post-activations of `neurons`, or units of another site, by `value`; 0 ablates them.

    Weights of neurons have no effect: they say how far an `Offset` moves.

    Attributes:
        neurons: the neurons, heads or dimensions that are edited.
        value: one number for all of them, or one for each; for heads also one for each number of their outputs.
        positions: where the edit acts: "all", "prompt" or "new", as in `Offset`.
        site: what the pairs of the set name, as in `Offset`.

    Example:
        >>> with xt.Scale(sources, 0.0).on(lm):
        ...     ablated = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> heads = xt.NeuronSet.of([(3, 0), (3, 1)], site="heads")
        >>> baked = xt.Scale(heads, 0.0).bake(lm)
    """

    @classmethod
    @checked
    def damping(cls, experts: NeuronSet) -> Scale:
        """Multiply each expert's post-activation by `1 - 2 (AUROC - 0.5)`: the better the expert, the less is left.

        The factor is that of AurA (Suau et al. 2024, equation 4). The edit is not AurA itself, which damps the outputs
        of both projections of the MLP. Here a neuron is damped once, at the input of the down-projection.

        Args:
            experts: neurons with their areas under the ROC curve as scores, as `localize.by_auroc` gives them.

        Raises:
            ValueError: a score is not in [0.5, 1].

        Example:
            >>> experts = xt.NeuronSet.of([(0, 1), (2, 5)], scores=[0.75, 1.0])
            >>> xt.Scale.damping(experts).value
            (0.5, 0.0)
        """
        if wrong := [score for score in experts.scores if not 0.5 <= score <= 1]:
            raise ValueError(f"a score is {wrong[0]:g}: expected areas under the ROC curve, from 0.5 to 1")
        return cls(experts, tuple(1 - 2 * (score - 0.5) for score in experts.scores))

    def _change(self, numbers: Tensor) -> Change:
        return Change(gain=numbers)


class Set(_Numbers):
    """Replace the post-activations of `neurons`, or units of another site, by `value`.

    Weights of neurons have no effect: they say how far an `Offset` moves.

    Attributes:
        neurons: the neurons, heads or dimensions that are edited.
        value: one number for all of them, or one for each; for heads also one for each number of their outputs.
        positions: where the edit acts: "all", "prompt" or "new", as in `Offset`.
        site: what the pairs of the set name, as in `Offset`.

    Example:
        >>> means = activations.mean(language="en")
        >>> with xt.Set(candidates, means).on(lm):
        ...     texts = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    def _change(self, numbers: Tensor) -> Change:
        return Change(value=numbers)


@dataclass(frozen=True)
class Description:
    """The name of an edit in results: its repr, which is short, and a digest of all that it does."""

    edit: Intervention

    def __str__(self) -> str:
        return f"{self.edit!r} ({self._of_content()[:8]})"

    @property
    def digest(self) -> str | None:
        """A digest of all that the edit does. None where another model takes part, which may be edited itself.

        It is also None where the edit acts at some positions only. Then the model has to run, to show that it acts.
        """
        steps = self.edit.steps()
        alone = not any(step.sources() or step.positions != "all" for step in steps)
        return self._of_content() if alone else None

    def _of_content(self) -> str:
        content = "\n".join(step.content() for step in self.edit.steps())
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, repr=False)
class _Sum(Intervention):
    """Several edits, one after the other."""

    parts: tuple[Step, ...]

    def steps(self) -> tuple[Step, ...]:
        return self.parts

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))
