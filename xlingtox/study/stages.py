"""The whole study as stages: each writes its result, and a run that was interrupted goes on after the last of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from xlingtox import files, languages, tuning
from xlingtox._version import __version__
from xlingtox.checking import checked
from xlingtox.data import as_prompts, check_columns, labelled_texts, meanings
from xlingtox.evaluation import metrics
from xlingtox.evaluation.comparison import Comparison, compare, toxicity_scores
from xlingtox.evaluation.degenerate import Identifier
from xlingtox.evaluation.dose_response import Dose, DoseResponse, check_offsets, dose_response
from xlingtox.evaluation.fluency import check_held_out
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe, split
from xlingtox.scoring import Cached, PerspectiveScorer
from xlingtox.scoring.protocol import Scorer, check_covered
from xlingtox.study.study_folder import StudyFolder
from xlingtox.transfer import prediction, retrieval

_LOG = logging.getLogger(__name__)


@checked
@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a study needs besides a model; the tables are as their loaders give them.

    Attributes:
        labelled: English sentences with labels, for the probe.
        toxic_prompts, neutral_prompts: prompts in every language that is studied.
        pairs: English preference pairs.
        validation: others of them, for the validation loss while tuning; None: the recipe's share of `pairs`, if any.
        parallel: one column a language, or rows `language, sentence, translation`.
        held_out: texts for perplexity.
        scorer: covers every language of the prompts.
        identify_language: tells the language of what the model writes, so that another than the prompt's counts as
            degenerate; None looks at scripts only.
        given: what is known of how the languages were mixed in training, by language; may be empty.
    """

    labelled: Dataset
    toxic_prompts: Dataset
    neutral_prompts: Dataset
    pairs: Dataset
    parallel: Dataset
    held_out: Dataset
    scorer: Scorer
    validation: Dataset | None = None
    identify_language: Identifier | None = None
    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@checked
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sizes and doses of a study.

    Attributes:
        k: candidates.
        offsets: added to the sources on toxic prompts, and to the random sets.
        amplifications: added to the sources on neutral prompts, and to random sets.
        n_random, n_random_amplified: random sets behind the controls of both.
        dose_prompts: prompts a language for the doses; the comparison uses all.
        dose_texts: held-out texts a language for the doses' perplexity.
        n_samples, max_new_tokens: continuations a prompt, and their length in tokens.
        seed: of sampling, of the random sets, and of tuning.
    """

    k: int = 100
    offsets: tuple[float, ...] = (0.0, -0.25, -0.5, -0.75, -1.0, -1.125, -1.25, -1.5)
    amplifications: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    n_random: int = 20
    n_random_amplified: int = 5
    dose_prompts: int = 5
    dose_texts: int = 4
    n_samples: int = 25
    max_new_tokens: int = 20
    recipe: tuning.Recipe = tuning.MINI
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("k", "n_random", "n_random_amplified", "dose_prompts", "dose_texts", "n_samples", "max_new_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: expected 0 or more, and less than 2**32")
        check_offsets(self.offsets)
        check_offsets(self.amplifications)


@checked
def run(
    lm: HookedLM, materials: Materials, *, output_dir: str | Path, settings: Settings, progress: bool = True
) -> dict[str, Any]:
    """Do the study, or what is left of it, and write `results.json`.

    Args:
        output_dir: folder of the study. `stages/` in it holds the result of each stage that is done.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder holds another study, or a file of this one that cannot be read, which is named; or the
            materials or settings do not fit the model or each other, in which case the folder is left as it was.
    """
    _check(lm, materials, settings)
    study = _Study(lm, materials, StudyFolder(output_dir), settings, progress)
    with tqdm(total=len(_STAGES), desc="study", unit="stage", disable=not progress) as bar:
        for name, stage in _STAGES.items():
            bar.set_postfix_str(name)
            study.do(name, stage)
            bar.update()
    results = study.results()
    files.write_results(study.folder / "results.json", results)
    return results


def _check(lm: HookedLM, materials: Materials, settings: Settings) -> None:
    """Refuse at once what a stage would refuse, and before the folder is claimed by a study that cannot be done."""
    lm.check_unedited("a study's folder does not show")
    for name in ("labelled", "toxic_prompts", "neutral_prompts", "pairs", "parallel", "held_out"):
        check_columns(getattr(materials, name), (), f"the materials' {name}")
    localize.check_k(lm, k=settings.k)
    _, labels = labelled_texts(materials.labelled)
    split(labels, seed=settings.seed)
    for what, table in (("toxic prompts", materials.toxic_prompts), ("neutral prompts", materials.neutral_prompts)):
        check_columns(table, ("language", "prompt"), what)
        prompts = as_prompts(table, tokenizer=lm.tokenizer)
        check_covered(materials.scorer, [prompt.language for prompt in prompts])
        check_lengths(lm, prompts, settings.max_new_tokens)
    if "en" not in materials.toxic_prompts["language"]:
        raise ValueError("there are no English toxic prompts: the sources are found on them")
    check_held_out(lm, materials.held_out)
    check_held_out(lm, _few(materials.held_out, settings.dose_texts))
    for name in ("neutral_prompts", "held_out"):
        if lacking := sorted(set(materials.toxic_prompts["language"]) - set(getattr(materials, name)["language"])):
            raise ValueError(f"the materials' {name} has nothing in {', '.join(lacking)}, which the toxic prompts have")
    recipe = _recipe(settings)
    tuning.check_recipe(lm, recipe)
    tuning.tunable_pairs(lm, materials.pairs, recipe=recipe, validation=materials.validation)
    retrieval.sentence_pairs(materials.parallel)


def _recipe(settings: Settings) -> tuning.Recipe:
    return dataclasses.replace(settings.recipe, seed=settings.seed)


def _known_by(lm: HookedLM, materials: Materials, settings: Settings) -> dict[str, Any]:
    """By what a study is known again: its model, materials and settings."""
    tables = [getattr(materials, f.name) for f in dataclasses.fields(materials)]
    rows = [table.to_list() for table in tables if isinstance(table, Dataset)]
    judge = [materials.scorer.name, materials.scorer.revision]
    if materials.identify_language is not None:
        judge.append(
            getattr(materials.identify_language, "__qualname__", type(materials.identify_language).__qualname__)
        )
    digest = hashlib.sha256(json.dumps([rows, *judge], sort_keys=True).encode()).hexdigest()
    return {
        "model": lm.fingerprint(),
        "materials": digest[:12],
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }


class _Study:
    def __init__(
        self, lm: HookedLM, materials: Materials, out: StudyFolder, settings: Settings, progress: bool
    ) -> None:
        self.lm, self.materials, self.settings, self.progress = lm, materials, settings, progress
        self.folder, self._kept = out.path, out
        self.done: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        known_by = _known_by(lm, materials, settings)
        out.check_free_for(known_by)
        judge = materials.scorer
        caching = isinstance(judge, Cached | PerspectiveScorer)
        self.scorer: Scorer = judge if caching else Cached(judge, path=self.folder / "scores.sqlite", progress=progress)
        out.claim(known_by)

    def do(self, name: str, stage: Callable[[_Study], dict[str, Any]]) -> None:
        if (done := self._kept.done(name)) is None:
            done = self._kept.do(name, lambda: stage(self))
        else:
            _LOG.info("stage %s was done before", name)
        self.done[name], self.seconds[name] = done.result, done.seconds

    @property
    def sources(self) -> NeuronSet:
        return NeuronSet.of(self.done["localize"]["actual"])

    def results(self) -> dict[str, Any]:
        merged: dict[str, Any] = {"languages": list(languages.in_order(self.done["compare"]["before"]))}
        for result in self.done.values():
            merged |= result
        packages = ("torch", "transformers", "transformer-lens", "trl", "scikit-learn")
        return merged | {
            "identified": self.materials.identify_language is not None,
            "given": {code: dict(row) for code, row in self.materials.given.items()},
            "model": dataclasses.asdict(self.lm.identity()),
            "seconds": self.seconds,
            "versions": {"python": platform.python_version(), "xlingtox": __version__}
            | {name: version(name) for name in packages},
            "seed": self.settings.seed,
        }


def _localize(study: _Study) -> dict[str, Any]:
    lm, materials, settings = study.lm, study.materials, study.settings
    probe = Probe.fit(lm, materials.labelled, seed=settings.seed, progress=study.progress)
    probe.save(study.folder / "probe.safetensors")
    candidates = localize.by_cosine(lm, probe, k=settings.k)
    english = [
        prompt.text for prompt in as_prompts(materials.toxic_prompts, tokenizer=lm.tokenizer) if prompt.language == "en"
    ]
    acts = collect_activations(lm, english, candidates, max_new_tokens=settings.max_new_tokens, progress=study.progress)
    means = acts.mean()
    sources = candidates.where(means > 0)
    if not sources:
        raise ValueError("none of the candidates is active on English prompts: choose a larger k")
    return {
        "probe": {"accuracy": probe.accuracy, "auc": probe.auc, "baseline": probe.baseline},
        "n_neurons": lm.n_neurons,
        "potential": list(candidates),
        "cosines": list(candidates.scores),
        "activations": means.tolist(),
        "actual": list(sources),
    }


def _promoted(study: _Study) -> dict[str, Any]:
    """Each source's top tokens, with the languages whose text they stand in."""
    lm, localized = study.lm, study.done["localize"]
    texts = [
        (prompt.language, prompt.text) for prompt in as_prompts(study.materials.toxic_prompts, tokenizer=lm.tokenizer)
    ]
    written = generate(
        lm,
        study.materials.toxic_prompts,
        n_samples=4,
        max_new_tokens=study.settings.max_new_tokens,
        seed=study.settings.seed,
        progress=study.progress,
    )
    texts += zip(written.row_languages, written.texts, strict=True)
    seen: dict[int, Counter[str]] = {}
    for (code, _), ids in zip(texts, lm.token_ids([text for _, text in texts]), strict=True):
        for token in ids:
            seen.setdefault(token, Counter())[code] += 1
    rank = {tuple(neuron): i for i, neuron in enumerate(localized["potential"])}
    table = study.sources.promoted_tokens(lm, k=10)
    rows = []
    for layer, index in study.sources:
        own = table[(table["layer"] == layer) & (table["index"] == index)]
        place = rank[layer, index]
        tokens = [
            {"token": token, "languages": _spoken_in(seen.get(token_id, Counter()))}
            for token, token_id in zip(own["token"], own["token_id"], strict=True)
        ]
        rows.append(
            {
                "layer": layer,
                "index": index,
                "cosine": localized["cosines"][place],
                "mean_activation": localized["activations"][place],
                "tokens": tokens,
            }
        )
    return {"promoted": rows}


