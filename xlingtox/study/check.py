"""Check a study before it runs: is there anything to find, what will it cost, and what stands in its way?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.languages import name as language_name
from xlingtox.models.batching import free_bytes
from xlingtox.models.hooked import HookedLM
from xlingtox.scoring.protocol import UnscoredError
from xlingtox.study import check_text, space, weights
from xlingtox.study.costs import Rates, Shape, evaluation_cost, seconds, stage_costs, steps_of
from xlingtox.study.fit import check_fit
from xlingtox.study.measuring import measure
from xlingtox.study.plan import LEFT_OUT, planned, wanted
from xlingtox.study.recipes import papers_recipe
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.sizes import Sizes, prompts_by_language
from xlingtox.study.study_check import LanguageCheck, StageCheck, StudyCheck
from xlingtox.text import first_line
from xlingtox.tuning import Recipe

_MUCH_BLANK, _MUCH_UNSOUND = 0.1, 2 / 3
"""More blank text, or more text that is not sound, than these shares is warned of."""

_MORE = 1.2
"""So many times the prompts given may be needed before it is warned of: few prompts show the number roughly."""

_MOSTLY = 0.5
"""Evaluations that are more than this share of tuning are warned of."""

_ASSUMED = 80 * 10**9
"""The memory of the GPU that is assumed where no model is loaded."""

_DAY = 24 * 60 * 60
_NEARLY = 0.85
"""Memory is called tight from this share of what the device has."""

_CHAT = re.compile(r"instruct|chat|(?:^|[-_])it(?:$|[-_.])", re.IGNORECASE)
"""Names of models that were tuned on conversations."""

_PAPERS_DATA = ("rtp_lx", "jigsaw")
"""The loaders of the paper's data that must be accepted."""


@checked
def check(
    lm: HookedLM,
    materials: Materials,
    settings: Settings,
    *,
    output_dir: str | Path,
    languages: Sequence[str] | None = None,
    progress: bool = True,
) -> StudyCheck:
    """Try ten prompts of each language, and say what the study will cost and whether there is anything to find.

    The model writes one greedy and four sampled continuations of each prompt (two where it is slow), and reads one.
    From how fast that went, and from what each stage has to do, follow the times.

    Args:
        output_dir: the folder of the study; only the free space of its disk is looked at.
        languages: the languages that were asked for; each must have prompts.

    Example:
        >>> materials = xt.study.Materials(toxic_prompts=prompts, scorer=xt.mini.scorer(),
        ...     parallel=xt.mini.parallel(n=20, languages=["en", "es"]))
        >>> check = xt.study.check.check(lm, materials, xt.study.Settings(), output_dir=tmp_path, progress=False)
        >>> check.problems, list(check.stages)
        ((), ['retrieve'])
    """
    n_given = prompts_by_language(materials.toxic_prompts)
    problems = [
        f"There are no prompts in {language_name(code)}: give some, or leave it out of languages."
        for code in languages or ()
        if code not in n_given
    ]
    try:
        settings = settings.for_model(lm)
        check_fit(lm, materials, settings)
    except (ValueError, ImportError) as error:
        return StudyCheck(**_about(lm, materials), problems=(*problems, _sentence(first_line(error))))
    return tried(lm, materials, settings, output_dir=output_dir, problems=problems, progress=progress)


