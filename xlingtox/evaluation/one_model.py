"""Measure the models of a comparison one after the other: the model before, the model after, and the first again.

Each function here needs one model, and returns what it found without a reference to that model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from jaxtyping import Float, Int

from xlingtox import processes
from xlingtox.data import Prompt, Prompts
from xlingtox.evaluation import metrics
from xlingtox.evaluation.fluency import (
    Fluency,
    check_held_out,
    conditional_perplexity,
    held_out_losses,
    held_out_texts,
)
from xlingtox.evaluation.named_sets import CONTROL, all_of_layers
from xlingtox.evaluation.same_text import MeansBySet, Text, distinct, means_by_prompt
from xlingtox.evaluation.soundness import Reference, reference_of
from xlingtox.evaluation.weight_drift import KeptVectors, LayerDrift, drift_from
from xlingtox.models.continuations import as_read_by
from xlingtox.models.ending import ending_probability
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.models.served import Served
from xlingtox.models.shape import Shape
from xlingtox.neurons.activations import Activations, collect_together, few_enough
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.greedy import Written
from xlingtox.neurons.neuron_set import NeuronSet

_LOG = logging.getLogger(__name__)

Which = Literal["before", "after"]
"""One of the two models of a comparison."""

Writers = tuple[Served | None, Served | None]
"""The servers that write for the model before and for the one after; None where the model writes itself."""


@dataclass(frozen=True)
class Task:
    """A comparison's task: all that is measured of both models. `compare` explains the fields.

    Attributes:
        sets: the sets of neurons by name, the main one first.
        sampling: `n_samples`, `max_new_tokens` and `seed`.
        folder: where continuations are kept; None to keep none.
        writers: the servers that write the continuations of the model before and of the one after; None for the model.
        given: the prompts as the caller gave them, which each model may read in another form.
    """

    prompts: Sequence[Prompt]
    sets: Mapping[str, NeuronSet]
    text: Text
    n_random: int
    held_out: Dataset | None
    sampling: Mapping[str, int]
    folder: Path | None
    progress: bool
    writers: Writers = (None, None)
    given: Prompts | None = None

    def read_by(self, lm: HookedLM) -> Task:
        """Return the task with the prompts as this model reads them: a chat model by its template, a base model not."""
        return self if self.given is None else dataclasses.replace(self, prompts=lm.as_prompts(self.given))

    @property
    def main(self) -> NeuronSet:
        """The main set."""
        return next(iter(self.sets.values()))

    @property
    def n_steps(self) -> int:
        """The number of new tokens of a continuation."""
        return self.sampling["max_new_tokens"]


@dataclass(frozen=True)
class Profile:
    """The things that two models must have in common, so that their results can be compared.

    Attributes:
        texts: the prompts and the held-out texts, as tokens.
    """

    shape: Shape
    texts: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, lm: HookedLM, task: Task, *, read_before: Sequence[Prompt] = ()) -> Profile:
        """Check that a model can do the task, and return its profile.

        Args:
            read_before: the prompts as the model before reads them, where this one may be asked otherwise.

        Raises:
            ValueError: a text is too long for it or empty; or it is edited by hooks, and its texts are to be kept.
        """
        texts = list(dict.fromkeys(prompt.text for prompt in (*task.prompts, *read_before)))
        texts += [] if task.held_out is None else held_out_texts(task.held_out)
        tokens = dict(zip(texts, lm.token_ids(texts), strict=True))
        with lm.knowing(tokens):
            check_lengths(lm, task.prompts, task.n_steps)
            if task.held_out is not None:
                check_held_out(lm, task.held_out)
        if task.folder is not None and lm.hooked:
            raise ValueError(
                f"{lm.name} has hooks on it, which do not show in the texts that output_dir= keeps: compare without "
                "output_dir=, or with the model that edit.bake(lm) gives"
            )
        return cls(lm.shape(), tokens)

    def check_alike(self, other: Profile) -> None:
        """Raise ValueError where the models differ in shape, or cut a text into different tokens."""
        self.shape.check_alike(other.shape)
        for text, ids in self.texts.items():
            if ids != other.texts[text]:
                raise ValueError(
                    f"the models' tokenizers cut {text!r} into different tokens, {ids[:5]} and "
                    f"{other.texts[text][:5]}, so that their results cannot be compared: load both models with one "
                    "tokenizer="
                )


@dataclass(frozen=True)
class Side:
    """The text that one model writes, and its answers to text.

    Attributes:
        continuations: what it wrote, sampled.
        tokens: the continuations as its tokenizer cuts them.
        losses: the loss and the number of tokens of each held-out text, by language.
        activations: how active the main set is on its own greedy text.
        greedy: that text as tokens.
        means: how active all sets are on the text that both models read; None where this is not known yet.
        ending: how likely it ends its text at once, by language.
    """

    model: Identity
    continuations: Continuations
    tokens: Sequence[Sequence[int]]
    losses: Mapping[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]
    activations: Activations
    greedy: Written
    means: MeansBySet | None
    ending: Mapping[str, Float[np.ndarray, "prompt"]]

    def perplexities(self) -> dict[str, float]:
        """Return the perplexity of each language's held-out text."""
        return {code: metrics.perplexity(losses, counts) for code, (losses, counts) in self.losses.items()}


