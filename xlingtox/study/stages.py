"""The stages of a study: what each does, and what `results.json` keeps of it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from datasets import Dataset

from xlingtox import files, languages, processes, tuning
from xlingtox.checking import checked
from xlingtox.data.columns import by_language
from xlingtox.data.sides import ordered_pairs
from xlingtox.evaluation.compare_models import compare_in_turn
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import DoseResponse, dose_response
from xlingtox.evaluation.groups import changes_by_group
from xlingtox.evaluation.proposed_doses import propose_doses
from xlingtox.models.completions import ServerError
from xlingtox.models.generation import Continuations, generate
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.evidence import evidence as find_evidence
from xlingtox.study import claims, doses, frontier_findings, frontier_summary, patches, plan, results_file
from xlingtox.study.attributing import attribute
from xlingtox.study.engine import told
from xlingtox.study.frontier_stage import frontier
from xlingtox.study.in_progress import InProgress
from xlingtox.study.settings import first_rows, pivot_of
from xlingtox.study.side_effects_stage import side_effects
from xlingtox.transfer import prediction, retrieval
from xlingtox.verdicts import Verdict

_LOG = logging.getLogger(__name__)

_SHOWN = 3
"""So many prompts of each language are shown to readers, with what both models write greedily."""


def _localize(study: InProgress) -> dict[str, Any]:
    lm, materials, settings = study.models.base(), study.materials, study.settings
    assert materials.labelled is not None
    evidence = find_evidence(
        lm,
        materials.labelled,
        k=settings.k,
        labelled_elsewhere=_labelled_by_language(materials.labelled_elsewhere),
        toxic_words=materials.toxic_words or None,
        n_shuffles=settings.n_null,
        source_language=settings.source_language,
        seed=settings.seed,
        progress=study.progress,
    )
    probe, candidates = evidence.probe, evidence.candidates
    processes.from_main(partial(probe.save, study.folder / "probe.safetensors"))
    prompts = lm.as_prompts(materials.toxic_prompts)
    in_source_language = [prompt for prompt in prompts if prompt.language == settings.source_language]
    activations = collect_activations(
        lm, in_source_language, candidates, max_new_tokens=settings.max_new_tokens, progress=study.progress
    )
    means = activations.mean()
    sources = candidates.where(means > 0)
    if not sources:
        raise ValueError(
            f"none of the {len(candidates)} candidates is active on {languages.name(settings.source_language)} toxic "
            "prompts: choose more candidates"
        )
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


def _labelled_by_language(table: Dataset | None) -> dict[str, Dataset] | None:
    """Return the labelled sentences of each language; None where there is no table."""
    if table is None:
        return None
    texts, labels = (by_language(table, column) or {} for column in ("text", "label"))
    return {code: Dataset.from_dict({"text": texts[code], "label": labels[code]}) for code in texts}


def _promoted(study: InProgress) -> dict[str, Any]:
    """Return each source's top tokens, with the languages in whose text they occur."""
    lm, localized = study.models.base(), study.done["localize"]
    texts = [(prompt.language, prompt.text) for prompt in lm.as_prompts(study.materials.toxic_prompts)]
    written = generate(
        lm,
        study.materials.toxic_prompts,
        n_samples=plan.samples_of_promoted(study.settings, study.keys),
        max_new_tokens=study.settings.max_new_tokens,
        seed=study.settings.seed,
        progress=study.progress,
    )
    first = [i for i in range(len(written)) if i % written.n_samples < plan.N_PROMOTED]
    texts += [(written.row_languages[i], written.texts[i]) for i in first]
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


def _intervene(study: InProgress) -> dict[str, Any]:
    settings = study.settings
    response = _dose_response(study, study.materials.toxic_prompts, settings.offsets, -1, settings.n_random)
    return doses.content_of(response, doses.ON_TOXIC)


def _amplify(study: InProgress) -> dict[str, Any]:
    settings, prompts = study.settings, study.materials.neutral_prompts
    assert prompts is not None
    response = _dose_response(study, prompts, settings.amplifications, 1, settings.n_random_amplified)
    return doses.content_of(response, doses.ON_NEUTRAL)