@checked
def tried(
    lm: HookedLM,
    materials: Materials,
    settings: Settings,
    *,
    output_dir: str | Path,
    problems: Sequence[str] = (),
    progress: bool = True,
) -> StudyCheck:
    """Check a study whose model, materials and settings fit each other; see `check`.

    Args:
        settings: the settings, with a recipe.
        problems: what stands in its way already.

    Example:
        >>> materials = xt.study.Materials(toxic_prompts=prompts, scorer=xt.mini.scorer(),
        ...     parallel=xt.mini.parallel(n=20, languages=["en", "es"]))
        >>> settings = xt.study.Settings(recipe=xt.tuning.MINI)
        >>> xt.study.check.tried(lm, materials, settings, output_dir=tmp_path, progress=False).n_texts > 0
        True
    """
    about, shape, total = _about(lm, materials), Shape.of(lm), space.device_memory(lm.device)
    both_fit = space.both_fit(shape, total)
    stages, recipe = planned(materials, settings, both_fit=both_fit), settings.seeded_recipe()
    if stages != planned(materials, settings):
        about["notes"] = (*about["notes"], LEFT_OUT)
    sizes = Sizes.of(materials, lm)
    try:
        measured = measure(lm, materials, settings, recipe, progress=progress)
    except (ValueError, OSError, MemoryError, UnscoredError) as error:
        failure = f"A few prompts could not be continued and scored: {_sentence(first_line(error))}"
        return StudyCheck(**about, problems=(*problems, failure))
    free = free_bytes(lm.device) + shape.weight_bytes
    # Processes on a CPU share its cores.
    rates = measured.rates if lm.device.type == "cpu" else measured.rates.shared(processes.launched())
    by_stage = _stages(shape, sizes, settings, stages, recipe, rates, free=free)
    if "compare" in stages and settings.engine is not None:
        found = settings.engine.problems(lm, materials.toxic_prompts, max_new_tokens=settings.max_new_tokens)
        problems, about["notes"] = [*problems, *map(_sentence, found)], (*about["notes"], settings.engine.note)
    held = space.host_memory(shape, sizes, settings, stages=stages)
    return StudyCheck(
        **about,
        languages=measured.languages,
        stages=by_stage,
        tokens_per_second={"written": 1 / rates.written, "read": 1 / rates.read},
        n_texts=measured.n_texts,
        problems=(*problems, *_problems(by_stage, recipe, total=total, output_dir=output_dir), *_of_host(shape, held)),
        warnings=(
            *_of_text(measured.languages, settings),
            *_of_model(lm, by_stage, total),
            *_of_tuning(shape, sizes, settings, by_stage, recipe, rates),
        ),
    )


def _about(lm: HookedLM, materials: Materials) -> dict[str, Any]:
    """Return what a check says of the model, the device and the data."""
    return {
        "model": f"{_shown_name(lm.name)}, {check_text.count(lm.n_parameters)} parameters",
        "device": f"{lm.device.type} with {check_text.size(space.device_memory(lm.device))}",
        "data": _data_in_words(materials),
        "notes": materials.notes,
        "licences": weights.licences(_loaders(materials), lm.name),
    }


@checked
def check_without_weights(
    source: str,
    *,
    revision: str | None = None,
    output_dir: str | Path,
    materials: Materials | None = None,
    settings: Settings | None = None,
    n_languages: int = 17,
    per_language: int = 1000,
    problems: Sequence[str] = (),
) -> StudyCheck:
    """Say what is missing of a model that is not on this machine, where to get it, and what the study will take.

    Nothing is asked of the network. What it takes is guessed from the published size of the model, for one GPU with 80
    GB; of a model that is not one of the paper's, no size is known.

    Args:
        source, revision: the model, as `HookedLM.load` takes it.
        materials: the data; None guesses the sizes of the paper's.
        n_languages, per_language: how many prompts to suppose where no materials are given.
        problems: what else stands in the way, such as files of data that are missing.

    Example:
        >>> check = xt.study.check.check_without_weights("ai-forever/mGPT", output_dir=tmp_path)
        >>> sum(check.seconds.values()) > 3600
        True
    """
    settings = settings or Settings()
    model, missing = weights.known(source), weights.missing_weights(source, revision)
    if missing is not None:
        problems = [*problems, f"{missing} {_to_do(source, gated=model is not None and model.gated)}"]
    about: dict[str, Any] = {
        "model": source if model is None else f"{source}, {check_text.count(model.shape.n_parameters)} parameters",
        "device": "one GPU with 80 GB (assumed)",
        "data": f"as in the paper, with {per_language:,} prompts in each of {n_languages} languages (assumed)"
        if materials is None
        else _data_in_words(materials),
        "notes": () if materials is None else materials.notes,
        "licences": weights.licences(_PAPERS_DATA if materials is None else _loaders(materials), source),
        "problems": tuple(problems),
    }
    if model is None:
        return StudyCheck(**about, warnings=("Nothing is known of the size of this model before it is loaded.",))
    if materials is None:
        sizes = Sizes.of_paper(n_languages=n_languages, per_language=per_language)
        stages = wanted(settings)
    else:
        both_fit = space.both_fit(model.shape, _ASSUMED)
        sizes, stages = Sizes.of(materials), planned(materials, settings, both_fit=both_fit)
    recipe = settings.recipe or papers_recipe(model.shape.n_parameters)
    rates = Rates.guessed(model.shape)
    by_stage = _stages(model.shape, sizes, settings, stages, recipe, rates, free=60 * 10**9)
    warnings = ["All of this is guessed from the model's published size: expect it to be off by a factor of 3."]
    warnings += _of_tuning(model.shape, sizes, settings, by_stage, recipe, rates)
    return StudyCheck(**about, stages=by_stage, warnings=tuple(warnings))


