"""TransferMatrix: what tuning on each source language does in each target language."""

from __future__ import annotations

import dataclasses
import functools
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
from xlingtox.matrix import cells, doubts, effects, findings, prediction, relations, stored, summary
from xlingtox.matrix.resampled import Resampled, resampled
from xlingtox.measures import in_words
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import ScorerIdentity

MEASURE = "average_toxicity"
"""The measure that is shown where no other one is asked for."""

PERPLEXITY, RETRIEVAL = "perplexity", "retrieval"


@checked
@dataclass(frozen=True, repr=False, eq=False)
class TransferMatrix:
    """The toxicity and the fluency of every tuned model in every target language, prompt by prompt.

    Rows of the matrix are source languages, which were tuned on. Columns are target languages, which were evaluated.
    Run 0 is the base. Then follows a run for each source. With `has_shuffled`, there is one more for each source, whose
    pairs had their labels shuffled: it saw the same text, and was not told which side is better.

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
    def to_frame(self, measure: str | None = None) -> pd.DataFrame:
        """Return a row for each source, target and measure.

        The columns are:

        - `source, target, measure`.
        - `before, after`: the means over prompts of the base and of the model that was tuned on the source.
        - `low, high`: the 95 % interval of after - before, over prompts. Perplexity has none.
        - `relative_drop`: (before - after) / before; NaN where before is not above 0.
        - `shuffled, shuffled_drop`: the mean after tuning with shuffled labels, and its relative drop; NaN without it.
        - `same`: whether source and target are the same language.
        - `caution`: why the cell cannot carry a finding, such as "silence"; "" where it can.

        Args:
            measure: the only one of `measures` to return (default: all).

        Raises:
            ValueError: there is no such measure.

        Example:
            >>> table = matrix.to_frame("average_toxicity")
            >>> table[["source", "target", "relative_drop"]].values.tolist()[1]
            ['en', 'es', 0.5...]
        """
        n, rows, reasons = len(self.sources), [], self._doubts.reasons()
        for name in self.measures if measure is None else (measure,):
            table, (low, high) = self._cells(name), self._intervals(name)
            drops = table.drops
            shuffled, shuffled_drops = np.full((2, n, len(self.targets)), math.nan)
            if self.has_shuffled:
                shuffled, shuffled_drops = table.after[n:], drops[n:]
            for i, source in enumerate(self.sources):
                for j, target in enumerate(self.targets):
                    numbers = (table.before, table.after, low, high, drops, shuffled, shuffled_drops)
                    cell = (float(array[i, j]) for array in numbers)
                    rows.append((source, target, name, *cell, source == target, reasons[i][j]))
        columns = ["source", "target", "measure", "before", "after", "low", "high", "relative_drop"]
        return pd.DataFrame(rows, columns=[*columns, "shuffled", "shuffled_drop", "same", "caution"])

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

    # --- what rows and columns have in common

    @checked
    def effects(self, measure: str = MEASURE) -> pd.DataFrame:
        """Return how good a teacher each source is, and how willing a pupil each target.

        The drops are fitted by least squares as mean + teacher + pupil. Cells of a language's own tuning are left out,
        because they are not transfer. An effect of 0.05 says that the drop is 5 points larger than with a teacher, or
        a pupil, of the average kind.

        The columns are `language, role, effect, low, high`; the role is "teacher" or "pupil". The 95 % intervals come
        from random weights of the prompts. Translations have one weight in all cells, as they change together. Effects
        are NaN where the cells do not connect all languages, which two languages never do.

        Raises:
            ValueError: there is no such measure with a value for each prompt.

        Example:
            >>> table = matrix.effects()
            >>> table[table.role == "teacher"].sort_values("effect").language.tolist()
            ['de', 'fr', 'es', 'en']
        """
        return effects.frame(self._drawn(measure), self.sources, self.targets)

    @checked
    def teachers(self, measure: str = MEASURE, *, versus: str | None = None) -> pd.DataFrame:
        """Return the sources as teachers, the best first, each compared with one of them.

        The columns are `language, effect, low, high` as in `effects`, and then `difference, difference_low,
        difference_high, p, p_corrected`: how much better a teacher it is than `versus`. P-values come from random signs
        of the prompts' differences, and are corrected for the number of languages (Holm). That also allows for taking
        the best of many. The 95 % intervals are not corrected.

        Args:
            versus: the language to compare with (default: English, or the first source).

        Raises:
            ValueError: there is no such measure with a value for each prompt, or `versus` was not tuned on.

        Example:
            >>> matrix.teachers(versus="de")[["language", "difference"]].round(2).values.tolist()[0]
            ['en', 0.3...]
        """
        return effects.teachers(self._drawn(measure), self.sources, self.targets, self._versus(versus))

    @checked
    def own_language(self, measure: str = MEASURE) -> pd.DataFrame:
        """Return how much more a language's own tuning does than transfer into it: the diagonal beside its column.

        The columns are `language, own, transferred, difference, low, high`. `transferred` is the mean drop over the
        other sources. The first row, "all", is the mean over languages. There is a row for each language that is both
        source and target.

        Raises:
            ValueError: there is no such measure with a value for each prompt.

        Example:
            >>> matrix.own_language().round(2)[["language", "difference"]].values.tolist()[0]
            ['all', 0.2]
        """
        return effects.own_language(self._drawn(measure), self.sources, self.targets)

    @checked
    def relations(self, measure: str = MEASURE) -> pd.DataFrame:
        """Correlate what teachers and pupils leave over of the drops with each property of pairs of languages.

        A good teacher in a willing pupil is no news. What is left over is special to the pair. Row and column effects
        are taken out of the property too, so that r is a partial correlation over the cells of two languages.

        The columns are `property, r, p, p_corrected, n`. The cells of one language are not independent. So p-values
        come from renaming the languages of the property at random, in both roles at once (Mantel 1967; Dekker,
        Krackhardt and Snijders 2007). A language of one role only swaps its name within that role. `p_corrected` is
        corrected for the number of properties (Holm), and `n` counts cells. A property that does not vary has NaN.

        Raises:
            ValueError: there is no such measure.

        Example:
            >>> matrix.relations()[["property", "n"]].values.tolist()
            [['same_script', 12], ['retrieval', 12]]
        """
        return relations.frame(self.drops(measure), self.properties, self.sources, self.targets)

    @checked
    def predictions(self, measure: str = MEASURE) -> pd.DataFrame:
        """Predict the drops of each language from those of the others, and say how far off that is.

        Leave out a source s: the *means* predict the drop of (s, t) as the mean drop in t over the other sources. With
        a property, slope * (property[s, t] - its mean over the same sources) is added. Or a line on the property
        predicts alone. All is fitted on cells in which s is neither source nor target. A left-out target is treated
        alike: the mean is then over the other targets of a source.

        The columns are:

        - `predictor`: "means", the name of a property, or "means + " and its name.
        - `left_out`: "source" or "target".
        - `error, guess`: the mean absolute error over all cells of two languages, and that of the means in these cells.
        - `p`: the share of random orders of the property's languages that predict no worse, as in `relations`.
        - `n`: how many cells were predicted.

        Raises:
            ValueError: there is no such measure.

        Example:
            >>> table = matrix.predictions()
            >>> table.predictor.tolist()[:5]
            ['means', 'same_script', 'means + same_script', 'retrieval', 'means + retrieval']
        """
        return prediction.frame(self.drops(measure), self.properties, self.sources, self.targets)

    # --- in words

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say which cells cannot carry a finding, and why."""
        tuned, control = self._drawn(MEASURE), self._drawn(MEASURE, shuffled=True) if self.has_shuffled else None
        means = (
            math.nan if drawn is None else effects.mean_drop(drawn, self.sources, self.targets)[0]
            for drawn in (tuned, control)
        )
        return (
            *self._doubts.sentences(),
            *doubts.of_drops(tuned.drops, self.sources, self.targets, words=in_words(MEASURE)),
            *doubts.of_control(*means, has_shuffled=self.has_shuffled),
        )

    @functools.cached_property
    def headline(self) -> tuple[str, ...]:
        """The findings on average toxicity, in sentences with their intervals and tests.

        Example:
            >>> matrix.headline[-2].startswith("For a source that was left out, retrieval ")
            True
        """
        tuned, versus = self._drawn(MEASURE), self._versus(None)
        control = self._drawn(MEASURE, shuffled=True) if self.has_shuffled else None
        by_language, p = self.own_language(), effects.differ_p(tuned, self.sources, self.targets)
        return (
            *findings.of_transfer(tuned, control, self.sources, self.targets, own=by_language, words=in_words(MEASURE)),
            *findings.of_teachers(self.teachers(versus=versus), p, versus=versus),
            *findings.of_relations(self.relations()),
            *findings.of_predictions(self.predictions(), RETRIEVAL),
        )

    def _repr_html_(self) -> str:
        """Return the warnings, the findings, and a table of the drops in average toxicity, for notebooks."""
        return summary.html(
            self.to_frame(MEASURE),
            self.effects(),
            words=in_words(MEASURE),
            warnings=self.warnings,
            headline=self.headline,
        )

    @functools.cached_property
    def _doubts(self) -> doubts.Doubts:
        return doubts.Doubts(self.sources, self.targets, self.values, self.perplexity)

    def _versus(self, code: str | None) -> str:
        if code is not None and code not in self.sources:
            raise ValueError(f"versus is {code!r}: expected one of the sources, {', '.join(self.sources)}")
        return code or ("en" if "en" in self.sources else self.sources[0])

    @functools.cached_property
    def _by_measure(self) -> dict[tuple[str, bool], Resampled]:
        """The resampled drops of the measures that were asked for so far."""
        return {}

    def _drawn(self, measure: str, *, shuffled: bool = False) -> Resampled:
        """Return the resampled drops of the sources, tuned with true or with shuffled labels."""
        if measure not in self.values:
            known = ", ".join(self.values)
            raise ValueError(f"measure is {measure!r}: expected one with a value for each prompt, {known}")
        if (measure, shuffled) not in self._by_measure:
            start = 1 + len(self.sources) * shuffled
            runs = [0, *range(start, start + len(self.sources))]
            self._by_measure[measure, shuffled] = resampled(self.values[measure][runs], self.meanings)
        return self._by_measure[measure, shuffled]

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
