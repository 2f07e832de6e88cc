"""Probe: a direction in the residual stream that tells toxic from other text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox import strictjson
from xlingtox.batching import over_texts
from xlingtox.checking import checked
from xlingtox.data import labelled_texts
from xlingtox.lm import HookedLM, Identity

_PENALTY = 0.01
"""Inverse strength of the L2 penalty, on standardised states.

Where the classes can be told apart in many ways, a weak penalty picks the direction by a few odd sentences; a strong
one comes near the difference of the class means, which a model's own computation follows more (Marks and Tegmark 2023,
"The Geometry of Truth", section 5).
"""


@checked
def mean_states(
    lm: HookedLM, texts: Sequence[str], layers: Sequence[int], batch_size: int | None = None, progress: bool = True
) -> Float[Tensor, "layer text d_model"]:
    """Mean over each text's tokens of the residual stream at `layers` (0: the embedding's output, n: the n-th block's).

    One pass, texts of like length together; each state is averaged where it arises and not kept. Of a text longer than
    the model's context only the beginning is read. Float32, on the CPU.

    Raises:
        ValueError: no texts, or one without tokens.
    """
    out = torch.empty(len(layers), len(texts), lm.d_model)
    with tqdm(total=len(texts), desc="reading states", unit="text", disable=not progress, leave=False) as bar:

        def read(rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> None:
            weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1)
            means: dict[int, Tensor] = {}

            def keep(layer: int, state: Tensor) -> None:
                means[layer] = (weight.to(state.device) @ state.float()).squeeze(1)

            with lm.hooks(residual={layer: partial(keep, layer) for layer in layers}):
                lm.logits(ids, mask, last_only=True)
            # Copied after the pass: a copy within it would make a GPU wait at every layer.
            for place, layer in enumerate(layers):
                out[place, rows] = means[layer].cpu()
            bar.update(len(rows))

        over_texts(lm, texts, batch_size, read)
    return out


def split(labels: Sequence[int], held_out: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Row numbers to fit on and to hold out, stratified by label.

    Raises:
        ValueError: too few rows of a label for both parts.
    """
    try:
        train, test = train_test_split(range(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"cannot hold out {held_out} of {len(labels)} labelled sentences: {error}") from error
    return train, test


@checked
@dataclass(frozen=True)
class Probe:
    """A toxicity direction with the evidence for it.

    Attributes:
        direction: weights of the logistic regression; more along it is more toxic. Not normalised.
        bias: its intercept.
        accuracy, auc: on held-out sentences, in [0, 1].
        baseline: accuracy of always answering the larger class, on the same held-out sentences.
        n_train, n_held_out: sentences in each part.
        model: which model's states it reads; None where that is not known.
    """

    direction: Float[Tensor, "d_model"]
    bias: float
    accuracy: float
    auc: float
    baseline: float
    n_train: int
    n_held_out: int
    model: Identity | None = None

    @classmethod
    @checked
    def fit(cls, lm: HookedLM, labelled: Dataset, held_out: float = 0.1, seed: int = 0, progress: bool = True) -> Probe:
        """Fit on the mean over tokens of the last layer's residual stream, before the final norm (paper, section 4.1).

        Args:
            labelled: columns `text, label` (1 is toxic).
            held_out: share of the sentences, stratified, on which accuracy and AUC are measured.

        Raises:
            ValueError: labels of one class only, too few of one to split, or a missing column.
        """
        texts, given = labelled_texts(labelled)
        train, test = split(given, held_out, seed)
        states, labels = mean_states(lm, texts, [lm.n_layers], progress=progress)[0].numpy(), np.array(given)
        x, x_test, y, y_test = states[train], states[test], labels[train], labels[test]
        centre, scale = x.mean(0), x.std(0) + 1e-6
        model = LogisticRegression(C=_PENALTY, max_iter=2000).fit((x - centre) / scale, y)
        direction = model.coef_[0] / scale
        bias = float(model.intercept_[0] - centre @ direction)
        logits = x_test @ direction + bias
        return cls(
            direction=torch.tensor(direction, dtype=torch.float32),
            bias=bias,
            accuracy=float(((logits > 0) == y_test).mean()),
            auc=float(roc_auc_score(y_test, logits)),
            baseline=float(max(y_test.mean(), 1 - y_test.mean())),
            n_train=len(y),
            n_held_out=len(y_test),
            model=lm.identity(),
        )

    @checked
    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless the direction has the model's width."""
        if self.direction.shape != (lm.d_model,):
            raise ValueError(
                f"the probe has width {tuple(self.direction.shape)}, {lm.name} has d_model {lm.d_model}: "
                "fit a probe on this model"
            )

    def __repr__(self) -> str:
        return (
            f"Probe(d_model {len(self.direction)}: held-out accuracy {self.accuracy:.3f}, "
            f"AUC {self.auc:.3f}, majority baseline {self.baseline:.3f})"
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write `path` (safetensors) and the figures beside it (JSON)."""
        file = Path(path).expanduser()
        save_file({"direction": self.direction.contiguous()}, file)
        figures = {name: getattr(self, name) for name in _FIGURES}
        figures["model"] = self.model and dataclasses.asdict(self.model)
        strictjson.beside(file).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Probe:
        file = Path(path).expanduser()
        figures = json.loads(strictjson.beside(file).read_text("utf-8"))
        model = figures.pop("model")
        return cls(direction=load_file(file)["direction"], model=model and Identity(**model), **figures)


_FIGURES = ("bias", "accuracy", "auc", "baseline", "n_train", "n_held_out")
