"""Patch groups of neurons or heads of one model with their activations in another, and measure what that does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.patch import Patch
from xlingtox.edits.under import Plan, generate_under, in_parts, results_under
from xlingtox.evaluation.continuation_rows import WeightedRow, check_continued, continuation_rows
from xlingtox.evaluation.named_sets import activations_of_layers
from xlingtox.evaluation.patch_effect import RANDOM, PatchEffect, PatchMatch, Values
from xlingtox.evaluation.shares import BASE, TUNED, PerPrompt
from xlingtox.evaluation.text_losses import Row, text_losses, text_losses_under
from xlingtox.models.batches import Batches
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, check_covered, check_scores

Group: TypeAlias = NeuronSet | Sequence[NeuronSet]
"""What is patched together: neurons, heads, or a sequence of sets of either."""

Groups: TypeAlias = Mapping[str, NeuronSet | Sequence[NeuronSet]]
"""Groups by name."""


@checked
def patch_effect(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    groups: Groups,
    *,
    probe: Probe | None = None,
    toxic_tokens: Iterable[int] | None = None,
    continuations: Continuations | None = None,
    counted: Sequence[bool] | None = None,
    scorer: Scorer | None = None,
    match: PatchMatch = "activity",
    n_random: int = 3,
    n_samples: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> PatchEffect:
    """Run `before` with each group of neurons or heads patched from `after`, and both models as they are.

    If a group carries the change, patching it makes `before` behave like `after`. A patched neuron has, at every
    position, the activation that it has in `after`. Both models read the same tokens, also while new ones are
    generated. Exchange the models to patch in the other direction. Yang et al. 2024 (section 5) patch means instead, as
    `Patch(neurons, activations)` does. All groups and their controls share batches, as far as that is faster.

    Args:
        before, after: the model that is patched, and the one whose activations are patched in.
        groups: the groups by name, each a set of neurons or of heads, or a sequence of both. Each gets a control of
            random units in the same layers, unless one of its sets is all units of its layers. They are drawn from
            outside the group if it has at most half of each layer, and otherwise from all. Weights have no effect.
        probe: the probe whose logit is measured, at the last token of each prompt.
        toxic_tokens: the ids of the tokens whose probability is measured, such as those that the sources promote.
        continuations: texts whose log-probability is measured in all runs: `before`'s own continuations of the prompts,
            or any others. Blank texts do not count.
        counted: whether each of these texts counts, such as `scores >= 0.5` (default: all do).
        scorer: the scorer of `n_samples` new continuations of each prompt.
        match: "activity" draws random neurons that are as active in `before` on the same prompts, because a neuron that
            hardly acts has little to carry. "layers" draws any others, and so are heads drawn. Unlike the control of an
            offset, none is scaled to push as far: it has the activation of `after`, and another would be of no model.
        n_random: how many random sets each control is the mean of; 0 for no control.

    Raises:
        ValueError: there is no probe, toxic token, continuation or scorer to measure with; there are no groups, or one
            has the name of a run; the models do not match; a neuron or head is outside them; prompts are bad; the
            continuations are of other prompts; or the scorer does not cover a language.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> written = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> effect = xt.patch_effect(
        ...     lm, edited, prompts, {"sources": sources}, probe=probe, continuations=written, progress=False
        ... )
        >>> effect
        PatchEffect(4 prompts: probe, log_probability with sources patched)
    """
    prompt_list = before.as_prompts(prompts)
    token_ids = None if toxic_tokens is None else sorted({int(token) for token in toxic_tokens})
    if before is after:
        raise ValueError(f"{before.name} is given as both models: there is no change to carry")
    before.check_alike(after)
    lengths = check_lengths(before, prompt_list, max_new_tokens)
    if token_ids == [] or n_random < 0:
        raise ValueError(
            f"toxic_tokens are {token_ids}, n_random is {n_random}: expected at least one token, and 0 or more"
        )
    if probe is None and not token_ids and continuations is None and scorer is None:
        raise ValueError("nothing to measure by: give a probe, toxic_tokens, continuations or a scorer")
    if counted is not None and continuations is None:
        raise ValueError("counted says which continuations count: give the continuations too")
    if probe is not None:
        probe.check(before)
    if token_ids and not 0 <= token_ids[0] <= token_ids[-1] < before.unembedding().shape[0]:
        raise ValueError(
            f"toxic_tokens are from {token_ids[0]} to {token_ids[-1]}: not all are of the model's vocabulary"
        )
    if scorer is not None:
        check_covered(scorer, [prompt.language for prompt in prompt_list])
    if not groups or any(name in (BASE, TUNED) or name.endswith(RANDOM) for name in groups):
        raise ValueError(f"groups are {list(groups)}: expected at least one, none called base, tuned or '...{RANDOM}'")
    sets_of = {name: sets_of_group(name, group) for name, group in groups.items()}
    for neurons in itertools.chain.from_iterable(sets_of.values()):
        neurons.check(before, sites=SITES)

    last_token = _LastToken(prompt_list, lengths, probe, token_ids)
    texts = None
    if continuations is not None:
        texts = _Texts(_rows_of(before, prompt_list, continuations, counted), len(prompt_list))
    sizes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "progress": progress}
    writing: dict[str, Any] = {"n_samples": n_samples, **sizes}

    def scored(
        values: Float[np.ndarray, "measure prompt"], log_probabilities: PerPrompt | None, written: Continuations | None
    ) -> Values:
        """Return all measures of a run. No model is patched now: the scorer may be a probe of one of them."""
        measures = dict(zip(last_token.measures, values, strict=True))
        if log_probabilities is not None:
            measures["log_probability"] = log_probabilities
        if scorer is not None and written is not None:
            scores = check_scores(scorer, written.texts, written.row_languages)
            measures["toxicity"] = scores.reshape(len(prompt_list), -1).mean(1)
        shown.update()
        return measures

    def measured(lm: HookedLM) -> Values:
        written = None if scorer is None else generate(lm, prompt_list, **writing)
        return scored(last_token.read(lm), None if texts is None else texts.read(lm), written)

    def patched(patched_groups: Sequence[Sequence[NeuronSet]]) -> Iterator[Values]:
        """Yield the measures of `before` with each group patched. Several run together, because that is faster."""
        edits = [_patch(group, after) for group in patched_groups]
        for part in in_parts(edits, n_samples * len(prompt_list)):
            values, nothing = last_token.read_under(before, part), [None] * len(part)
            log_probabilities = nothing if texts is None else texts.read_under(before, part)
            written = nothing if scorer is None else generate_under(before, part, prompt_list, **writing)
            yield from map(scored, values, log_probabilities, written)

    controls = _controls(before, prompt_list, sets_of, match, n_random, **sizes)
    runs_of = {name: [group, *controls[name]] for name, group in sets_of.items()}
    with bar("patching", total=2 + sum(map(len, runs_of.values())), unit="run", progress=progress) as shown:
        runs = {BASE: measured(before), TUNED: measured(after)}
        values_of = patched([group for of_name in runs_of.values() for group in of_name])
        for name, of_name in runs_of.items():
            runs[name], *random_runs = itertools.islice(values_of, len(of_name))
            if random_runs:
                runs[name + RANDOM] = {
                    measure: np.mean([values[measure] for values in random_runs], 0) for measure in random_runs[0]
                }
    codes = tuple(prompt.language for prompt in prompt_list)
    drawn = {one.site for of_name in controls.values() for control in of_name for one in control}
    kind = match if "neurons" in drawn else "heads" if drawn else None
    return PatchEffect(codes, runs, (before.identity(), after.identity()), kind)


def sets_of_group(name: str, group: Group) -> tuple[NeuronSet, ...]:
    """Return the sets of a group; raise ValueError if it has none."""
    sets = (group,) if isinstance(group, NeuronSet) else tuple(group)
    if not sets:
        raise ValueError(f"group {name!r} is empty: expected neurons, heads, or a sequence of sets of them")
    return sets


def _patch(group: Sequence[NeuronSet], after: HookedLM) -> Intervention:
    patches: list[Intervention] = [Patch(neurons, after) for neurons in group]
    return reduce(add, patches)


def _controls(
    before: HookedLM,
    prompts: Sequence[Prompt],
    groups: Mapping[str, Sequence[NeuronSet]],
    match: PatchMatch,
    n_random: int,
    *,
    max_new_tokens: int,
    seed: int,
    progress: bool,
) -> dict[str, list[tuple[NeuronSet, ...]]]:
    """Draw the random sets of each group; none where one of its sets is all units of its layers."""
    neurons = [one for group in groups.values() for one in group if one.site == "neurons"]
    activations = None
    if match == "activity" and n_random > 0 and neurons:
        activations = activations_of_layers(before, neurons, prompts, max_new_tokens=max_new_tokens, progress=progress)

    def drawn(one: NeuronSet) -> list[NeuronSet]:
        if one.site == "neurons":
            return random_sets(one, before, n=n_random, seed=seed, match=match, activations=activations)
        return random_sets(one, before, n=n_random, seed=seed, match="layers")

    # A set without a control leaves the whole group without one: zip is as long as its shortest.
    return {name: list(zip(*map(drawn, group), strict=False)) for name, group in groups.items()}


def only(continuations: Continuations, counted: Sequence[bool]) -> Continuations:
    """Return the continuations with blank texts in place of those that do not count, as measures leave blanks out.

    Raises:
        ValueError: there are more or fewer numbers than continuations.
    """
    if len(counted) != len(continuations):
        raise ValueError(f"counted has {len(counted)} values for {len(continuations)} continuations: expected one each")
    texts = tuple(text if counts else "" for text, counts in zip(continuations.texts, counted, strict=True))
    return dataclasses.replace(continuations, texts=texts)


def _rows_of(
    lm: HookedLM, prompts: Sequence[Prompt], continuations: Continuations, counted: Sequence[bool] | None
) -> list[WeightedRow]:
    check_continued(prompts, continuations)
    return continuation_rows(lm, continuations if counted is None else only(continuations, counted))


@dataclass(frozen=True)
class _Texts:
    """Measures the log-probability of given continuations: in nats, the mean over the continuations of a prompt."""

    weighted: Sequence[WeightedRow]
    n_prompts: int

    @property
    def rows(self) -> list[Row]:
        return [Row(row.language, row.ids, row.begin) for row in self.weighted]

    def read(self, lm: HookedLM) -> PerPrompt:
        return self._by_prompt(text_losses(lm, self.rows, None, progress=False))

    def read_under(self, lm: HookedLM, edits: Sequence[Intervention]) -> list[PerPrompt]:
        return [self._by_prompt(losses) for losses in text_losses_under(lm, edits, self.rows, progress=False)]

    def _by_prompt(self, losses: Float[np.ndarray, "row"]) -> PerPrompt:
        """Return the value of each prompt; NaN where no text of it counts."""
        values = np.full(self.n_prompts, np.nan)
        numbers = [row.prompt for row in self.weighted]
        values[numbers] = 0.0
        np.subtract.at(values, numbers, [row.weight for row in self.weighted] * losses)
        return values


@dataclass(frozen=True)
class _LastToken:
    """Measures a model at the last token of each prompt: the probe's logit, the probability of the toxic tokens."""

    prompts: Sequence[Prompt]
    lengths: Sequence[int]
    probe: Probe | None
    token_ids: Sequence[int] | None

    @property
    def measures(self) -> list[str]:
        asked = (("probe", self.probe), ("toxic_mass", self.token_ids))
        return [name for name, wanted in asked if wanted is not None]

    def read(self, lm: HookedLM) -> Float[np.ndarray, "measure prompt"]:
        """Return the measures of a model, which may be edited."""
        values = np.empty((len(self.measures), len(self.prompts)))

        def keep(rows: list[int], of_rows: Float[np.ndarray, "measure row"]) -> None:
            values[:, rows] = of_rows

        if self.measures:
            batches, longest = Batches(None, "last token", [lm]), max(self.lengths)
            batches.each(
                by_length(self.lengths),
                batches.size(longest, lambda: rows_that_fit(lm, longest)),
                lambda rows: self._of([self.prompts[i] for i in rows], lm),
                keep,
            )
        return values

    def read_under(self, lm: HookedLM, edits: Sequence[Intervention]) -> list[Float[np.ndarray, "measure prompt"]]:
        """Return the measures of a model under each edit."""
        if not self.measures:
            return [np.empty((0, len(self.prompts)))] * len(edits)
        return results_under(
            lm,
            edits,
            lambda: self.read(lm),
            lambda n_edits: np.split(self._of(self.prompts, lm, n_edits), n_edits, axis=1),
            plan=Plan.of(lm, len(self.prompts), max(self.lengths), whole=True),
            batches=lambda: Batches(None, "last token", [lm]),
        )

    def _of(
        self, prompts: Sequence[Prompt], lm: HookedLM, n_edits: int | None = None
    ) -> Float[np.ndarray, "measure row"]:
        """Return the measures of one batch, in which all rows of the first edit come first."""
        times = n_edits or 1
        ids, mask = lm.encode([prompt.text for prompt in prompts])
        states: list[Tensor] = []
        with lm.hooks(residual={lm.n_layers: lambda state: states.append(state[:, -1].clone())}, edit=None):
            logits = lm.logits(
                ids.repeat(times, 1),
                mask.repeat(times, 1),
                languages=[prompt.language for prompt in prompts] * times,
                edits=None if n_edits is None else [edit for edit in range(n_edits) for _ in prompts],
                last=1,
            )
        values = []
        if self.probe is not None:
            state = lm.after_final_norm(states[0]) if self.probe.after_final_norm else states[0]
            values.append(state.double().cpu() @ self.probe.direction.double() + self.probe.bias)
        if self.token_ids is not None:
            chances = torch.softmax(logits[:, -1].double(), -1)[:, list(self.token_ids)]
            values.append(chances.sum(-1).cpu())
        return torch.stack(values).numpy()
