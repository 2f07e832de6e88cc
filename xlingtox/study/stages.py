"""The whole study in stages. Each stage writes its result, so that an interrupted run goes on where it was."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from tqdm.auto import tqdm

from xlingtox import files, languages, tuning
from xlingtox._version import __version__
from xlingtox.checking import checked
from xlingtox.data import as_prompts
from xlingtox.data.columns import by_language
from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import DoseResponse, dose_response
from xlingtox.evaluation.groups import changes_by_group
from xlingtox.evaluation.proposed_doses import propose_doses
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.evidence import evidence as find_evidence
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import Cached, PerspectiveScorer
from xlingtox.scoring.protocol import Scorer
from xlingtox.study import claims, doses, results_file
from xlingtox.study.results import StudyResults
from xlingtox.study.settings import Materials, Settings, check_fit, first_rows
from xlingtox.study.study_folder import StudyFolder
from xlingtox.transfer import prediction, retrieval

_LOG = logging.getLogger(__name__)


@checked
def run(
    lm: HookedLM, materials: Materials, *, output_dir: str | Path, settings: Settings, progress: bool = True
) -> StudyResults:
    """Do the study, or what is left of it, and write `results.json`.

    The stages find the sources, edit them, tune the model on English pairs, compare it before and after, and predict
    the reach of tuning. A run that was stopped goes on after the last stage that is done, to the same results.

    Args:
        lm: the model before tuning, without an edit on it.
        materials: the data that the stages work on.
        output_dir: the folder of the study. `stages/` in it holds the result of each stage that is done.
        settings: the sizes, the offsets, the recipe of tuning and the seed.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder holds another study, or a file that cannot be read. Or the materials or settings do not
            fit the model or each other; then the folder is left as it was.

    Example:
        >>> results = xt.study.run(lm, materials, output_dir="runs/study", settings=settings)  # doctest: +SKIP
        >>> xt.study.report.write(results, "runs/study/report.html")  # doctest: +SKIP
    """
    check_fit(lm, materials, settings)
    study = _Study(lm, materials, settings, folder=StudyFolder(output_dir), progress=progress)
    with tqdm(total=len(_STAGES), desc="study", unit="stage", disable=not progress) as bar:
        for name, stage in _STAGES.items():
            bar.set_postfix_str(name)
            study.do(name, stage)
            bar.update()
    results = study.results()
    results.save(study.folder / "results.json")
    return results


class _Study:
    """A study in progress: what it works on, and the results of the stages that are done.

    Attributes:
        folder: the path of the study's folder.
        scorer: the scorer of the materials; if it has no cache, one is kept in the folder.
        done: the result of each stage that is done.
        seconds: how long each of these stages took.
    """

    def __init__(
        self, lm: HookedLM, materials: Materials, settings: Settings, *, folder: StudyFolder, progress: bool
    ) -> None:
        self.lm, self.materials, self.settings, self.progress = lm, materials, settings, progress
        self.folder, self._stages = folder.path, folder
        self.done: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        identity = {"model": lm.fingerprint(), "materials": materials.fingerprint(), "settings": settings.as_json()}
        folder.check_free_for(identity)
        self.scorer: Scorer = materials.scorer
        if not isinstance(self.scorer, Cached | PerspectiveScorer):
            self.scorer = Cached(materials.scorer, path=self.folder / "scores.sqlite", progress=progress)
        folder.claim(identity)

    def do(self, name: str, stage: Callable[[_Study], dict[str, Any]]) -> None:
        if (done := self._stages.done(name)) is None:
            done = self._stages.do(name, lambda: stage(self))
        else:
            _LOG.info("stage %s was done before", name)
        self.done[name], self.seconds[name] = done.result, done.seconds

    @property
    def sources(self) -> NeuronSet:
        return NeuronSet.of(self.done["localize"]["actual"])

    def results(self) -> StudyResults:
        content: dict[str, Any] = {"languages": list(self.done["compare"]["before"])}
        for result in self.done.values():
            content |= result
        packages = ("torch", "transformers", "transformer-lens", "trl", "scikit-learn")
        content |= {
            "identified": self.materials.identify_language is not None,
            "given": self.materials.mixing,
            "model": dataclasses.asdict(self.lm.identity()),
            "seconds": self.seconds,
            "versions": {"python": platform.python_version(), "xlingtox": __version__}
            | {name: version(name) for name in packages},
            "seed": self.settings.seed,
        }
        return StudyResults.of(content)


def _localize(study: _Study) -> dict[str, Any]:
    lm, materials, settings = study.lm, study.materials, study.settings
    evidence = find_evidence(
        lm,
        materials.labelled,
        k=settings.k,
        labelled_elsewhere=_labelled_by_language(materials.labelled_elsewhere),
        toxic_words=materials.toxic_words or None,
        n_shuffles=settings.n_null,
        seed=settings.seed,
        progress=study.progress,
    )
    probe, candidates = evidence.probe, evidence.candidates
    probe.save(study.folder / "probe.safetensors")
    english = [
        prompt.text for prompt in as_prompts(materials.toxic_prompts, tokenizer=lm.tokenizer) if prompt.language == "en"
    ]
    activations = collect_activations(
        lm, english, candidates, max_new_tokens=settings.max_new_tokens, progress=study.progress
    )
    means = activations.mean()
    sources = candidates.where(means > 0)
    if not sources:
        raise ValueError("none of the candidates is active on English prompts: choose a larger k")
    return {
        "probe": {"accuracy": probe.accuracy, "auc": probe.auc, "baseline": probe.baseline},
        "evidence": evidence.to_frame().to_dict("records"),
        "verdicts": [dataclasses.asdict(verdict) for verdict in evidence.verdicts],
        "n_neurons": lm.n_neurons,
        "potential": list(candidates),
        "cosines": list(candidates.scores),
        "activations": means.tolist(),
        "actual": list(sources),
    }


def _labelled_by_language(table: Dataset | None) -> dict[str, dict[str, list[Any]]] | None:
    """Return the labelled sentences of each language; None where there is no table."""
    if table is None:
        return None
    texts, labels = (by_language(table, column) or {} for column in ("text", "label"))
    return {code: {"text": texts[code], "label": labels[code]} for code in texts}


def _promoted(study: _Study) -> dict[str, Any]:
    """Return each source's top tokens, with the languages in whose text they occur."""
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
    counts: dict[int, Counter[str]] = {}
    for (code, _), ids in zip(texts, lm.token_ids([text for _, text in texts]), strict=True):
        for token in ids:
            counts.setdefault(token, Counter())[code] += 1
    rank = {tuple(neuron): i for i, neuron in enumerate(localized["potential"])}
    table = study.sources.promoted_tokens(lm, k=10)
    rows = []
    for layer, index in study.sources:
        of_source = table[(table["layer"] == layer) & (table["index"] == index)]
        place = rank[layer, index]
        tokens = [
            {"token": token, "languages": _spoken_in(counts.get(token_id, Counter()))}
            for token, token_id in zip(of_source["token"], of_source["token_id"], strict=True)
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
    """Return the languages that make up at least a tenth of a token's occurrences, in the order of `CODES`."""
    return list(languages.in_order(code for code, n in counts.items() if n >= 0.1 * counts.total()))


def _intervene(study: _Study) -> dict[str, Any]:
    settings = study.settings
    response = _dose_response(study, study.materials.toxic_prompts, settings.offsets, -1, settings.n_random)
    return doses.content_of(response, doses.ON_TOXIC)


def _amplify(study: _Study) -> dict[str, Any]:
    settings, prompts = study.settings, study.materials.neutral_prompts
    response = _dose_response(study, prompts, settings.amplifications, 1, settings.n_random_amplified)
    return doses.content_of(response, doses.ON_NEUTRAL)


def _dose_response(
    study: _Study, prompts: Dataset, offsets: Sequence[float] | None, direction: Literal[-1, 1], n_random: int
) -> DoseResponse:
    """Measure the effect of each offset of the sources, and of random sets, after a few of the prompts.

    Where no offsets are given, they are proposed from the model, in this direction.
    """
    settings, lm = study.settings, study.lm
    few = first_rows(prompts, settings.dose_prompts)
    if offsets is None:
        offsets = propose_doses(
            lm,
            study.sources,
            study.materials.held_out,
            unit=settings.unit,
            prompts=few,
            direction=direction,
            n=settings.n_doses,
            max_new_tokens=settings.max_new_tokens,
            progress=study.progress,
        )
    return dose_response(
        lm,
        study.sources,
        offsets,
        few,
        unit=settings.unit,
        scorer=study.scorer,
        held_out=study.materials.held_out,
        n_random=n_random,
        seed=1000 * settings.seed,
        n_samples=settings.dose_samples,
        max_new_tokens=settings.max_new_tokens,
        progress=study.progress,
        identify_language=study.materials.identify_language,
    )


def _tune(study: _Study) -> dict[str, Any]:
    recipe, pairs, folder = study.settings.seeded_recipe(), study.materials.pairs, study.folder / "tuned"
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
    """Return the steps of a training log, without how long they took."""
    steps = [row for row in log if "loss" in row or "eval_loss" in row]
    timings = ("runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(timings)} for row in steps]


def _compare(study: _Study) -> dict[str, Any]:
    settings, materials = study.settings, study.materials
    tuned = HookedLM.load(study.folder / "tuned", dtype=study.lm.dtype, device=study.lm.device)
    comparison = compare(
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
    content = comparison.content()
    content["models"][1]["name"] = "tuned"  # without the study's folder, which may be moved
    written = [Continuations.load(study.folder / "written" / f"{side}.json") for side in ("before", "after")]
    return {
        **content,
        "groups": _groups(study, *written),
        "samples": _samples(study, tuned),
    }


def _groups(study: _Study, before: Continuations, after: Continuations) -> list[dict[str, Any]]:
    """Return what changed in each group of prompts and of words."""
    materials = study.materials
    changes = changes_by_group(before, after, materials.toxic_prompts, scorer=study.scorer, words=materials.word_groups)
    return [dataclasses.asdict(change) for change in changes]


def _samples(study: _Study, tuned: HookedLM) -> dict[str, list[dict[str, str]]]:
    """Return for each language a few prompts with their greedy continuations before and after tuning."""
    prompts = first_rows(study.materials.toxic_prompts, 3)
    before, after = (
        generate(lm, prompts, max_new_tokens=study.settings.max_new_tokens, greedy=True, progress=False)
        for lm in (study.lm, tuned)
    )
    samples: dict[str, list[dict[str, str]]] = {}
    for prompt, first, then in zip(before.prompts, before.texts, after.texts, strict=True):
        samples.setdefault(prompt.language, []).append({"prompt": prompt.text, "before": first, "after": then})
    return samples


def _retrieve(study: _Study) -> dict[str, Any]:
    retrieved = retrieval.bilingual_retrieval(study.lm, study.materials.parallel, progress=study.progress)
    observed = Comparison.of(study.done["compare"])
    by_measure = {measure: _transfer(retrieved, observed, measure) for measure in ("emt", "average_toxicity")}
    main = by_measure[main_measure(observed)]
    return {
        "retrieval": retrieved.mean(),
        "retrieval_intervals": retrieved.intervals(),
        "retrieval_by_layer": retrieved.by_layer(),
        "n_parallel": retrieved.n_sentences,
        "transfer": {"measure": main.measure, "pearson_r": main.pearson_r, "p_value": main.p_value},
        "transfer_by_measure": {
            measure: {
                "pearson_r": transfer.pearson_r,
                "p_value": transfer.p_value,
                "drop": dict(transfer.drop),
                "drop_intervals": dict(transfer.drop_intervals),
                "predictors": transfer.to_frame().to_dict("records"),
            }
            for measure, transfer in by_measure.items()
        },
    }


def _transfer(retrieved: retrieval.Retrieval, observed: Comparison, measure: str) -> prediction.Transfer:
    """Return retrieval against the drops in a measure.

    Where too few languages were toxic at all, r and p are NaN, and the results of the other stages are not lost.
    """
    means = retrieved.mean()
    drops = prediction.shared(means, observed, measure)
    if len(drops) < prediction.FEWEST:
        _LOG.warning("only %d languages have a drop in %s: no correlation", len(drops), measure)
        return prediction.Transfer(measure, {code: means[code] for code in drops}, drops, math.nan, math.nan)
    return prediction.predict_from_retrieval(retrieved, observed, measure=measure)


def _judge(study: _Study) -> dict[str, Any]:
    """Return the verdict on each claim, and the warnings about figures that cannot carry a finding."""
    done = study.done
    comparison = Comparison.of(done["compare"])
    toxic = doses.response_of(done["intervene"], doses.ON_TOXIC)
    neutral = doses.response_of(done["amplify"], doses.ON_NEUTRAL)
    transfer = done["retrieve"]["transfer"]
    summary = results_file.summaries(done["retrieve"]["transfer_by_measure"])[transfer["measure"]]
    verdicts = [
        *claims.of_sources(comparison),
        toxic.verdict(),
        *claims.of_tuning(comparison, comparison.languages, source_language="en"),
        *claims.of_prediction(summary, transfer["measure"]),
    ]
    warnings = [*comparison.warnings, *(f"Doses on toxic prompts: {sentence}" for sentence in toxic.warnings)]
    warnings += [f"Doses on neutral prompts: {sentence}" for sentence in neutral.warnings]
    return {
        "verdicts": done["localize"]["verdicts"] + [dataclasses.asdict(verdict) for verdict in verdicts],
        "warnings": warnings,
    }


@checked
def main_measure(observed: Comparison) -> str:
    """Choose the measure whose drop stands against retrieval: EMT as in the paper, unless it saturates.

    EMT counts as saturated where its drop is under a tenth in a quarter or more of the languages. If a few samples of
    each prompt are still toxic, their maximum stays near 1, even where the model became far less toxic on average. Then
    the drop in average toxicity tells more.
    """
    drops = [drop for code, drop in observed.relative_drop("emt").items() if code != "en"]
    saturated = sum(drop < 0.1 for drop in drops) >= len(drops) / 4
    return "average_toxicity" if saturated else "emt"


_STAGES: dict[str, Callable[[_Study], dict[str, Any]]] = {
    "localize": _localize,
    "promoted": _promoted,
    "intervene": _intervene,
    "amplify": _amplify,
    "tune": _tune,
    "compare": _compare,
    "retrieve": _retrieve,
    "judge": _judge,
}