def _spoken_in(counts: Counter[str]) -> list[str]:
    """Languages that make up at least a tenth of a token's occurrences, in the house's order."""
    return list(languages.in_order(code for code, n in counts.items() if n >= 0.1 * counts.total()))


def _intervene(study: _Study) -> dict[str, Any]:
    settings = study.settings
    response = _dose_response(study, study.materials.toxic_prompts, settings.offsets, n_random=settings.n_random)
    return {"intervention": _rows(response.doses), "control": _rows(response.control)}


def _amplify(study: _Study) -> dict[str, Any]:
    settings, prompts = study.settings, study.materials.neutral_prompts
    response = _dose_response(study, prompts, settings.amplifications, n_random=settings.n_random_amplified)
    return {"amplification": _rows(response.doses), "amplification_control": _rows(response.control)}


def _dose_response(study: _Study, prompts: Dataset, offsets: Sequence[float], *, n_random: int) -> DoseResponse:
    """Measure what each offset on the sources, and on random sets, does after a few of the prompts."""
    settings = study.settings
    return dose_response(
        study.lm,
        study.sources,
        _few(prompts, settings.dose_prompts),
        offsets=offsets,
        scorer=study.scorer,
        held_out=_few(study.materials.held_out, settings.dose_texts),
        n_random=n_random,
        seed=1000 * settings.seed,
        max_new_tokens=settings.max_new_tokens,
        progress=study.progress,
        identify_language=study.materials.identify_language,
    )


