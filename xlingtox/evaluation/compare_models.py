"""Measure two models on the same prompts, such as one before and after tuning, and return their `Comparison`."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset

from xlingtox import languages, processes
from xlingtox.checking import checked, shown
from xlingtox.data import Prompts, meanings
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.measurement import Measurement, measure
from xlingtox.evaluation.metrics import Change
from xlingtox.evaluation.named_sets import NamedSets, named_sets
from xlingtox.evaluation.one_model import (
    Before,
    Profile,
    Task,
    Which,
    Writers,
    checked_writer,
    is_kept,
    judge_after,
    measure_after,
    measure_before,
)
from xlingtox.evaluation.same_text import Text, activity
from xlingtox.evaluation.weight_drift import KeptVectors, vectors_in_memory, vectors_on_disk
from xlingtox.files import scratch, writable_folder
from xlingtox.measures import COMPARED, PER_PROMPT, TOXICITY
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import few_enough
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, check_covered


@checked
def compare(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    *,
    neurons: NamedSets,
    scorer: Scorer,
    text: Text = "before",
    n_random: int = 5,
    held_out: Dataset | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
    identify_language: degenerate.Identifier | None = None,
    source_language: str = "en",
    writers: Writers = (None, None),
) -> Comparison:
    """Measure both models on the same prompts with the same random numbers (paper, Table 2 and Figure 3).

    `before` also judges the fluency of both models' continuations, by how likely it finds them.

    Args:
        before, after: the model before the change, and the one after it.
        prompts: prompts with their languages. Only the continuations are scored. Each model reads them in its own form:
            one that was loaded with `chat=` as messages, a base model as plain text. In a table with a column `index`,
            prompts of the same index are translations. The mean over languages resamples them together.
        neurons: the neurons whose mean activation is compared: one set, which is called "sources", or several by name,
            of which the first is the main set. If none is called "control", random neurons of the same layers that are
            as active on the same prompts are drawn as the control of the main set.
        text: whose greedy continuations both models read while the neurons' activations are compared: those of the
            model "before" or "after", or each model its "own" as in the paper. On its own text almost any active neuron
            seems to fall, because the text changed. `Measures.mean_activation` is always on each model's own text.
        n_random: how many random sets the control is the mean of; 0 for none.
        scorer: any scorer. `scoring.Cached(scorer)` scores no text twice, and resumes after an interrupt.
        held_out: columns `language, text`, for perplexity.
        output_dir: a folder that keeps what both models write, as `before.json` and `after.json`
            (`Continuations.load`), and from which the texts are read again. If the scorer fails, nothing need be
            generated again, and another scorer can judge the same texts. The greedy texts, on which the neurons were
            read, are in `before.greedy.json` and `after.greedy.json`.
        identify_language: a function that tells the language of continuations, for example `degenerate.lingua()`. With
            it, texts in another language of the same script count as degenerate too.
        source_language: the language that the model was tuned on. The others have a mean change of their own.
        writers: servers that write the sampled continuations of the model before and of the one after, in the place of
            the models, which read them. Each is checked against its model before it writes; see `Served.check`.

    Raises:
        ServerError: a server cannot be reached, runs another model, or did not write some of the texts.
        ValueError: the models differ in shape or in how they cut text into tokens; the scorer does not cover a
            language; a set of neurons has no name; a neuron is outside the models; the activations of a set take more
            than a gibibyte; prompts or held-out texts are empty or malformed; `output_dir` holds the texts of another
            comparison; or `output_dir` is given and a model is edited by hooks, which its texts do not show.
        OSError: the folder cannot be written.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> comparison = xt.compare(lm, edited, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=2, max_new_tokens=4, progress=False)
        >>> comparison.before["en"].mean_activation > comparison.after["en"].mean_activation
        True
    """
    before.check_alike(after)
    asked = _Asked(
        prompts,
        named_sets(neurons),
        scorer,
        text,
        n_random,
        held_out,
        {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed},
        None if output_dir is None else Path(output_dir),
        progress,
        identify_language,
        source_language,
        writers,
    )
    # Both models are here, so what is wrong with the second is said before the first does any work.
    task = asked.task(before)
    profiles = Profile.of(before, task), Profile.of(after, task.read_by(after), read_before=task.prompts)
    profiles[0].check_alike(profiles[1])
    sides: tuple[tuple[HookedLM, Which], ...] = ((before, "before"), (after, "after"))
    for lm, side in sides:
        if not processes.from_main(partial(is_kept, task, side)):
            checked_writer(lm, task.read_by(lm), side)
    with before.knowing(profiles[0].texts), after.knowing(profiles[1].texts):
        return _compared(lambda: before, lambda: after, asked, vectors_in_memory)


@checked
def compare_in_turn(
    before: Callable[[], HookedLM],
    after: Callable[[], HookedLM],
    prompts: Prompts,
    *,
    neurons: NamedSets,
    scorer: Scorer,
    text: Text = "before",
    n_random: int = 5,
    held_out: Dataset | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
    identify_language: degenerate.Identifier | None = None,
    source_language: str = "en",
    writers: Writers = (None, None),
) -> Comparison:
    """Compare two models as `compare` does, with only one of them in memory at a time.

    The models are measured in three turns: the model before, the model after, and the model before again, which judges
    what the model after wrote. No reference to a model is kept from one turn to the next. What the model after is
    compared with is kept in memory, and the vectors of the neurons in a temporary folder (in `output_dir` if there is
    one), which takes as much space as the MLPs' weights.

    What is wrong with the model after is only known when it is loaded.

    Args:
        before, after: functions that give the model before the change and the one after it. Each may load its model
            anew, and let go of the other.
        neurons, scorer, text, n_random, held_out, n_samples, max_new_tokens, seed, output_dir: as in `compare`.
        identify_language, source_language, writers: as in `compare`.

    Raises:
        ServerError: as in `compare`.
        ValueError: as `compare` does, and where `before` gives another model the second time.
        OSError: the folder cannot be written.

    Example:
        >>> def edited():
        ...     return xt.Offset(sources, -1.0).bake(lm)
        >>> comparison = xt.evaluation.compare_in_turn(lambda: lm, edited, prompts, neurons=sources,
        ...     scorer=xt.mini.scorer(), n_samples=2, max_new_tokens=4, progress=False)
        >>> comparison.before["en"].mean_activation > comparison.after["en"].mean_activation
        True
    """
    folder = None if output_dir is None else writable_folder(output_dir)
    asked = _Asked(
        prompts,
        named_sets(neurons),
        scorer,
        text,
        n_random,
        held_out,
        {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed},
        folder,
        progress,
        identify_language,
        source_language,
        writers,
    )

    def turn(name: str, model: Callable[[], HookedLM]) -> Callable[[], HookedLM]:
        def load() -> HookedLM:
            # The model of the last turn is freed by a collection only, because its modules refer to each other.
            gc.collect()
            if not isinstance(lm := model(), HookedLM):
                raise TypeError(f"compare_in_turn: {name}() gave {shown(lm)}, expected a HookedLM")
            return lm

        return load

    with scratch(folder) as hidden:
        return _compared(turn("before", before), turn("after", after), asked, lambda lm: vectors_on_disk(lm, hidden))


@dataclass(frozen=True)
class _Asked:
    """The arguments of a comparison besides the models."""

    prompts: Prompts
    sets: Mapping[str, NeuronSet]
    scorer: Scorer
    text: Text
    n_random: int
    held_out: Dataset | None
    sampling: Mapping[str, int]
    output_dir: Path | None
    progress: bool
    identify_language: degenerate.Identifier | None
    source_language: str
    writers: Writers

    def task(self, lm: HookedLM) -> Task:
        """Check the arguments by the model before, and return what is measured."""
        prompt_list = lm.as_prompts(self.prompts)
        languages.check(self.source_language)
        for neuron_set in self.sets.values():
            neuron_set.check(lm)
        if self.n_random < 0:
            raise ValueError(f"n_random is {self.n_random}: expected 0 or more")
        check_covered(self.scorer, [prompt.language for prompt in prompt_list])
        largest, n_steps = max(map(len, self.sets.values())), self.sampling["max_new_tokens"]
        if not few_enough(len(prompt_list), n_steps, largest):
            raise ValueError(
                f"{largest} neurons over {n_steps} steps of {len(prompt_list)} prompts take more than a "
                "gibibyte: compare fewer neurons (collect_activations gives the means of any number)"
            )
        return Task(
            prompt_list,
            self.sets,
            self.text,
            self.n_random,
            self.held_out,
            self.sampling,
            None if self.output_dir is None else Path(self.output_dir).expanduser(),
            self.progress,
            self.writers,
            self.prompts,
        )


def _compared(
    before: Callable[[], HookedLM],
    after: Callable[[], HookedLM],
    asked: _Asked,
    keep_vectors: Callable[[HookedLM], KeptVectors],
) -> Comparison:
    """Measure the models in turn. No variable of this function holds a model."""
    task, first = _first_turn(before(), asked, keep_vectors)
    then, drift = measure_after(after(), task, first)
    fluency, means_before = judge_after(before(), task, first, then)
    sides = [
        measure(
            side.continuations,
            side.activations,
            tokens=side.tokens,
            scorer=asked.scorer,
            fluency=judged,
            reference=first.reference,
            identify_language=asked.identify_language,
        )
        for side, judged in ((first.side, first.fluency), (then, fluency))
    ]
    prompt_languages = [prompt.language for prompt in task.prompts]
    codes = languages.in_order(prompt_languages)
    measures = [
        {code: measured[code].summary(fluent.get(code, math.nan)) for code in codes}
        for measured, fluent in zip(sides, (first.side.perplexities(), then.perplexities()), strict=True)
    ]
    aligned = meanings(asked.prompts)
    compared = {name: _changes(sides[0], sides[1], name, aligned) for name in (*PER_PROMPT, "continuation_perplexity")}
    one, other = ({code: side[code] for code in codes if code != asked.source_language} for side in sides)
    of_others = {name: _changes(one, other, name, aligned)[1] for name in TOXICITY} if one else {}
    ending = first.side.ending, then.ending
    assert then.means is not None, "the sets are read in the turn of the model after at the latest"
    return Comparison(
        measures[0],
        measures[1],
        changes={code: {name: intervals[code] for name, (intervals, _) in compared.items()} for code in codes},
        scorer=ScorerIdentity.of(asked.scorer),
        models=(first.side.model, then.model),
        mean_changes={name: mean for name, (_, mean) in compared.items()},
        changes_of_others=of_others,
        drift=drift,
        neurons=task.main.neurons,
        neuron_activations={code: (sides[0][code].by_neuron, sides[1][code].by_neuron) for code in codes},
        counts={code: (sides[0][code].counts, sides[1][code].counts) for code in codes},
        ending={code: (float(ending[0][code].mean()), float(ending[1][code].mean())) for code in codes},
        activity=activity((means_before, then.means), prompt_languages, text=asked.text, meanings=aligned),
    )


def _first_turn(lm: HookedLM, asked: _Asked, keep_vectors: Callable[[HookedLM], KeptVectors]) -> tuple[Task, Before]:
    task = asked.task(lm)
    if task.folder is not None:
        writable_folder(task.folder)
    return task, measure_before(lm, task, keep_vectors)


def _changes(
    before: Mapping[str, Measurement], after: Mapping[str, Measurement], name: str, aligned: metrics.Meanings | None
) -> tuple[dict[str, tuple[float, float]], Change]:
    """Return the interval of one measure's change in each language, and the change in the mean over languages.

    Args:
        aligned: the meaning of each language's prompts; None where no prompts are translations of each other.
    """
    values_before: dict[str, np.ndarray] = {}
    values_after: dict[str, np.ndarray] = {}
    meanings_by_language: dict[str, list[Hashable]] = {}
    # A perplexity is shown as the median over all continuations, everything else as the mean over prompts.
    medians = name not in PER_PROMPT
    for code in before:
        values = np.stack(
            [side[code].perplexities if medians else side[code].per_prompt[name] for side in (before, after)]
        )
        has_value = (~np.isnan(values)).reshape(*values.shape[:2], -1).any(2).all(0)
        if has_value.any():
            values_before[code], values_after[code] = values[:, has_value]
            if aligned is not None:
                meanings_by_language[code] = list(itertools.compress(aligned[code], has_value))
    unknown = dict.fromkeys(before, (math.nan, math.nan))
    if not values_before:
        return unknown, Change(*[math.nan] * 4)
    translated = None if aligned is None else meanings_by_language
    if medians:
        by_language, overall = metrics.paired_median_changes(values_before, values_after, meanings=translated)
    else:
        bounds = COMPARED[name].least, COMPARED[name].most
        by_language, overall = metrics.paired_changes(values_before, values_after, bounds=bounds, meanings=translated)
    return unknown | {code: (change.low, change.high) for code, change in by_language.items()}, overall
