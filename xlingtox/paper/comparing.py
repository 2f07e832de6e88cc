"""Put our results next to the paper's published numbers: one study, several tuning seeds, or several models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, TypeAlias, runtime_checkable

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.measures import TOXICITY
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.paper import numbers
from xlingtox.paper.results import MEAN, OFFSETS, Beside, Counterpart


@runtime_checkable
class Study(Protocol):
    """The parts of a study's results that have a counterpart in the paper; `xt.StudyResults` has them all.

    Example:
        >>> isinstance(lm, xt.paper.Study)
        False
    """

    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def comparison(self) -> Comparison | None: ...
    @property
    def model(self) -> Identity | None: ...
    @property
    def n_neurons(self) -> int: ...
    @property
    def candidates(self) -> NeuronSet: ...
    @property
    def sources(self) -> NeuronSet: ...
    @property
    def probe(self) -> Any: ...
    @property
    def toxic_doses(self) -> Any: ...
    @property
    def transfer_by_measure(self) -> Mapping[str, Any]: ...


Results: TypeAlias = (
    Study | Comparison | Sequence[Study | Comparison] | Mapping[str, Study | Comparison | Sequence[Study | Comparison]]
)
"""One study or comparison; a list of those that differ only in their seed; or either of these by the model's name."""


@checked
def beside(results: Results, *, models: Sequence[str] | None = None) -> Beside:
    """Put our results next to every published number that they have a counterpart to.

    A reproduction is judged by its directions first: toxicity fell, perplexity rose, activations fell. Sizes compare
    only where the same quantity was measured in the same unit, and each row says why they do not.

    A list holds studies that differ only in their seed, as the five of the paper's Figure 1. Their mean is shown, with
    the least and the greatest. A dict holds the results of several models by name (the paper's Figures 12 to 15).

    Args:
        results: `StudyResults`, or what `xt.compare` gives, which has counterparts to Table 2 and Figure 3 only; a list
            of them, one for each seed; or a dict from the name of a model to either.
        models: which of the paper's six models to show (`xt.paper.MODELS`); all of them by default.

    Raises:
        ValueError: an empty list or dict, a study that compared nothing, studies in one list of several models or
            languages, or a model that the paper does not have.

    Example:
        >>> comparison = xt.compare(lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=2, max_new_tokens=4, progress=False)
        >>> frame = xt.paper.beside({"one": [comparison, comparison], "two": comparison}, models=["mGPT"]).to_frame()
        >>> frame.loc[frame.measure == "emt", ["paper_before", "model", "before_least", "n_studies"]].shape
        (2, 4)
    """
    if unknown := sorted(set(models or ()) - set(numbers.MODELS)):
        raise ValueError(f"the paper has no model {unknown[0]!r}: expected some of {', '.join(numbers.MODELS)}")
    shown = numbers.MODELS if models is None else [model for model in numbers.MODELS if model in models]
    by_model = studies_by_model(results)
    rows = [row for name, studies in by_model.items() for row in _rows(name, studies, shown)]
    order = {source: i for i, source in enumerate(("Table 2", "Figure 2", "Figure 3", "Figure 4", "text"))}
    return Beside(tuple(sorted(rows, key=lambda row: order[row.source])))


def studies_by_model(results: Results) -> dict[str, list[Study | Comparison]]:
    """Return the studies of each model, by the name of the model.

    Raises:
        ValueError: there is none, or the studies of one model differ in their languages or in the model's name.
    """
    if isinstance(results, Mapping):
        by_model = {name: _listed(studies) for name, studies in results.items()}
    else:
        studies = _listed(results)
        by_model = {(_model_name(studies[0]) or "ours") if studies else "ours": studies}
    for name, studies in by_model.items():
        if not studies:
            raise ValueError(f"{name} has no results: expected at least one study or comparison")
        if len({frozenset(comparison_of(study).languages) for study in studies}) > 1:
            raise ValueError(f"the results of {name} differ in their languages: expected the same in every seed")
        names = sorted({found for study in studies if (found := _model_name(study)) is not None})
        if len(names) > 1:
            raise ValueError(
                f"the results of {name} are of several models ({', '.join(names)}): give a dict from name to results"
            )
    if not by_model:
        raise ValueError("there are no results: expected at least one study or comparison")
    return by_model