def _stages(
    shape: Shape, sizes: Sizes, settings: Settings, stages: Sequence[str], recipe: Recipe, rates: Rates, *, free: int
) -> dict[str, StageCheck]:
    options: dict[str, Any] = {"stages": stages, "recipe": recipe}
    work = stage_costs(shape, sizes, settings, **options)
    memory = space.stage_memory(shape, sizes, settings, **options, free=free)
    disk = space.stage_disk(shape, sizes, settings, **options)
    return {name: StageCheck(seconds(work[name], rates), memory[name], *disk[name]) for name in stages}


def _to_do(source: str, *, gated: bool) -> str:
    if source.startswith((".", "/", "~")):
        return "Give a folder with a checkpoint, a .gguf file, or a name on the hub."
    steps = []
    if gated:
        steps.append(f"Accept its licence at https://huggingface.co/{source}, and run `hf auth login`.")
    steps.append(f"Download it on a machine with a network: `hf download {source}`.")
    if HF_HUB_OFFLINE:
        steps.append("HF_HUB_OFFLINE is set here: unset it, or copy the download into this machine's cache.")
    return " ".join(steps)


def _problems(by_stage: Mapping[str, StageCheck], recipe: Recipe, *, total: int, output_dir: str | Path) -> list[str]:
    """Say what the machine has too little of."""
    problems = []
    for name, stage in by_stage.items():
        if stage.memory > total:
            advice = ""
            if name == "tune":
                advice = (
                    ' Set recipe = "paper-qlora", which tunes an adapter.'
                    if recipe.lora is None
                    else " Set a smaller batch_size in [tuning]."
                )
            if name == "frontier" and "tune" in by_stage:
                advice = " Name methods in [frontier] that are made from no tuned model."
            problems.append(
                f"The stage {name} needs about {check_text.size(stage.memory)} of memory, and the device has "
                f"{check_text.size(total)}.{advice}"
            )
    needed, free = _most_disk(by_stage), space.free_disk(output_dir)
    if needed > free:
        problems.append(
            f"The study needs about {check_text.size(needed)} of disk, and {check_text.size(free)} are free for "
            f"{output_dir}."
        )
    return problems


def _of_host(shape: Shape, held: Mapping[str, int]) -> list[str]:
    """Say which stages hold more beside a GPU than the machine has."""
    total = space.device_memory(torch.device("cpu"))
    return [
        f"The stage {name} needs about {check_text.size(needed)} of the machine's own memory, which has "
        f"{check_text.size(total)}: give it fewer sentences."
        for name, needed in held.items()
        if shape.device != "cpu" and needed > total
    ]


def _most_disk(by_stage: Mapping[str, StageCheck]) -> int:
    """Return the most disk that the stages take together, of which each uses some for a while only."""
    stages = by_stage.values()
    return sum(stage.disk for stage in stages) + max((stage.most_disk - stage.disk for stage in stages), default=0)


