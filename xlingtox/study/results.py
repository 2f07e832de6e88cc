"""StudyResults: everything that a study measured, as one value that is kept in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.evaluation.groups import GroupChange
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study import results_file
from xlingtox.study.parts import ProbeQuality as ProbeQuality
from xlingtox.study.parts import PromotedToken as PromotedToken
from xlingtox.study.parts import PromotedTokens as PromotedTokens
from xlingtox.study.parts import Sample as Sample
from xlingtox.study.parts import TransferSummary as TransferSummary
from xlingtox.transfer.prediction import Transfer
from xlingtox.verdicts import Verdict

_IN_A_NOTEBOOK = ("toxicity_probability", "average_toxicity", "degenerate", "perplexity", "mean_activation")
"""The measures that a notebook shows of each language."""


@checked
@dataclass(frozen=True, repr=False)
class StudyResults:
    """Everything that a study measured: `study.run` returns it, and findings, report, figures and picture read it.

    It is kept in one file, `results.json`. Some keys of the file have other names: see `xlingtox.study.results_file`.

    Attributes:
        languages: the languages of the prompts, English first.
        probe: how well the probe tells toxic from other sentences.
        n_neurons: the number of MLP neurons in the model.
        candidates: the neurons whose value vectors point most nearly along the probe, with their cosines as scores
            (the paper's potential sources).
        sources: the candidates that are active on English toxic prompts (the paper's actual sources).
        comparison: every measure in every language, before and after tuning.
        toxic_doses: the effect of offsets of the sources, and of random neurons, after toxic prompts.
        retrieval: the retrieval accuracy between each language and English, before tuning.
        transfer: retrieval against the drop in the study's main measure.
        neutral_doses: the same after neutral prompts; without doses where it was not measured.
        evidence: the rows of `Evidence.to_frame()`: the probe and its candidates next to what chance gives.
        verdicts: each claim of the study, with the verdict on it and the reason.
        warnings: sentences that say which figures cannot carry a finding, and why.
        activations: the mean activation of each candidate on English toxic prompts.
        promoted: the tokens that each source promotes.
        recipe: the hyperparameters of tuning.
        training: the rows of the training log.
        groups: the changes in groups of prompts and of words, such as those that tuning never met; may be empty.
        samples: for each language, a few prompts with their continuations.
        retrieval_intervals: the 95 % interval of each retrieval accuracy, over sentences.
        retrieval_by_layer: for each language, the accuracy in each layer, the embedding's output first.
        n_parallel: for each language, the number of sentences among which a translation was searched.
        transfer_by_measure: for each measure, retrieval against the drop in it.
        identified: whether the language of continuations was identified, for the share of degenerate text.
        mixing: for each language, numbers that say how the training text mixed it with others.
        model: the model before tuning.
        seconds: how long each stage took.
        versions: the version of each package.
        seed: the seed of sampling, of the random sets, and of tuning.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> results.to_frame()[["language", "emt_before", "emt_after", "retrieval"]]  # doctest: +SKIP
    """

    languages: tuple[str, ...]
    probe: ProbeQuality
    n_neurons: int
    candidates: NeuronSet
    sources: NeuronSet
    comparison: Comparison
    toxic_doses: DoseResponse
    retrieval: Mapping[str, float]
    transfer: Transfer
    neutral_doses: DoseResponse = field(default_factory=lambda: DoseResponse(()))
    evidence: tuple[Mapping[str, Any], ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    activations: tuple[float, ...] = ()
    promoted: tuple[PromotedTokens, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[Mapping[str, float], ...] = ()
    groups: tuple[GroupChange, ...] = ()
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    retrieval_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    retrieval_by_layer: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    n_parallel: Mapping[str, int] = field(default_factory=dict)
    transfer_by_measure: Mapping[str, TransferSummary] = field(default_factory=dict)
    identified: bool = False
    mixing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    model: Identity | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        sides = self.comparison.before, self.comparison.after
        if lacking := [code for code in self.languages if any(code not in side for side in sides)]:
            raise ValueError(f"{', '.join(lacking)} is listed among the languages and has no measures")
        if not self.languages:
            raise ValueError("there is no language")

    def __repr__(self) -> str:
        model = "a model" if self.model is None else self.model.name
        before, after = self.means("average_toxicity", self.languages)
        return (
            f"StudyResults({model}, {len(self.languages)} languages, {len(self.sources)} sources, "
            f"average toxicity {before:.3f} to {after:.3f})"
        )

    @property
    def untuned_languages(self) -> tuple[str, ...]:
        """All languages but English, on which the model was tuned."""
        return tuple(code for code in self.languages if code != "en")

    @checked
    def means(self, measure: str, languages: Sequence[str]) -> tuple[float, float]:
        """Return a measure's mean over some languages, before and after tuning."""
        sides = self.comparison.before, self.comparison.after
        before, after = (fmean(getattr(side[code], measure) for code in languages) for side in sides)
        return before, after

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each language: `language`, each measure with `_before` and `_after`, and `retrieval`.

        `retrieval` is NaN where it was not measured, as for English.
        """
        rows: list[dict[str, Any]] = []
        for code in self.languages:
            row: dict[str, Any] = {"language": code}
            for measure in COMPARED:
                row[f"{measure}_before"] = getattr(self.comparison.before[code], measure)
                row[f"{measure}_after"] = getattr(self.comparison.after[code], measure)
            rows.append(row | {"retrieval": self.retrieval.get(code, math.nan)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row for each language, before and after tuning."""
        rows = [
            [tables.language_name(code)]
            + [tables.both(*self.means(measure, [code])) for measure in _IN_A_NOTEBOOK]
            + [tables.percent(self.retrieval[code]) if code in self.retrieval else "–"]
            for code in self.languages
        ]
        model = "" if self.model is None else f" of {escaped(self.model.name)}"
        caption = f"Study{model}: before → after English tuning, scored by {escaped(self.comparison.scorer.name)}"
        columns = [COMPARED[measure].label for measure in _IN_A_NOTEBOOK]
        return tables.table(caption, ["Language", *columns, "Retrieval accuracy"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write `results.json`, one JSON file; null stands for NaN."""
        files.write_results(path, results_file.content_of(vars(self)))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> StudyResults:
        """Read the `results.json` of a study.

        Raises:
            ValueError: a key that every study has is missing, or a value is not what it should be.
        """
        content = files.read_json(path)
        with files.understood(path, "results of a study", "give the results.json that a study wrote"):
            return cls(**results_file.attributes_of(content))

    @classmethod
    @checked
    def of(cls, content: Mapping[str, Any]) -> StudyResults:
        """Return the results that the content of a `results.json` describes, with null or NaN for missing numbers.

        Raises:
            ValueError: a key that every study has is missing, or a value is not what it should be.
        """
        try:
            return cls(**results_file.attributes_of(content))
        except (TypeError, ValueError) as error:
            raise ValueError(f"these are no results of a study: {error}") from error