def comparison_of(study: Study | Comparison) -> Comparison:
    """Return a study's comparison, or the comparison itself.

    Raises:
        ValueError: the study compared nothing.
    """
    comparison = study if isinstance(study, Comparison) else study.comparison
    if comparison is None:
        name = _model_name(study) or "a model"
        raise ValueError(f'the study of {name} compared nothing before and after tuning: it lacks the stage "compare"')
    return comparison


def _listed(results: Study | Comparison | Sequence[Study | Comparison]) -> list[Study | Comparison]:
    return [results] if isinstance(results, Comparison | Study) else list(results)


def _model_name(study: Study | Comparison) -> str | None:
    models = study.models if isinstance(study, Comparison) else None
    identity = models[0] if models else getattr(study, "model", None)
    return None if identity is None else str(identity.name)


def _rows(model: str, studies: Sequence[Study | Comparison], shown: Sequence[str]) -> Iterator[Counterpart]:
    """Yield the rows of one model of ours; numbers that no study has are left out."""
    compared = [comparison_of(study) for study in studies]
    full = [study for study in studies if not isinstance(study, Comparison)]
    rows = [*_of_table_2(compared, shown), *_of_transfer(full, shown)]
    if numbers.MECHANISM_MODEL in shown:
        is_same_model = numbers.MECHANISM_MODEL.casefold() in model.casefold()
        rows += [*_of_figure_2(full), *_of_figure_3(compared, is_same_model), *_of_sources(full, is_same_model)]
    tuned_on = languages.in_order(getattr(study, "source_language", "en") for study in full)
    others = ", ".join(languages.name(code) for code in tuned_on if code != "en")
    reasons = (f"probed and tuned in {others}, and the paper in English",) if others else ()
    for row in rows:
        if known := tuple(value for value in row.values if value and all(map(math.isfinite, value))):
            yield dataclasses.replace(row, model=model, values=known, why_not=(*row.why_not, *reasons))


def _row(
    source: str, measure: str, paper: tuple[float, ...], values: Iterable[tuple[float, ...]], **more: Any
) -> Counterpart:
    """Return a row of which the name of our model, and which values are known, is settled later."""
    more = {"language": MEAN, "paper_model": numbers.MECHANISM_MODEL, "why_not": ()} | more
    return Counterpart(source, measure, model="", paper=paper, values=tuple(values), **more)


def _of_table_2(compared: Sequence[Comparison], shown: Sequence[str]) -> Iterator[Counterpart]:
    for measure in numbers.MEASURES:
        values = [_mean(comparison, measure, comparison.languages) for comparison in compared]
        reasons = _why_not(measure, compared[0])
        for name in shown:
            paper = numbers.TABLE_2[name][measure]
            yield _row("Table 2", measure, paper, values, paper_model=name, why_not=reasons)


def _of_figure_2(full: Sequence[Study]) -> Iterator[Counterpart]:
    """Yield average toxicity without an offset, and at the lowest one."""
    if full:
        first, last = numbers.FIGURE_2_OFFSETS
        reasons = *_why_not("average_toxicity", comparison_of(full[0])), f"offsets other than {first:g} and {last:g}"
        values = [_ends_of_doses(study.toxic_doses.doses) for study in full]
        yield _row("Figure 2", OFFSETS, numbers.FIGURE_2, values, why_not=reasons)


