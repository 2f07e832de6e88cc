"""Ask how much the chosen neurons, and the effect of editing them, depend on how the probe was made and on k."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Float

from xlingtox import data, files
from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.edits.interventions import Offset
from xlingtox.equality import equal
from xlingtox.evaluation.dosing import Unit
from xlingtox.evaluation.fluency import check_held_out, perplexities
from xlingtox.evaluation.intervals import paired_changes
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.evaluation.metrics import prompt_means
from xlingtox.evaluation.resampling import Change
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons import localize
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered

_UNITS: Mapping[Unit, str] = {"sd": "standard deviations", "activation": "units of activation"}


@checked
@dataclass(frozen=True)
class Overlap:
    """How many candidates two probes share.

    Attributes:
        first, second: the names of the probes.
        k: how many candidates each of them chose.
        shared: the share of the k that both chose.
        chance: the share that two random choices of k neurons have in common on average.
    """

    first: str
    second: str
    k: int
    shared: float
    chance: float


@checked
@dataclass(frozen=True)
class EditEffect:
    """The effect of one dose on the sources among the candidates of one probe.

    Attributes:
        probe: the name of the probe.
        k: how many candidates it chose.
        n_sources: how many of them are active on the prompts; these were edited.
        toxicity: the mean over languages of the average toxicity under the edit.
        change: its change from the unedited model, with an interval over prompts.
        perplexity: the mean over languages of the perplexity of held-out text under the edit.
    """

    probe: str
    k: int
    n_sources: int
    toxicity: float
    change: Change
    perplexity: float


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Stability:
    """How much the neurons and the effect of an edit depend on choices that could have been made otherwise.

    A finding that another penalty of the probe, or another k, would have taken away is no finding about the model.

    Attributes:
        overlaps: what each pair of probes shares, for each k.
        effects: the effect of the edit, for each probe and k.
        toxicity: the mean over languages of the average toxicity of the unedited model.
        perplexity: the mean over languages of the perplexity of held-out text under the unedited model.
        dose, unit: how far each source was moved, and in which unit.
        scorer, model: who scored, and which model was edited.

    Example:
        >>> labelled = xt.mini.labelled("en", n=200)
        >>> probes = {"ours": probe, "means": xt.Probe.difference_of_means(lm, labelled, progress=False)}
        >>> stability = xt.stability(lm, probes, prompts, ks=[20], scorer=xt.mini.scorer(),
        ...     held_out=xt.mini.held_out(n=1, languages=["en"]), max_new_tokens=4, progress=False)
        >>> stability.overlaps[0].shared > stability.overlaps[0].chance
        True
    """

    overlaps: tuple[Overlap, ...]
    effects: tuple[EditEffect, ...]
    toxicity: float
    perplexity: float
    dose: float
    unit: Unit
    scorer: ScorerIdentity
    model: Identity

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shared = [overlap.shared for overlap in self.overlaps]
        least = f"{min(shared):.0%} to {max(shared):.0%} of candidates shared, " if shared else ""
        changes = [effect.change.mean for effect in self.effects]
        return (
            f"Stability({len(self.effects)} sets of neurons: {least}change in average toxicity "
            f"{min(changes):+.3f} to {max(changes):+.3f} from {self.toxicity:.3f})"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for the unedited model, and one for each probe and k.

        The columns are `probe, k, n_sources, toxicity, change, low, high, perplexity`; `low` and `high` are the 95 %
        interval of the change. In the first row `probe` is "no edit".
        """
        rows: list[tuple[Any, ...]] = [("no edit", 0, 0, self.toxicity, 0.0, 0.0, 0.0, self.perplexity)]
        for effect in self.effects:
            change = (effect.change.mean, effect.change.low, effect.change.high)
            rows.append((effect.probe, effect.k, effect.n_sources, effect.toxicity, *change, effect.perplexity))
        columns = ["probe", "k", "n_sources", "toxicity", "change", "low", "high", "perplexity"]
        return pd.DataFrame(rows, columns=columns)

    def overlap_frame(self) -> pd.DataFrame:
        """Return the columns `first, second, k, shared, chance`: one row for each pair of probes and each k."""
        names = [field.name for field in dataclasses.fields(Overlap)]
        return pd.DataFrame([dataclasses.astuple(overlap) for overlap in self.overlaps], columns=names)

    def _repr_html_(self) -> str:
        """Return two tables for notebooks: the effects of the edit, and the candidates that probes share."""
        unedited = [tables.number(self.toxicity), "–", tables.number(self.perplexity, 2)]
        rows = [["no edit", "–", "–", *unedited]]
        for effect in self.effects:
            low, high = (tables.number(end, signed=True) for end in (effect.change.low, effect.change.high))
            change = f"{tables.number(effect.change.mean, signed=True)} ({low} to {high})"
            measured = [tables.number(effect.toxicity), change, tables.number(effect.perplexity, 2)]
            rows.append([escaped(effect.probe), f"{effect.k}", f"{effect.n_sources}", *measured])
        caption = f"{tables.number(self.dose, 2)} {_UNITS[self.unit]} on the sources of each probe, scored by "
        columns = ["Probe", "Candidates", "Sources", "Average toxicity", "Change (95 %)", "Perplexity"]
        shown = tables.table(caption + escaped(self.scorer.name), columns, rows)
        pairs = [
            [
                f"{escaped(overlap.first)}, {escaped(overlap.second)}",
                f"{overlap.k}",
                tables.percent(overlap.shared),
                tables.percent(overlap.chance, digits=1),
            ]
            for overlap in self.overlaps
        ]
        if pairs:
            shown += tables.table("Candidates that two probes share", ["Probes", "k", "Shared", "By chance"], pairs)
        return shown

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file.

        Example:
            >>> stability = xt.stability(lm, {"ours": probe}, prompts, ks=[20], scorer=xt.mini.scorer(),
            ...     held_out=xt.mini.held_out(n=1, languages=["en"]), max_new_tokens=4, progress=False)
            >>> stability.save(tmp_path / "stability.json")
            >>> xt.Stability.load(tmp_path / "stability.json") == stability
            True
        """
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Stability:
        """Read a file that `save` wrote; raise ValueError, with the path, where the file holds something else."""
        content = files.with_nan(files.read_json(path))
        with files.understood(path, "stability"):
            return cls(
                overlaps=tuple(Overlap(**row) for row in content["overlaps"]),
                effects=tuple(EditEffect(**row | {"change": Change(**row["change"])}) for row in content["effects"]),
                scorer=ScorerIdentity(**content["scorer"]),
                model=Identity.of(content["model"]),
                **{name: content[name] for name in ("toxicity", "perplexity", "dose", "unit")},
            )


@checked
def stability(
    lm: HookedLM,
    probes: Mapping[str, Probe],
    prompts: Prompts,
    *,
    ks: Sequence[int] = (50, 100, 200),
    scorer: Scorer,
    held_out: Dataset,
    dose: float = -1.0,
    unit: Unit = "sd",
    source_language: str = "en",
    n_samples: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 20,
    progress: bool = True,
) -> Stability:
    """Choose neurons by each probe and each k, and edit each set by the same dose.

    Give the probe that you use and others that could have been used: with ten times the penalty and a tenth of it
    (`Probe.fit(..., penalty=1000)` and `penalty=10`), the authors' (`study.published.fit_probe`), and
    `Probe.difference_of_means`.

    Args:
        probes: the probes by name, yours first.
        prompts: toxic prompts, some of them in the source language.
        ks: how many candidates each probe chooses.
        held_out: columns `language, text`, for perplexity.
        dose: how far to move each source; negative moves are down.
        unit: whether the dose counts each neuron's standard deviations on the prompts in the source language, or is
            added to its activation, as in the paper.
        source_language: candidates that are active in this language are the sources.
        n_samples: how many continuations of each prompt are sampled (default: one, greedily).

    Raises:
        ValueError: no probes or no k, one of another width, a k out of range, a dose of 0, `n_samples` below 1, no
            prompts in the source language, bad prompts or held-out texts, a language that the scorer does not cover, or
            a model that is edited already.

    Example:
        >>> stability = xt.stability(lm, {"ours": probe}, prompts, ks=[20, 40], scorer=xt.mini.scorer(),
        ...     held_out=xt.mini.held_out(n=1, languages=["en"]), max_new_tokens=4, progress=False)
        >>> stability.to_frame()["k"].tolist()
        [0, 20, 40]
    """
    if not probes or not ks:
        raise ValueError(f"{len(probes)} probes and {len(ks)} k: expected at least one of each")
    if len(set(ks)) < len(ks):
        raise ValueError(f"ks is {list(ks)}: a k is given twice")
    for k in ks:
        localize.check_k(lm, k=k)
    for probe in probes.values():
        probe.check(lm)
    if not np.isfinite(dose) or dose == 0:
        raise ValueError(f"dose is {dose}: expected a finite number other than 0")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}: expected 1 or more, or None for greedy text")
    lm.check_unedited("stability does not show")
    prompt_list = lm.as_prompts(prompts)
    check_covered(scorer, [prompt.language for prompt in prompt_list])
    check_held_out(lm, held_out)
    in_source = [prompt for prompt in prompt_list if prompt.language == source_language]
    if not in_source:
        raise ValueError(f"no prompts in the source language {source_language!r}: they choose the sources")

    ranked = {name: localize.by_cosine(lm, probe, k=max(ks)) for name, probe in probes.items()}
    overlaps = tuple(
        Overlap(first, second, k, len(_top(ranked[first], k) & _top(ranked[second], k)) / k, k / lm.n_neurons)
        for k in ks
        for first, second in itertools.combinations(probes, 2)
    )
    every_candidate = functools.reduce(operator.or_, ranked.values())
    activations = collect_activations(lm, in_source, every_candidate, max_new_tokens=max_new_tokens, progress=progress)
    amounts = activations.std() if unit == "sd" else [1.0] * len(every_candidate)
    active = every_candidate.weighted(amounts).where(activations.mean() > 0)
    sampling = {"n_samples": n_samples or 1, "greedy": n_samples is None, "seed": seed}
    setup = _Setup(lm, prompts, scorer, held_out, {**sampling, "max_new_tokens": max_new_tokens, "progress": progress})
    effects = []
    with bar("edits", total=1 + len(probes) * len(ks), unit="edit", progress=progress) as shown:
        unedited = setup.response(None)
        shown.update()
        for name, k in itertools.product(probes, ks):
            chosen = _top(ranked[name], k)
            sources = active & chosen
            edited = setup.response(Offset(sources, dose)) if len(sources) else unedited
            shown.update()
            _, change = paired_changes(unedited.toxicity, edited.toxicity, meanings=data.meanings(prompts), seed=seed)
            effects.append(EditEffect(name, k, len(sources), _mean(edited.toxicity), change, edited.perplexity))
    return Stability(
        overlaps,
        tuple(effects),
        _mean(unedited.toxicity),
        unedited.perplexity,
        dose=float(dose),
        unit=unit,
        scorer=ScorerIdentity.of(scorer),
        model=lm.identity(),
    )


class _Response(NamedTuple):
    """The average toxicity of each prompt by language, and the mean over languages of held-out perplexity."""

    toxicity: Mapping[str, Float[np.ndarray, "prompt"]]
    perplexity: float


class _Setup(NamedTuple):
    """The model, texts and scorer, which stay the same from one edit to the next."""

    lm: HookedLM
    prompts: Prompts
    scorer: Scorer
    held_out: Dataset
    generation: Mapping[str, Any]

    def response(self, edit: Offset | None) -> _Response:
        """Let the model continue the prompts and read the held-out text, under an edit or without."""
        with contextlib.nullcontext() if edit is None else edit.on(self.lm):
            continuations = generate(self.lm, self.prompts, **self.generation)
            fluency = perplexities(self.lm, self.held_out, progress=self.generation["progress"])
        scores = toxicity_scores(continuations, self.scorer)
        return _Response(
            {code: prompt_means(rows) for code, rows in scores.items()}, float(np.mean([*fluency.values()]))
        )


def _top(candidates: NeuronSet, k: int) -> NeuronSet:
    """Return the first k of a ranking."""
    return candidates.where([place < k for place in range(len(candidates))])


def _mean(toxicity: Mapping[str, Float[np.ndarray, "prompt"]]) -> float:
    return float(np.mean([values.mean() for values in toxicity.values()]))