def _dose_response(
    study: InProgress, prompts: Dataset, offsets: Sequence[float] | None, direction: Literal[-1, 1], n_random: int
) -> DoseResponse:
    """Measure the effect of each offset of the sources, and of random sets, after a few of the prompts.

    Where no offsets are given, they are proposed from the model, in this direction.
    """
    settings, lm, held_out = study.settings, study.models.base(), study.materials.held_out
    assert held_out is not None
    few = first_rows(prompts, settings.dose_prompts)
    if offsets is None:
        offsets = propose_doses(
            lm,
            study.sources,
            held_out,
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
        held_out=held_out,
        n_random=n_random,
        seed=1000 * settings.seed,
        n_samples=settings.dose_samples,
        max_new_tokens=settings.max_new_tokens,
        progress=study.progress,
        identify_language=study.materials.identify_language,
    )


def _tune(study: InProgress) -> dict[str, Any]:
    settings, materials = study.settings, study.materials
    recipe, folder = settings.seeded_recipe(), study.tuned_folder
    assert materials.pairs is not None
    order, validation = settings.pairs_order, materials.validation
    tuned = tuning.tune(
        study.models.to_tune(),
        ordered_pairs(materials.pairs, order, seed=settings.seed),
        output_dir=folder,
        recipe=recipe,
        validation=None if validation is None else ordered_pairs(validation, order, seed=settings.seed),
        progress=study.progress,
    )
    del tuned  # it is read again by the stage that needs it
    remedy = f"delete the folder {folder}, and it is tuned anew"
    log, record = processes.from_main(
        lambda: [files.read_results(folder / name, remedy) for name in ("log.json", "recipe.json")]
    )
    return {"recipe": dataclasses.asdict(recipe), "training": _curves(log), "end_token": record["end_token"]}