@dataclass(frozen=True)
class Before:
    """The measurements of the model before, made while the model after is not in memory.

    Attributes:
        fluency: how likely it finds its own continuations.
        reference: what sound text is, by its own.
        sets: all sets that are read, by name; the control is several.
        vectors: the vectors of its neurons; None where it is edited by hooks, which its weights do not show.
    """

    side: Side
    profile: Profile
    fluency: Fluency
    reference: Reference
    sets: Mapping[str, Sequence[NeuronSet]]
    vectors: KeptVectors | None


def measure_before(lm: HookedLM, task: Task, keep_vectors: Callable[[HookedLM], KeptVectors]) -> Before:
    """Measure the model before the change."""
    profile = Profile.of(lm, task)
    with lm.knowing(profile.texts):
        return _measured_before(lm, task, profile, keep_vectors)


def _measured_before(
    lm: HookedLM, task: Task, profile: Profile, keep_vectors: Callable[[HookedLM], KeptVectors]
) -> Before:
    identity = lm.identity()
    vectors = None if lm.standing_edit else keep_vectors(lm)
    continuations = _continuations(lm, task, "before")
    fluency = conditional_perplexity(lm, continuations, progress=task.progress)
    losses = _losses(lm, task)
    with np.errstate(over="ignore"):
        held = {code: np.exp(of_texts / counts) for code, (of_texts, counts) in losses.items()}
    reference = reference_of(identity, continuations, fluency, held)
    sets: dict[str, Sequence[NeuronSet]] = {name: [neurons] for name, neurons in task.sets.items()}
    reads_own = task.text != "after"
    everything = all_of_layers(lm, [task.main])
    if CONTROL in sets or not task.n_random or len(everything) == len(task.main):
        activations, greedy, means = _read_own(lm, task, sets if reads_own else None)
    else:
        # The control is drawn among neurons that are read now. Their values are kept if they are few enough, so that
        # the text need not be read again once it is known which neurons the control has.
        every = NeuronSet.of(sorted({*everything, *distinct(sets)}))
        keep = reads_own and _few_enough(task, len(every))
        wanted, keep_values = [task.main, everything], [True, keep]
        if keep and len(every) > len(everything):
            wanted, keep_values = [*wanted, every], [True, False, True]
        collected, greedy = _collected(lm, task, wanted, keep_values=keep_values)
        activations, of_layers = collected[:2]
        seed = task.sampling["seed"]
        if drawn := random_sets(task.main, lm, n=task.n_random, seed=seed, match="activity", activations=of_layers):
            sets[CONTROL] = drawn
        means = _means_of_own(lm, task, sets, greedy, collected[-1] if keep else None) if reads_own else None
    _keep_greedy(lm, task, greedy, "before")
    side = Side(
        identity, continuations, _tokens(lm, continuations), losses, activations, greedy, means, _ending(lm, task)
    )
    return Before(side, profile, fluency, reference, sets, vectors)