def _of_figure_3(compared: Sequence[Comparison], is_same_model: bool) -> Iterator[Counterpart]:
    """Yield the mean activation of the sources over languages, and in each."""
    unlike = "no beginning of text and no steps after an end of text are read, unlike in the authors' code"
    reasons = (unlike,) if is_same_model else ("neurons of another model", unlike)
    codes = [code for code in languages.in_order(compared[0].languages) if code in numbers.FIGURE_3]
    for language, group in {MEAN: codes, **{code: [code] for code in codes}}.items() if codes else ():
        before, after = (fmean(numbers.FIGURE_3[code][side] for code in group) for side in (0, 1))
        values = [_mean(comparison, "mean_activation", group) for comparison in compared]
        yield _row("Figure 3", "mean_activation", (before, after), values, language=language, why_not=reasons)


def _of_sources(full: Sequence[Study], is_same_model: bool) -> Iterator[Counterpart]:
    """Yield the numbers on the probe and on the neurons that it led to."""
    reasons: tuple[str, ...] = ("held-out sentences other than Jigsaw's test split",)
    values = [(float(study.probe.auc),) for study in full if study.probe is not None]
    yield _row("text", "auc", (numbers.PROBE_AUC,), values, language="en", neutral=0.5, why_not=reasons)
    with_candidates = [study for study in full if len(study.candidates)]
    sizes = sorted({len(study.candidates) for study in with_candidates})
    reasons = tuple(f"{n} candidates, not {numbers.N_CANDIDATES}" for n in sizes if n != numbers.N_CANDIDATES)
    values = [(len(study.sources) / len(study.candidates),) for study in with_candidates]
    share = len(numbers.SOURCES) / numbers.N_CANDIDATES
    yield _row("text", "share_of_sources", (share,), values, language="en", why_not=reasons)
    if is_same_model:
        same_shape = [study for study in full if study.n_neurons == numbers.N_NEURONS]
        values = [(float(len(study.sources & numbers.SOURCES)),) for study in same_shape]
        yield _row("text", "shared_sources", (float(len(numbers.SOURCES)),), values, language="en")


def _of_transfer(full: Sequence[Study], shown: Sequence[str]) -> Iterator[Counterpart]:
    """Yield the correlation of retrieval and the drop in EMT."""
    summaries = [study.transfer_by_measure["emt"] for study in full if "emt" in study.transfer_by_measure]
    values = [(float(summary.pearson_r),) for summary in summaries]
    reasons = ("the authors' retrieval accuracy is the mean cosine of translations, and ours searches for them",)
    for name in shown:
        if name in numbers.RETRIEVAL_R:
            paper = (numbers.RETRIEVAL_R[name],)
            yield _row("Figure 4", "pearson_r", paper, values, paper_model=name, neutral=0.0, why_not=reasons)


def _mean(comparison: Comparison, measure: str, codes: Sequence[str]) -> tuple[float, float]:
    """Return a measure's mean over languages, before and after."""
    before, after = (
        fmean(getattr(side[code], measure) for code in codes) for side in (comparison.before, comparison.after)
    )
    return before, after


def _ends_of_doses(doses: Sequence[Any]) -> tuple[float, ...]:
    """Return average toxicity without an offset and at the lowest one; nothing where either is not known."""
    rising = sorted(doses, key=lambda dose: dose.offset)
    unedited = [dose for dose in rising if dose.offset == 0]
    if not unedited or not rising[0].offset < 0:
        return ()
    return float(unedited[0].average_toxicity), float(rising[0].average_toxicity)


def _why_not(measure: str, comparison: Comparison) -> tuple[str, ...]:
    """Return the known reasons why a measure's size does not compare with that of the paper."""
    reasons = []
    if measure == "continuation_perplexity":
        reasons.append("the paper's is a score of mT5-XL, which sees the answer, and ours a perplexity")
    elif measure.startswith("distinct"):
        reasons.append("the paper divides by the number of unigrams, in tokens of mT5")
    elif measure in TOXICITY and not comparison.scorer.name.startswith("Perspective"):
        reasons.append(f"scored by {comparison.scorer.name}, and the paper's by Perspective")
    if set(comparison.languages) != set(languages.CODES):
        reasons.append(
            f"a mean over {len(comparison.languages)} languages, and the paper's over {len(languages.CODES)}"
        )
    return tuple(reasons)