def _curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the steps of a training log, without how long they took."""
    steps = [row for row in log if "loss" in row or "eval_loss" in row]
    timings = ("runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(timings)} for row in steps]


def _compare(study: InProgress) -> dict[str, Any]:
    settings, materials, models = study.settings, study.materials, study.models
    models.tuned_in(study.tuned_folder)
    written, engine = study.written_folder, settings.engine
    try:
        comparison = compare_in_turn(
            models.base,
            models.tuned,
            materials.toxic_prompts,
            neurons=study.sources,
            scorer=study.scorer,
            held_out=materials.held_out,
            n_samples=settings.n_samples,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            progress=study.progress,
            output_dir=written,
            identify_language=materials.identify_language,
            source_language=settings.source_language,
            writers=(None, None) if engine is None else (engine.before(), engine.after()),
        )
    except ServerError as error:
        if engine is None:
            raise
        base, tuned = models.base(), study.tuned_folder
        is_tuned = processes.from_main((written / "before.json").exists)
        advice = engine.advice_after(tuned.absolute(), base) if is_tuned else engine.advice_before(base)
        raise told(error, advice) from error
    content = comparison.content()
    content["models"][1]["name"] = "tuned"  # without the study's folder, which may be moved
    names = ("before", "after", "before.greedy", "after.greedy")
    before, after, *greedy = processes.from_main(
        lambda: [Continuations.load(written / f"{name}.json") for name in names]
    )
    changes = changes_by_group(
        before,
        after,
        materials.toxic_prompts,
        scorer=study.scorer,
        words=materials.word_groups,
        source_language=settings.source_language,
    )
    return {
        **content,
        "groups": [dataclasses.asdict(change) for change in changes],
        "samples": _samples(*greedy),
    }


def _samples(before: Continuations, after: Continuations) -> dict[str, list[dict[str, str]]]:
    """Return the first prompts of each language with their greedy continuations by both models, for readers."""
    samples: dict[str, list[dict[str, str]]] = {}
    for prompt, first, then in zip(before.prompts, before.texts, after.texts, strict=True):
        of_language = samples.setdefault(prompt.language, [])
        if len(of_language) < _SHOWN:
            of_language.append({"prompt": prompt.text, "before": first, "after": then})
    return samples


def _retrieve(study: InProgress) -> dict[str, Any]:
    parallel, source = study.materials.parallel, study.settings.source_language
    assert parallel is not None
    pivot = pivot_of(parallel, source)
    retrieved = retrieval.bilingual_retrieval(study.models.base(), parallel, pivot=pivot, progress=study.progress)
    processes.from_main(partial(retrieved.save, study.retrieval_file))
    return {
        "retrieval": retrieved.mean(),
        "retrieval_intervals": retrieved.intervals(),
        "retrieval_by_layer": retrieved.by_layer(),
        "n_parallel": retrieved.n_sentences,
        "pivot": pivot,
    }


def _predict(study: InProgress) -> dict[str, Any]:
    source = study.settings.source_language
    retrieved = processes.from_main(lambda: retrieval.Retrieval.load(study.retrieval_file))
    observed = Comparison.of(study.done["compare"])
    by_measure = {measure: _transfer(retrieved, observed, measure, source) for measure in ("emt", "average_toxicity")}
    main = by_measure[main_measure(observed, source_language=source)]
    return {
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


def _transfer(
    retrieved: retrieval.Retrieval, observed: Comparison, measure: str, source_language: str
) -> prediction.Transfer:
    """Return retrieval against the drops in a measure.

    Where too few languages were toxic at all, r and p are NaN, and the results of the other stages are not lost.
    """
    means = {code: mean for code, mean in retrieved.mean().items() if code != source_language}
    drops = prediction.shared(means, observed, measure)
    if len(drops) < prediction.FEWEST:
        _LOG.warning("only %d languages have a drop in %s: no correlation", len(drops), measure)
        accuracies = {code: means[code] for code in drops}
        return prediction.Transfer(measure, accuracies, drops, math.nan, math.nan, pivot=retrieved.pivot)
    return prediction.predict_from_retrieval(retrieved, observed, measure=measure, source_language=source_language)


def verdicts_and_warnings(study: InProgress) -> dict[str, Any]:
    """Return the verdict on each claim, and the warnings about figures that cannot carry a finding."""
    done = study.done
    localised = done["localize"]["verdicts"] if "localize" in done else []
    verdicts = claims.of_sources(Comparison.of(done["compare"])) if "compare" in done else []
    verdicts += judged_verdicts(study)
    return {
        "verdicts": localised + [dataclasses.asdict(verdict) for verdict in verdicts],
        "warnings": warnings(study),
    }


def judged_verdicts(study: InProgress) -> list[Verdict]:
    """Return the verdict on each claim that depends on who judges toxicity."""
    done, source, verdicts = study.done, study.settings.source_language, list[Verdict]()
    if "attribute" in done:
        verdicts += claims.of_patches(patches.effect_of(done["attribute"]["patched"]))
    if "intervene" in done:
        verdicts.append(doses.response_of(done["intervene"], doses.ON_TOXIC).verdict())
    if "compare" in done:
        comparison = Comparison.of(done["compare"])
        verdicts += claims.of_tuning(comparison, comparison.languages, source_language=source)
    if "predict" in done:
        measure = done["predict"]["transfer"]["measure"]
        summary = results_file.summaries(done["predict"]["transfer_by_measure"])[measure]
        verdicts += claims.of_prediction(summary, measure)
    if "frontier" in done:
        verdicts += frontier_findings.verdicts(frontier_summary.summary_of(done["frontier"]["frontier"]), source)
    return verdicts


def warnings(study: InProgress) -> list[str]:
    """Return the warnings about figures that cannot carry a finding."""
    done, sentences = study.done, list[str]()
    if "compare" in done:
        sentences += Comparison.of(done["compare"]).warnings
    for name, keys, kind in (("intervene", doses.ON_TOXIC, "toxic"), ("amplify", doses.ON_NEUTRAL, "neutral")):
        if name in done:
            response = doses.response_of(done[name], keys)
            sentences += [f"Doses on {kind} prompts: {sentence}" for sentence in response.warnings]
    if "frontier" in done:
        methods = frontier_summary.summary_of(done["frontier"]["frontier"])
        sentences += [f"Methods at equal fluency: {sentence}" for sentence in methods.warnings]
    return sentences


@checked
def main_measure(observed: Comparison, *, source_language: str = "en") -> str:
    """Choose the measure whose drop stands against retrieval: EMT as in the paper, unless it saturates.

    EMT counts as saturated where its drop is under a tenth in a quarter or more of the languages. If a few samples of
    each prompt are still toxic, their maximum stays near 1, even where the model became far less toxic on average. Then
    the drop in average toxicity tells more.
    """
    drops = [drop for code, drop in observed.relative_drop("emt").items() if code != source_language]
    saturated = sum(drop < 0.1 for drop in drops) >= len(drops) / 4
    return "average_toxicity" if saturated else "emt"


WORK: Mapping[str, Callable[[InProgress], dict[str, Any]]] = {
    "localize": _localize,
    "promoted": _promoted,
    "intervene": _intervene,
    "amplify": _amplify,
    "retrieve": _retrieve,
    "tune": _tune,
    "compare": _compare,
    "predict": _predict,
    "attribute": attribute,
    "frontier": frontier,
    "side_effects": side_effects,
}
"""The function that does each stage, and returns what `results.json` keeps of it."""
