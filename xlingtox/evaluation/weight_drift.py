"""Weight drift: how far tuning moved each neuron's weights, by the cosine and the norm of its vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from xlingtox import files, processes
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity


@checked
@dataclass(frozen=True)
class LayerDrift:
    """The drift of one kind of vector in one layer: the mean over its vectors, and the least and the greatest.

    Attributes:
        layer: the number of the layer.
        kind: `key`, `value`, or in gated MLPs also `up`.
        cosine: the mean cosine between each vector after and the same vector before.
        norm_change: the mean change of their norms, relative to the norm before.
        cosine_range, norm_change_range: the least and the greatest cosine, and the same of the change of norm.

    Example:
        >>> drift = xt.weight_drift(lm, xt.Offset(sources, -1.0).bake(lm)).by_layer()
        >>> drift[0].layer, drift[0].kind
        (0, 'key')
    """

    layer: int
    kind: str
    cosine: float
    norm_change: float
    cosine_range: tuple[float, float]
    norm_change_range: tuple[float, float]

    @classmethod
    @checked
    def of(cls, row: Mapping[str, Any]) -> LayerDrift:
        """Return the drift that a row of a JSON file holds, where pairs are lists."""
        return cls(**dict(row) | {name: tuple(row[name]) for name in ("cosine_range", "norm_change_range")})


@checked
@dataclass(frozen=True, repr=False, eq=False)
class WeightDrift:
    """The drift of every key and value vector of the MLPs between two models.

    Preference tuning moves these vectors very little (Lee et al. 2024, section 5). A cosine near 1 and a change of norm
    near 0 say that the neurons still write what they wrote, and are only used less.

    Attributes:
        kinds: the kinds of vectors: `key`, `value`, and in gated MLPs also `up`.
        cosine: the cosine between each vector after and the same vector before; NaN where one of the two is zero.
        norm_change: the change of its norm, relative to the norm before; NaN where that was zero.
        models: which models were compared, before and after; None where that is not known.

    Example:
        >>> drift = xt.weight_drift(lm, xt.Offset(sources, -1.0).bake(lm))
        >>> drift
        WeightDrift(4 layers of 512 neurons: mean cosine key 1.00000, value 1.00000)
        >>> drift.save(tmp_path / "drift.safetensors")
        >>> xt.WeightDrift.load(tmp_path / "drift.safetensors") == drift
        True
    """

    kinds: tuple[str, ...]
    cosine: Float[np.ndarray, "layer kind neuron"]
    norm_change: Float[np.ndarray, "layer kind neuron"]
    models: tuple[Identity, Identity] | None = None

    def __post_init__(self) -> None:
        if self.cosine.shape[1] != len(self.kinds):
            raise ValueError(f"there are {self.cosine.shape[1]} kinds of vectors, but {len(self.kinds)} names for them")

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers and both models are the same; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        n_layers, _, n_neurons = self.cosine.shape
        table = self.to_frame()
        means = (f"{kind} {table.cosine[table.kind == kind].mean():.5f}" for kind in self.kinds)
        return f"WeightDrift({n_layers} layers of {n_neurons} neurons: mean cosine {', '.join(means)})"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each vector: columns `layer, kind, index, cosine, norm_change`."""
        n_layers, n_kinds, n_neurons = self.cosine.shape
        return pd.DataFrame(
            {
                "layer": np.repeat(np.arange(n_layers), n_kinds * n_neurons),
                "kind": np.tile(np.repeat(np.array(self.kinds, dtype=object), n_neurons), n_layers),
                "index": np.tile(np.arange(n_neurons), n_layers * n_kinds),
                "cosine": self.cosine.ravel(),
                "norm_change": self.norm_change.ravel(),
            }
        )

    def by_layer(self) -> tuple[LayerDrift, ...]:
        """Return the drift of each layer and each kind of vector. NaN does not count."""
        layer_drifts = []
        for layer, (cosines, norm_changes) in enumerate(zip(self.cosine, self.norm_change, strict=True)):
            for kind, *rows in zip(self.kinds, cosines, norm_changes, strict=True):
                cosine, norm_change = (pd.Series(row) for row in rows)
                means = float(cosine.mean()), float(norm_change.mean())
                layer_drifts.append(LayerDrift(layer, kind, *means, _ends(cosine), _ends(norm_change)))
        return tuple(layer_drifts)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each layer and kind, with the mean and from least to greatest."""
        rows = [
            [
                str(drift.layer),
                escaped(drift.kind),
                _with_range(tables.number, drift.cosine, drift.cosine_range, 5),
                _with_range(_signed_percent, drift.norm_change, drift.norm_change_range, 2),
            ]
            for drift in self.by_layer()
        ]
        caption = "Weight drift"
        if self.models is not None:
            caption += f" from {escaped(str(self.models[0]))} to {escaped(str(self.models[1]))}"
        return tables.table(caption, ["Layer", "Vectors", "Cosine with before", "Change of norm"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file, with everything that is not a tensor in its metadata."""
        tensors = {name: torch.tensor(getattr(self, name)) for name in ("cosine", "norm_change")}
        models = self.models and [dataclasses.asdict(model) for model in self.models]
        files.write_tensors(path, tensors, {"kinds": self.kinds, "models": models})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> WeightDrift:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no weight drift. The error names the file.
        """
        tensors, about = files.read_tensors(path)
        with files.understood(path, "weight drift"):
            models = about["models"] and tuple(Identity.of(model) for model in about["models"])
            return cls(tuple(about["kinds"]), tensors["cosine"].numpy(), tensors["norm_change"].numpy(), models)


@checked
def weight_drift(before: HookedLM, after: HookedLM) -> WeightDrift:
    """Compare every key and value vector of two models (Lee et al. 2024, section 5).

    Raises:
        ValueError: the models differ in shape or vocabulary, or one of them is edited by hooks.

    Example:
        >>> drift = xt.weight_drift(lm, xt.Offset(sources, -1.0).bake(lm))
        >>> len(drift.to_frame()) == lm.n_layers * 2 * lm.d_mlp
        True
    """
    before.check_alike(after)
    for lm in (before, after):
        lm.check_unedited("is not in its weights")
    return drift_from(vectors_in_memory(before), after)


@dataclass(frozen=True)
class KeptVectors:
    """The vectors of a model's neurons, which are read one layer at a time.

    Attributes:
        model: the model that they are of.
        kinds: the kinds of vectors.
        of_layer: a function from a layer's number to its vectors, one tensor for each kind.
    """

    model: Identity
    kinds: tuple[str, ...]
    of_layer: Callable[[int], list[Float[Tensor, "d_mlp d_model"]]]


def vectors_in_memory(lm: HookedLM) -> KeptVectors:
    """Return the vectors of a model that stays in memory."""
    return KeptVectors(lm.identity(), _kinds(lm), lambda layer: _vectors(lm, layer))


def vectors_on_disk(lm: HookedLM, folder: Path) -> KeptVectors:
    """Write the vectors of a model to a folder, one file for each layer. They are read without the model.

    Of several processes the main one writes and reads them.
    """
    kinds, transposed = _kinds(lm), []
    for layer in range(lm.n_layers if processes.is_main() else 0):
        vectors = _vectors(lm, layer)
        # A matrix is read in the layout that it has in memory, so that sums are rounded alike.
        transposed.append([tensor.stride(0) < tensor.stride(1) for tensor in vectors])
        # Cloned, because some families hold the vectors of two kinds in one matrix.
        stored = {
            kind: (tensor.T if turned else tensor).contiguous().clone()
            for kind, tensor, turned in zip(kinds, vectors, transposed[layer], strict=True)
        }
        files.write_tensors(folder / f"{layer}.safetensors", stored)

    def read(layer: int) -> list[Tensor]:
        tensors, _ = files.read_tensors(folder / f"{layer}.safetensors")
        rows = zip(kinds, transposed[layer], strict=True)
        return [tensors[kind].T if turned else tensors[kind] for kind, turned in rows]

    return KeptVectors(lm.identity(), kinds, read)


@torch.no_grad()
def drift_from(before: KeptVectors, after: HookedLM) -> WeightDrift:
    """Compare the vectors of a model with those that were kept of the model before it, which has the same shape."""
    cosines, norm_changes = [], []
    for layer in range(after.n_layers):
        for vectors_before, vectors_after in zip(before.of_layer(layer), _vectors(after, layer), strict=True):
            first, then = vectors_before.double().cpu(), vectors_after.double().cpu()
            norms = first.norm(dim=-1), then.norm(dim=-1)
            cosines.append(cosine_similarity(first, then, dim=-1).where(norms[0] * norms[1] > 0, torch.nan))
            norm_changes.append((norms[1] / norms[0] - 1).where(norms[0] > 0, torch.nan))
    cosine, norm_change = (
        torch.stack(rows).numpy().reshape(after.n_layers, len(before.kinds), -1) for rows in (cosines, norm_changes)
    )
    return WeightDrift(before.kinds, cosine, norm_change, (before.model, after.identity()))


def _kinds(lm: HookedLM) -> tuple[str, ...]:
    return ("key", "up", "value") if lm.gated else ("key", "value")


def _vectors(lm: HookedLM, layer: int) -> list[Float[Tensor, "d_mlp d_model"]]:
    read = {"key": lm.key_vectors, "up": lm.up_vectors, "value": lm.value_vectors}
    return [read[kind](layer) for kind in _kinds(lm)]


def _ends(values: pd.Series) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _signed_percent(value: float, digits: int) -> str:
    return tables.percent(value, signed=True, digits=digits)


def _with_range(form: Any, mean: float, ends: tuple[float, float], digits: int) -> str:
    return f"{form(mean, digits)} ({form(ends[0], digits)} to {form(ends[1], digits)})"
