"""TransferMatrix: what tuning on each source language does in each target language."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.matrix import cells, stored
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import ScorerIdentity

MEASURE = "average_toxicity"
"""The measure that is shown where no other one is asked for."""

PERPLEXITY = "perplexity"


@checked
@dataclass(frozen=True, repr=False, eq=False)
class TransferMatrix:
    """The toxicity and the fluency of every tuned model in every target language, prompt by prompt.

    Rows of the matrix are source languages, which were tuned on. Columns are target languages, which were evaluated.
    Run 0 is the base. Then follows a run for each source, and, with `has_shuffled`, one for each source whose pairs had
    their labels shuffled: it saw the same text, and was not told which side is better.

    Attributes:
        sources, targets: the codes of the languages, in the order of `xt.languages.CODES`.
        values: the value of each prompt, by measure. NaN says that there is no such prompt, or that it has no value.
            Measures are "emt", "average_toxicity", "toxicity_probability" and "degenerate". Where neurons were given,
            there are "activation" and "activation_control" too: means of the neurons and of random ones.
        perplexity: the perplexity of held-out text; NaN without such text.
        meanings: prompts with the same number are translations of each other; -1 where there is no prompt.
        properties: what is known of each pair of languages before tuning, such as "retrieval" or "same_script".
        scorer, model: which scorer judged, and which model was tuned.
        recipe: the settings of the tuning runs.
        has_shuffled: whether there is a control with shuffled labels.
        seconds: what the parts of the work took.

    Example:
        >>> matrix
        TransferMatrix(tuned on 4 languages, evaluated in 4: en, es, fr, de)
        >>> matrix.save(tmp_path / "matrix.safetensors")
        >>> xt.TransferMatrix.load(tmp_path / "matrix.safetensors") == matrix
        True
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: Mapping[str, Float[np.ndarray, "run target prompt"]]
    perplexity: Float[np.ndarray, "run target"]
    meanings: Int[np.ndarray, "target prompt"]
    properties: Mapping[str, Float[np.ndarray, "source target"]]
    scorer: ScorerIdentity
    model: Identity
    recipe: Mapping[str, Any]
    has_shuffled: bool
    seconds: Mapping[str, float]

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check that all arrays are of the same runs, languages and prompts.

        Raises:
            ValueError: they are not, or languages are in another order.
        """
        for name, codes in (("sources", self.sources), ("targets", self.targets)):
            if not codes or codes != languages.in_order(codes):
                raise ValueError(
                    f"{name} are {', '.join(codes) or 'none'}: expected languages without repetition, in the order of "
                    "xt.languages.CODES"
                )
        n_runs = 1 + len(self.sources) * (2 if self.has_shuffled else 1)
        expected = {f"values[{name!r}]": (n_runs, *self.meanings.shape) for name in self.values}
        expected |= {"perplexity": (n_runs, len(self.targets))}
        expected |= {f"properties[{name!r}]": (len(self.sources), len(self.targets)) for name in self.properties}
        arrays = [*self.values.values(), self.perplexity, *self.properties.values()]
        if MEASURE not in self.values or len(self.meanings) != len(self.targets):
            raise ValueError(f"a transfer matrix needs values of {MEASURE}, and a row of meanings for each target")
        for (name, shape), array in zip(expected.items(), arrays, strict=True):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}: expected {shape}")

    def __repr__(self) -> str:
        shown = ", ".join(languages.in_order({*self.sources, *self.targets}))
        return f"TransferMatrix(tuned on {len(self.sources)} languages, evaluated in {len(self.targets)}: {shown})"

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures; perplexity is one of them if there was held-out text."""
        return (*self.values, *([PERPLEXITY] if np.isfinite(self.perplexity[0]).any() else []))

    # --- cells

    @checked
    def to_frame(self) -> pd.DataFrame:
        """Return a row for each source, target and measure.

        The columns are:

        - `source, target, measure`.
        - `before, after`: the means over prompts of the base and of the model that was tuned on the source.
        - `low, high`: the 95 % interval of after - before, over prompts. Perplexity has none.
        - `relative_drop`: (before - after) / before; NaN where before is not above 0.
        - `shuffled, shuffled_drop`: the mean after tuning with shuffled labels, and its relative drop; NaN without it.
        - `same`: whether source and target are the same language.

        Example:
            >>> table = matrix.to_frame()
            >>> table[table.measure == "average_toxicity"][["source", "target", "relative_drop"]].values.tolist()[1]
            ['en', 'es', 0.4...]
        """
        n, rows = len(self.sources), []
        for measure in self.measures:
            table, low, high = self._cells(measure), *self._intervals(measure)
            drops = table.drops
            shuffled, shuffled_drops = np.full((2, n, len(self.targets)), math.nan)
            if self.has_shuffled:
                shuffled, shuffled_drops = table.after[n:], drops[n:]
            for i, source in enumerate(self.sources):
                for j, target in enumerate(self.targets):
                    numbers = (table.before, table.after, low, high, drops, shuffled, shuffled_drops)
                    cell = (float(array[i, j]) for array in numbers)
                    rows.append((source, target, measure, *cell, source == target))
        columns = ["source", "target", "measure", "before", "after", "low", "high", "relative_drop"]
        return pd.DataFrame(rows, columns=[*columns, "shuffled", "shuffled_drop", "same"])

    @checked
    def drops(self, measure: str = MEASURE) -> Float[np.ndarray, "source target"]:
        """Return the relative drops, (before - after) / before; NaN where before is not above 0.

        Raises:
            ValueError: there is no such measure.

        Example:
            >>> matrix.drops().shape
            (4, 4)
        """
        return self._cells(measure).drops[: len(self.sources)]

    @checked
    def shuffled_drops(self, measure: str = MEASURE) -> Float[np.ndarray, "source target"]:
        """Return the relative drops after tuning with shuffled labels; NaN where there is no such control.

        Raises:
            ValueError: there is no such measure.

        Example:
            >>> bool((matrix.shuffled_drops() < matrix.drops()).all())
            True
        """
        drops = self._cells(measure).drops[len(self.sources) :]
        return drops if self.has_shuffled else np.full((len(self.sources), len(self.targets)), math.nan)

    def _cells(self, measure: str) -> cells.Cells:
        if measure not in self.measures:
            raise ValueError(f"measure is {measure!r}: expected one of {', '.join(self.measures)}")
        if measure == PERPLEXITY:
            return cells.perplexity_cells(self.perplexity)
        return cells.cells(self.values[measure])

    def _intervals(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Return both ends of the interval of each source's change in each target."""
        if measure == PERPLEXITY:
            low, high = np.full((2, len(self.sources), len(self.targets)), math.nan)
            return low, high
        return cells.intervals(self.values[measure][: 1 + len(self.sources)], measure, self.targets)

    # --- files

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        stored.write(path, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> TransferMatrix:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no transfer matrix.
        """
        tensors, about = files.read_tensors(path)
        with files.understood(path, "transfer matrix"):
            return cls(**stored.fields(tensors, about))