def measure_after(lm: HookedLM, task: Task, before: Before) -> tuple[Side, tuple[LayerDrift, ...]]:
    """Measure the model after the change, and how far its vectors moved.

    Raises:
        ValueError: it cannot be compared with the model before.
    """
    before.profile.shape.check_alike(lm.shape())
    read_before, task = task.prompts, task.read_by(lm)
    profile = Profile.of(lm, task, read_before=read_before)
    before.profile.check_alike(profile)
    with lm.knowing(profile.texts):
        return _measured_after(lm, task, before)


def _measured_after(lm: HookedLM, task: Task, before: Before) -> tuple[Side, tuple[LayerDrift, ...]]:
    continuations = _continuations(lm, task, "after")
    activations, greedy, means = _read_own(lm, task, None if task.text == "before" else before.sets)
    if means is None:
        means = _means(lm, task, before.sets, before.side.greedy)
    _keep_greedy(lm, task, greedy, "after")
    edited = before.vectors is None or lm.standing_edit is not None
    vectors = None if edited else before.vectors
    drift = () if vectors is None else processes.from_main(lambda: drift_from(vectors, lm).by_layer())
    tokens, losses, ending = _tokens(lm, continuations), _losses(lm, task), _ending(lm, task)
    return Side(lm.identity(), continuations, tokens, losses, activations, greedy, means, ending), drift


def judge_after(lm: HookedLM, task: Task, before: Before, after: Side) -> tuple[Fluency, MeansBySet]:
    """Let the model before judge what the model after wrote, and read its text if both shall read that.

    Returns:
        the fluency of the continuations, and how active the sets are in the model before.

    Raises:
        ValueError: this is not the model that was measured before.
    """
    if not lm.identity().is_same(before.side.model):
        raise ValueError(
            f"before() gave {before.side.model} at first and then {lm.identity()}: expected the same model"
        )
    with lm.knowing(before.profile.texts):
        fluency = conditional_perplexity(lm, as_read_by(lm, task.prompts, after.continuations), progress=task.progress)
        return fluency, before.side.means or _means(lm, task, before.sets, after.greedy)


def _read_own(
    lm: HookedLM, task: Task, sets: Mapping[str, Sequence[NeuronSet]] | None
) -> tuple[Activations, Written, MeansBySet | None]:
    """Read the main set on the model's own greedy text, and these sets too, while it is written once."""
    every = None if sets is None else distinct(sets)
    wanted = [task.main]
    if every is not None and _few_enough(task, len(every)):
        wanted.append(every)
    (activations, *others), greedy = _collected(lm, task, wanted)
    means = None if sets is None else _means_of_own(lm, task, sets, greedy, next(iter(others), None))
    return activations, greedy, means


def _means_of_own(
    lm: HookedLM,
    task: Task,
    sets: Mapping[str, Sequence[NeuronSet]],
    greedy: Written,
    known: Activations | None,
) -> MeansBySet:
    """Return how active sets of neurons are on the model's own greedy text, which is written.

    Args:
        known: the activations of all these neurons, and perhaps of others, read while the text was written. None where
            they were too many to keep: then the model reads its text again, in one pass, and does not write it again.
    """
    if known is not None:
        return means_by_prompt(sets, len(task.prompts), task.n_steps, lambda _: known)
    # An edit may act on the prompt alone, and in one pass it would act on the continuation too.
    return _means(lm, task, sets, None if lm.hooked else greedy)


def _means(lm: HookedLM, task: Task, sets: Mapping[str, Sequence[NeuronSet]], writer: Written | None) -> MeansBySet:
    """Read sets of neurons on what `writer` holds, or on the model's own greedy text."""

    def read(neurons: NeuronSet) -> Activations:
        return _collected(lm, task, [neurons], writer=writer)[0][0]

    return means_by_prompt(sets, len(task.prompts), task.n_steps, read)