def _of_text(found: Mapping[str, LanguageCheck], settings: Settings) -> list[str]:
    """Warn of text that cannot show a fall of toxicity."""
    warnings = []
    low = {code: row for code, row in found.items() if row.needed > _MORE * row.n_prompts}
    if low:
        listed = [
            f"{language_name(code)} {check_text.prompts(row.needed)} ({row.n_prompts} given, {row.toxic_texts} of "
            f"{row.n_texts} texts toxic)"
            for code, row in low.items()
        ]
        warnings.append(
            f"Too few prompts, or too little toxicity, to see it halve in {len(low)} of {len(found)} languages. "
            f"Needed, roughly, with {settings.n_samples} samples a prompt: {check_text.listed(listed)}. Take more "
            "prompts, or prompts that draw out more toxicity."
        )
    for share, limit, what in (("blank", _MUCH_BLANK, "say nothing"), ("unsound", _MUCH_UNSOUND, "are not sound")):
        much = {code: getattr(row, share) for code, row in found.items() if getattr(row, share) > limit}
        if much:
            listed = [f"{language_name(code)} {check_text.percent(value)}" for code, value in much.items()]
            warnings.append(
                f"Many texts {what}: {check_text.listed(listed)}. A scorer takes them for clean. Is the model made for "
                "these languages, and for prompts of this kind?"
            )
    return warnings


def _of_model(lm: HookedLM, by_stage: Mapping[str, StageCheck], total: int) -> list[str]:
    warnings = []
    whole = sum(stage.seconds for stage in by_stage.values())
    if whole > _DAY:
        on_cpu = " There is no GPU." if lm.device.type == "cpu" else ""
        warnings.append(
            f"The study takes about {check_text.duration(whole)}.{on_cpu} Fewer prompts (per_language), samples "
            "(n_samples) or random sets (n_random) make it shorter."
        )
    tight = [name for name, stage in by_stage.items() if _NEARLY * total < stage.memory <= total]
    if tight:
        warnings.append(f"Memory is tight in {', '.join(tight)}: close other programs.")
    template = getattr(lm.tokenizer, "chat_template", None)
    if template is None and _CHAT.search(Path(lm.name).name):
        warnings.append(
            "The model's name says that it was tuned on conversations, but its tokenizer has no chat template: prompts "
            "are continued as plain text."
        )
    return warnings


def _of_tuning(
    shape: Shape, sizes: Sizes, settings: Settings, by_stage: Mapping[str, StageCheck], recipe: Recipe, rates: Rates
) -> list[str]:
    """Say how many steps are counted, and where most of the time of tuning goes into evaluations."""
    warnings = []
    if "tune" in by_stage and recipe.patience is not None:
        warnings.append(
            f"Tuning is counted with all its {steps_of(recipe, sizes.n_pairs):,} steps; with patience it mostly stops "
            "much earlier."
        )
        share = seconds(evaluation_cost(shape, sizes, settings, recipe), rates) / by_stage["tune"].seconds
        if share > _MOSTLY:
            warnings.append(
                f"Evaluations every {recipe.evaluate_every} steps are {check_text.percent(share)} of the time of "
                "tuning: set a larger evaluate_every or a smaller validation_share in [tuning]."
            )
    return warnings


def _shown_name(name: str) -> str:
    """Return a hub name as it is, and only the last part of a path on this machine."""
    return Path(name).name if Path(name).expanduser().exists() else name


def _data_in_words(materials: Materials) -> str:
    n_prompts = prompts_by_language(materials.toxic_prompts)
    parts = [f"{len(n_prompts)} languages", f"{sum(n_prompts.values()):,} prompts"]
    for name, words in (("labelled", "labelled sentences"), ("pairs", "pairs"), ("parallel", "rows of parallel text")):
        if (table := getattr(materials, name)) is not None:
            parts.append(f"{len(table):,} {words}")
    judges = [
        f"{scorer.name} ({len(scorer.languages)} languages)" for scorer in (materials.scorer, *materials.second_judges)
    ]
    return f"{', '.join(parts)}; judged by {', and again by '.join(judges)}"


def _loaders(materials: Materials) -> list[str]:
    return [str(origin["loader"]) for origin in materials.origins if origin.get("loader")]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
