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
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.side_effects_result import SideEffects as SideEffects
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study import results_file
from xlingtox.study.frontier_summary import FrontierSummary as FrontierSummary
from xlingtox.study.parts import AttributionSummary as AttributionSummary
from xlingtox.study.parts import ProbeQuality as ProbeQuality
from xlingtox.study.parts import PromotedToken as PromotedToken
from xlingtox.study.parts import PromotedTokens as PromotedTokens
from xlingtox.study.parts import Sample as Sample
from xlingtox.study.parts import TransferSummary as TransferSummary
from xlingtox.study.second_opinion import SecondOpinion as SecondOpinion
from xlingtox.transfer.prediction import Transfer
from xlingtox.verdicts import Verdict

_PARTS = (
    *(("localize", "probe"), ("compare", "comparison"), ("predict", "transfer"), ("frontier", "frontier")),
    ("side_effects", "side_effects"),
)
"""Each stage whose part is there if and only if it was run."""

_IN_A_NOTEBOOK = ("toxicity_probability", "average_toxicity", "degenerate", "perplexity", "mean_activation")
"""The measures that a notebook shows of each language."""


@checked
@dataclass(frozen=True, repr=False)
class StudyResults:
    """Everything that a study measured: `study.run` returns it, and findings, report, figures and picture read it.

    It is kept in one file, `results.json`. Some keys of the file have other names: see `xlingtox.study.results_file`.
    A study may leave out stages. What these measure is then None, or empty.

    Attributes:
        languages: the languages of the prompts, in the order of `xt.languages.CODES`. Where nothing was compared, they
            are those of the doses, or else of the parallel sentences.
        probe: how well the probe tells toxic from other sentences; None without the stage "localize".
        n_neurons: the number of MLP neurons in the model.
        candidates: the neurons whose value vectors point most nearly along the probe, with their cosines as scores
            (the paper's potential sources).
        sources: the candidates that are active on toxic prompts in the source language (the paper's actual sources).
        comparison: every measure in every language, before and after tuning; None without the stage "compare".
        toxic_doses: the effect of offsets of the sources, and of random neurons, after toxic prompts.
        retrieval: the retrieval accuracy between each language and the pivot, before tuning.
        transfer: retrieval against the drop in the study's main measure; None without the stage "predict".
        neutral_doses: the same after neutral prompts; without doses where it was not measured.
        evidence: the rows of `Evidence.to_frame()`: the probe and its candidates next to what chance gives.
        verdicts: each claim of the study, with the verdict on it and the reason.
        warnings: sentences that say which figures cannot carry a finding, and why.
        activations: the mean activation of each candidate on toxic prompts in the source language.
        promoted: the tokens that each source promotes.
        recipe: the hyperparameters of tuning.
        training: the rows of the training log.
        groups: the changes in groups of prompts and of words, such as those that tuning never met; may be empty.
        samples: for each language, a few prompts with their continuations.
        retrieval_intervals: the 95 % interval of each retrieval accuracy, over sentences.
        retrieval_by_layer: for each language, the accuracy in each layer, the embedding's output first.
        n_parallel: for each language, the number of sentences among which a translation was searched.
        transfer_by_measure: for each measure, retrieval against the drop in it.
        attribution: the neurons and heads to which tuning's effect on toxic continuations is attributed. It is None
            without the stage "attribute", and where too few continuations are toxic.
        patched: what groups of neurons and all heads carry of that effect when they are patched for real, on prompts on
            which none was chosen. The groups are those of `study.patches`.
        patched_sound: the same for sound continuations, which tuning should leave alone.
        frontier: the comparison of methods at equal fluency; None without the stage "frontier".
        side_effects: what else tuning did; None without the stage "side_effects".
        identified: whether the language of continuations was identified, for the share of degenerate text.
        mixing: for each language, numbers that say how the training text mixed it with others.
        model: the model before tuning.
        seconds: how long each stage took.
        versions: the version of each package.
        seed: the seed of sampling, of the random sets, and of tuning.
        stages: the stages that were run, in the order of `results_file.STAGES`.
        source_language: the language that the probe reads, and that is tuned on.
        second_opinions: the results under each second judge; empty where one judge judged alone.
        pivot: the language that the others are retrieved from. It is the source language, or English where the parallel
            sentences lack that. None where it is not known.
        origins: for each table of data, where it came from: `table, loader, path, n, languages, hash, made_from`.
        notes: sentences that say what was made from what, what was dropped, and why.
        settings: the settings of the study, as `Settings.as_json` gives them; empty where they are not known.
        end_token: whether tuning preferred the end of text (`preferred`), and why (`reason`); None where it is unknown.
        judges: for each scorer, its `name`, its `revision` and the `languages` that it judged.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> results.to_frame()[["language", "emt_before", "emt_after", "retrieval"]]  # doctest: +SKIP
    """

    languages: tuple[str, ...]
    probe: ProbeQuality | None = None
    n_neurons: int = 0
    candidates: NeuronSet = field(default_factory=lambda: NeuronSet.of([]))
    sources: NeuronSet = field(default_factory=lambda: NeuronSet.of([]))
    comparison: Comparison | None = None
    toxic_doses: DoseResponse = field(default_factory=lambda: DoseResponse(()))
    retrieval: Mapping[str, float] = field(default_factory=dict)
    transfer: Transfer | None = None
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
    attribution: AttributionSummary | None = None
    patched: PatchEffect | None = None
    patched_sound: PatchEffect | None = None
    frontier: FrontierSummary | None = None
    side_effects: SideEffects | None = None
    identified: bool = False
    mixing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    model: Identity | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    stages: tuple[str, ...] = results_file.STAGES_OF_OLDER_FILES
    source_language: str = "en"
    origins: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    end_token: Mapping[str, Any] | None = None
    judges: tuple[Mapping[str, Any], ...] = ()
    pivot: str | None = None
    second_opinions: tuple[SecondOpinion, ...] = ()

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("there is no language")
        for stage, part in _PARTS:
            if (stage in self.stages) != (getattr(self, part) is not None):
                expected = f"its {part}" if stage in self.stages else f"no {part}"
                raise ValueError(f"stages is {', '.join(self.stages)}: expected {expected}, as {stage} measures it")
        if self.comparison is not None:
            sides = self.comparison.before, self.comparison.after
            if lacking := [code for code in self.languages if any(code not in side for side in sides)]:
                raise ValueError(f"{', '.join(lacking)} is listed among the languages and has no measures")

    def __repr__(self) -> str:
        n = len(self.languages)
        parts = ["a model" if self.model is None else self.model.name, "1 language" if n == 1 else f"{n} languages"]
        if self.probe is not None:
            parts.append(f"{len(self.sources)} sources")
        if self.comparison is not None:
            before, after = self.means("average_toxicity", self.languages)
            parts.append(f"average toxicity {before:.3f} to {after:.3f}")
        return f"StudyResults({', '.join(parts)})"

    @property
    def untuned_languages(self) -> tuple[str, ...]:
        """All languages but the source language, on which the model was tuned."""
        return tuple(code for code in self.languages if code != self.source_language)

    @property
    def retrieved_from(self) -> str:
        """The pivot of retrieval. Where it is not known, it follows from the languages that were retrieved."""
        if self.pivot is not None:
            return self.pivot
        return "en" if self.source_language in self.retrieval else self.source_language

    @checked
    def means(self, measure: str, languages: Sequence[str]) -> tuple[float, float]:
        """Return a measure's mean over some languages, before and after tuning.

        Raises:
            ValueError: the study has no comparison, or there is no language.
        """
        if self.comparison is None:
            raise ValueError('this study compared no models before and after tuning: it lacks the stage "compare"')
        if not languages:
            raise ValueError("there are no languages to average over")
        sides = self.comparison.before, self.comparison.after
        before, after = (fmean(getattr(side[code], measure) for code in languages) for side in sides)
        return before, after

    @property
    def unedited_toxicity(self) -> Mapping[str, float]:
        """The average toxicity of each language without an edit, after toxic prompts; empty without doses.

        It is measured on the prompts of the doses, of which a study may take fewer than for its comparison.
        """
        unedited = [dose for dose in self.toxic_doses.doses if dose.offset == 0]
        return dict(unedited[0].toxicity_by_language) if unedited else {}

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each language: `language`, each measure with `_before` and `_after`, and `retrieval`.

        A study that compared nothing has no measures, but the column `unedited_toxicity` where it tried doses.
        `retrieval` is NaN where it was not measured, as for the source language.
        """
        rows: list[dict[str, Any]] = []
        for code in self.languages:
            row: dict[str, Any] = {"language": code}
            if self.comparison is not None:
                for measure in COMPARED:
                    row[f"{measure}_before"] = getattr(self.comparison.before[code], measure)
                    row[f"{measure}_after"] = getattr(self.comparison.after[code], measure)
            elif self.unedited_toxicity:
                row["unedited_toxicity"] = self.unedited_toxicity.get(code, math.nan)
            rows.append(row | {"retrieval": self.retrieval.get(code, math.nan)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row for each language, before and after tuning where this was compared."""
        model = "" if self.model is None else f" of {escaped(self.model.name)}"
        columns, caption = ["Language"], f"Study{model}"
        if self.comparison is not None:
            caption += f": before → after {tables.language_name(self.source_language)} tuning, scored by "
            caption += escaped(self.comparison.scorer.name)
            columns += [COMPARED[measure].label for measure in _IN_A_NOTEBOOK]
        elif self.unedited_toxicity:
            columns.append("Average toxicity without an edit")
        columns += ["Retrieval accuracy"] if self.retrieval else []
        return tables.table(caption, columns, [self._row(code) for code in self.languages])

    def _row(self, code: str) -> list[str]:
        row = [tables.language_name(code)]
        if self.comparison is not None:
            row += [tables.both(*self.means(measure, [code])) for measure in _IN_A_NOTEBOOK]
        elif self.unedited_toxicity:
            row.append(tables.number(self.unedited_toxicity.get(code, math.nan)))
        if self.retrieval:
            row.append(tables.percent(self.retrieval[code]) if code in self.retrieval else "–")
        return row

    @checked
    def save(self, path: str | Path) -> None:
        """Write `results.json`, one JSON file; null stands for NaN."""
        files.write_results(path, results_file.content_of(vars(self)))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> StudyResults:
        """Read the `results.json` of a study.

        Raises:
            ValueError: a key that the study's stages write is missing, or a value is not what it should be.
        """
        content = files.read_json(path)
        with files.understood(path, "results of a study", "give the results.json that a study wrote"):
            return cls(**results_file.attributes_of(content))

    @classmethod
    @checked
    def of(cls, content: Mapping[str, Any]) -> StudyResults:
        """Return the results that the content of a `results.json` describes, with null or NaN for missing numbers.

        Raises:
            ValueError: a key that the study's stages write is missing, or a value is not what it should be.
        """
        try:
            return cls(**results_file.attributes_of(content))
        except (TypeError, ValueError) as error:
            raise ValueError(f"these are no results of a study: {error}") from error