def _collected(lm: HookedLM, task: Task, sets: Sequence[NeuronSet], **how: Any) -> tuple[list[Activations], Written]:
    return collect_together(lm, task.prompts, sets, max_new_tokens=task.n_steps, progress=task.progress, **how)


def _keep_greedy(lm: HookedLM, task: Task, greedy: Written, side: str) -> None:
    """Write a model's own greedy text to the task's folder, if it has one."""
    if task.folder is not None:
        prompts = lm.token_ids([prompt.text for prompt in task.prompts])
        answers = [ids[n:] for n, ids in zip(lm.n_thought(prompts, greedy.tokens), greedy.tokens, strict=True)]
        written = [[token for token in ids if token not in lm.ends] for ids in answers]
        settings = {"model": dataclasses.asdict(lm.identity()), "max_new_tokens": task.n_steps, "greedy": True}
        texts = lm.decode_after(prompts, written)
        continuations = Continuations(tuple(task.prompts), 1, tuple(texts), settings)
        processes.from_main(partial(continuations.save, task.folder / f"{side}.greedy.json"))


def _few_enough(task: Task, n_neurons: int) -> bool:
    return few_enough(len(task.prompts), task.n_steps, n_neurons)


def _tokens(lm: HookedLM, continuations: Continuations) -> list[list[int]]:
    return lm.tokenizer(list(continuations.texts), add_special_tokens=False)["input_ids"]


def _ending(lm: HookedLM, task: Task) -> dict[str, Float[np.ndarray, "prompt"]]:
    return ending_probability(lm, task.prompts, progress=task.progress)


def _losses(lm: HookedLM, task: Task) -> dict[str, tuple[Float[np.ndarray, "text"], Int[np.ndarray, "text"]]]:
    return {} if task.held_out is None else held_out_losses(lm, task.held_out, progress=task.progress)


def checked_writer(lm: HookedLM, task: Task, side: Which) -> Served | None:
    """Return the server that writes for this model, after a check that it runs the same weights; None without one.

    Raises:
        ServerError: it cannot be reached, or runs another model.
        ValueError: an edit is on the model, which a server does not know.
    """
    server = task.writers[("before", "after").index(side)]
    if server is None:
        return None
    for difference in server.check(lm, prompts=task.prompts, max_new_tokens=task.n_steps):
        _LOG.info("the server at %s rounds otherwise than %s: %s", server.url, lm.name, difference)
    return server.writing_for(lm)


def kept_text(task: Task, side: Which) -> Path | None:
    """Return the file in which a comparison keeps what one of the models wrote, if it keeps it."""
    return None if task.folder is None else task.folder / f"{side}.json"


def is_kept(task: Task, side: Which) -> bool:
    """Return whether a comparison has kept what one of the models wrote."""
    file = kept_text(task, side)
    return file is not None and file.exists()


def _continuations(lm: HookedLM, task: Task, side: Which) -> Continuations:
    """Generate continuations, or read those that an earlier comparison kept in the task's folder."""
    file = kept_text(task, side)

    def kept() -> Continuations | None:
        if file is None or not file.exists():
            return None
        try:
            return Continuations.load(file)
        except ValueError as error:
            raise ValueError(f"{error}; or delete it, and the texts are generated again") from error

    continuations = processes.from_main(kept)
    if continuations is None:
        sampling: dict[str, Any] = dict(task.sampling)
        writer = checked_writer(lm, task, side) or lm
        continuations = generate(writer, task.prompts, **sampling, progress=task.progress)
        if file is not None:
            processes.from_main(partial(continuations.save, file))
        return continuations
    stored: Any = {"max_new_tokens": None, "seed": None, "model": {}} | continuations.settings
    stored["n_samples"] = continuations.n_samples
    same_settings = all(stored[name] == value for name, value in task.sampling.items())
    same_prompts = list(continuations.prompts) == list(task.prompts)
    if not (same_settings and same_prompts and Identity.of(stored["model"]).is_same(lm.identity())):
        raise ValueError(
            f"{file} was written by another model, or for other prompts or settings: give another output_dir"
        )
    return continuations