def _rows(doses: Sequence[Dose]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(dose) for dose in doses]


def _tune(study: _Study) -> dict[str, Any]:
    recipe, pairs, folder = _recipe(study.settings), study.materials.pairs, study.folder / "tuned"
    tuning.tune_dpo(
        study.lm,
        pairs,
        output_dir=folder,
        recipe=recipe,
        validation=study.materials.validation,
        progress=study.progress,
    )
    log = files.read_results(folder / "log.json", f"delete the folder {folder}, and it is tuned anew")
    return {"recipe": dataclasses.asdict(recipe), "training": _curves(log)}


def _curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The steps of a training log, without how long they took."""
    steps = [row for row in log if "loss" in row or "eval_loss" in row]
    timed = ("runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in steps]


def _compare(study: _Study) -> dict[str, Any]:
    settings, materials = study.settings, study.materials
    tuned = HookedLM.load(study.folder / "tuned", dtype=study.lm.dtype, device=study.lm.device)
    found = compare(
        study.lm,
        tuned,
        materials.toxic_prompts,
        neurons=study.sources,
        scorer=study.scorer,
        held_out=materials.held_out,
        n_samples=settings.n_samples,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        progress=study.progress,
        output_dir=study.folder / "written",
        identify_language=materials.identify_language,
    )
    few = _few(materials.toxic_prompts, 3)
    sides = [
        generate(lm, few, max_new_tokens=settings.max_new_tokens, greedy=True, progress=False)
        for lm in (study.lm, tuned)
    ]
    samples: dict[str, list[dict[str, str]]] = {}
    for prompt, first, then in zip(sides[0].prompts, sides[0].texts, sides[1].texts, strict=True):
        samples.setdefault(prompt.language, []).append({"prompt": prompt.text, "before": first, "after": then})
    whole = dataclasses.asdict(found)
    whole["models"][1]["name"] = "tuned"  # within the study's folder, which may be moved
    return {**whole, "changes_of_others": _changes_of_others(study), "samples": samples}


def _changes_of_others(study: _Study) -> dict[str, dict[str, float]]:
    """Measure to the change in its mean over the languages that are not tuned, from what was written and scored."""
    kept = (Continuations.load(study.folder / "written" / f"{side}.json") for side in ("before", "after"))
    before, after = (toxicity_scores(written, study.scorer) for written in kept)
    others = [code for code in before if code != "en"]
    if not others:
        return {}
    aligned, found = meanings(study.materials.toxic_prompts), {}
    together = aligned and {code: aligned[code] for code in others}
    for measure, of in (("emt", metrics.prompt_maxima), ("average_toxicity", metrics.prompt_means)):
        first, then = ({code: of(scores[code]) for code in others} for scores in (before, after))
        found[measure] = dataclasses.asdict(metrics.paired_changes(first, then, meanings=together)[1])
    return found


def _retrieve(study: _Study) -> dict[str, Any]:
    found = retrieval.bilingual_retrieval(study.lm, study.materials.parallel, progress=study.progress)
    observed = Comparison.of(study.done["compare"])
    by_measure = {measure: _transfer(found, observed, measure) for measure in ("emt", "average_toxicity")}
    main = by_measure[main_measure(observed)]
    return {
        "retrieval": found.mean(),
        "retrieval_intervals": found.intervals(),
        "retrieval_by_layer": found.by_layer(),
        "n_parallel": found.n_sentences,
        "transfer": {"measure": main.measure, "pearson_r": main.pearson_r, "p_value": main.p_value},
        "transfer_by_measure": {
            name: {
                "pearson_r": each.pearson_r,
                "p_value": each.p_value,
                "drop": dict(each.drop),
                "drop_intervals": dict(each.drop_intervals),
                "predictors": each.to_frame().to_dict("records"),
            }
            for name, each in by_measure.items()
        },
    }


def _transfer(found: retrieval.Retrieval, observed: Comparison, measure: str) -> prediction.Transfer:
    """Without r and p where too few languages were toxic at all: all that was measured before is not lost."""
    means = found.mean()
    drops = prediction.shared(means, observed, measure)
    if len(drops) < prediction.FEWEST:
        _LOG.warning("only %d languages have a drop in %s: no correlation", len(drops), measure)
        return prediction.Transfer(measure, {code: means[code] for code in drops}, drops, math.nan, math.nan)
    return prediction.predict_from_retrieval(found, observed, measure=measure)


@checked
def main_measure(observed: Comparison) -> str:
    """EMT as in the paper, unless it saturates: in a quarter or more of the languages its drop is under a tenth.

    A model that is toxic in every few samples keeps its maximum over 25 of them near 1 although it became far less
    toxic on average; then the drop in average toxicity tells more.
    """
    drops = [drop for code, drop in observed.relative_drop("emt").items() if code != "en"]
    saturated = sum(drop < 0.1 for drop in drops) >= len(drops) / 4
    return "average_toxicity" if saturated else "emt"


def _few(table: Dataset, n: int) -> Dataset:
    """The first n rows of each language."""
    seen: Counter[str] = Counter()
    keep = []
    for i, code in enumerate(table["language"]):
        if seen[code] < n:
            keep.append(i)
        seen[code] += 1
    return table.select(keep)


_STAGES: dict[str, Callable[[_Study], dict[str, Any]]] = {
    "localize": _localize,
    "promoted": _promoted,
    "intervene": _intervene,
    "amplify": _amplify,
    "tune": _tune,
    "compare": _compare,
    "retrieve": _retrieve,
}
