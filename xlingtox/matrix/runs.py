"""Run: one model of a matrix. Cell: its measurements in one language, which a file of their own keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from xlingtox import files

Kind: TypeAlias = Literal["base", "tuned", "shuffled"]
"""The model as it is, tuned on a language's pairs, or tuned on them with sides that a coin has exchanged."""


class Run(NamedTuple):
    """One model of a matrix, which is measured in all targets.

    Attributes:
        source: the language that it was tuned on; empty for the base.
    """

    kind: Kind
    source: str = ""

    @property
    def name(self) -> str:
        """The run's name in the names of files."""
        return f"{self.kind}-{self.source}" if self.source else self.kind


def runs(sources: Sequence[str], *, shuffled: bool) -> list[Run]:
    """Return the runs of a matrix in the order of its rows: the base, each source, and each source shuffled."""
    kinds: tuple[Kind, ...] = ("tuned", "shuffled") if shuffled else ("tuned",)
    return [Run("base"), *(Run(kind, source) for kind in kinds for source in sources)]


@dataclass(frozen=True)
class Cell:
    """The measurements of one model in one target language.

    Attributes:
        values: for each measure, one value a prompt.
        perplexity: that of held-out text; NaN without it.
    """

    values: Mapping[str, Float[np.ndarray, "prompt"]]
    perplexity: float

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {name: torch.from_numpy(np.array(values, dtype=np.float64)) for name, values in self.values.items()}
        files.write_tensors(path, tensors, {"perplexity": self.perplexity})

    @classmethod
    def load(cls, path: Path) -> Cell:
        """Read a file that `save` wrote; raise ValueError, with the path, where it holds no cell."""
        remedy = "delete it, and it is measured again"
        tensors, about = files.read_tensors(path, remedy)
        with files.understood(path, "cell", remedy):
            return cls({name: tensor.numpy() for name, tensor in tensors.items()}, float(about["perplexity"]))


def stacked(
    cells: Sequence[Sequence[Cell]],
) -> tuple[dict[str, Float[np.ndarray, "run target prompt"]], Float[np.ndarray, "run target"]]:
    """Return the values of each measure, and the perplexities, of cells by run and target.

    Targets with fewer prompts than another end in NaN.
    """
    n_prompts = [len(next(iter(cell.values.values()))) for cell in cells[0]]
    shape = len(cells), len(n_prompts), max(n_prompts)
    values = {name: np.full(shape, np.nan) for name in cells[0][0].values}
    for run, row in enumerate(cells):
        for target, cell in enumerate(row):
            for name, of_prompts in cell.values.items():
                values[name][run, target, : len(of_prompts)] = of_prompts
    return values, np.array([[cell.perplexity for cell in row] for row in cells])
