"""Split what tuning changed over groups of neurons, by the method of Yang et al. 2024, by attribution, by patching."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts
from xlingtox.evaluation.alignment_split import DIRECTIONS, METHODS, WHOLE, AlignmentSplit, Method, random_run
from xlingtox.evaluation.attribute import attribute
from xlingtox.evaluation.attribution import Estimate
from xlingtox.evaluation.continuation_rows import Kept, WeightedRow, check_continued, continuation_rows, keeps
from xlingtox.evaluation.patching import only, patch_effect
from xlingtox.evaluation.projection import SIGNS, mean_activations, pushed, pushes, signed_groups
from xlingtox.evaluation.row_measures import LogProbability, ProbeLogit, RowMeasure
from xlingtox.evaluation.shares import ALL, BASE, TUNED, PerPrompt
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.drawing import draw_weighted
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring.protocol import Scorer, check_covered

ALL_NEURONS = "all neurons"
"""The name of the group that holds every neuron."""

_RESERVED = {*SIGNS, ALL_NEURONS, WHOLE, ALL, BASE, TUNED}
_RANDOM = re.compile(r"\(random( \d+)?\)$")

Changes = Mapping[str, PerPrompt]
"""The change on each prompt: the whole, and the part of each group and random set."""


@checked
def alignment_split(
    base: HookedLM,
    tuned: HookedLM,
    prompts: Prompts,
    probe: Probe,
    *,
    continuations: Continuations | None = None,
    scorer: Scorer | None = None,
    kept: Kept = "toxic",
    groups: Mapping[str, NeuronSet] | None = None,
    methods: Sequence[Method] = METHODS,
    n_random: int = 3,
    steps: int | None = None,
    n_samples: int = 4,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> AlignmentSplit:
    """Say which share of tuning's change each group of neurons carries, by several methods on the same text.

    Yang et al. 2024 (arXiv 2411.06424) split all neurons by two signs, and found that neurons which point along the
    probe carry only a part of what tuning changes. Their method adds up how far neurons push along the probe, and
    patches nothing. Here attribution and exact patching stand beside it, and random groups beside each group. Both
    directions are measured: the tuned model's activations in the base, and the base's in the tuned model. All runs
    read the same tokens, the base's own text. `AlignmentSplit` explains the groups and the methods.

    Args:
        base, tuned: the models before and after.
        probe: the direction that tells toxic-aligned neurons from others.
        continuations: the text that both models read. By default the base writes `n_samples` for each prompt.
        scorer: the scorer of the continuations; only those that are kept count. By default all count.
        kept: which continuations count where there is a scorer: "toxic" (scored at least 0.5) or "clean". Prompts
            without any are left out.
        groups: further groups by name, such as the paper's sources and candidates.
        methods: the methods to use. "projection" takes three passes, attribution some ten in each direction, and
            patching one of both models for each group and random set.
        n_random: how many random sets stand beside each group. They have as many neurons in the same layers, drawn from
            all of these, and so share some with the group.
        steps: the points on attribution's path, as in `attribute`.
        n_samples, max_new_tokens, seed: for the text that the base writes, as in `generate`.

    Raises:
        ValueError: the models are one, or do not match; the probe has another width or a direction of zeros; no
            continuation counts, or they are of other prompts; a group has the name of another, or a neuron outside the
            model; there is no method; or the scorer does not cover a language.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> split = xt.alignment_split(
        ...     lm, tuned, prompts, probe, groups={"sources": sources}, methods=["projection"], n_samples=1,
        ...     max_new_tokens=4, progress=False,
        ... )
        >>> shares = split.to_frame().query("language == 'all' and direction == 'tuned into base'")
        >>> float(shares.set_index("group").loc[["TP", "TN", "AP", "AN"], "share"].sum().round(6))
        1.0
    """
    prompt_list = base.as_prompts(prompts)
    if base is tuned:
        raise ValueError(f"{base.name} is given as both models: there is no change to split")
    base.check_alike(tuned)
    probe.check(base)
    if not bool(probe.direction.any()):
        raise ValueError("the probe's direction is zero: no neuron points along it")
    if not methods or n_random < 0:
        raise ValueError(f"methods are {list(methods)}, n_random is {n_random}: expected at least one, and 0 or more")
    given = dict(groups or {})
    if wrong := [name for name in given if name in _RESERVED or _RANDOM.search(name) or not name.strip()]:
        raise ValueError(f"a group is called {wrong[0]!r}, which is the name of another: give it one of its own")
    for neurons in given.values():
        neurons.check(base)
    check_lengths(base, prompt_list, max_new_tokens)
    if scorer is not None:
        check_covered(scorer, [prompt.language for prompt in prompt_list])
    if continuations is not None:
        check_continued(prompt_list, continuations)
    written = continuations or generate(
        base, prompt_list, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed, progress=progress
    )
    texts, rows = _counting(base, written, scorer, kept)

    means = mean_activations(base, rows, progress=progress)
    signed = {name: _chosen(mask) for name, mask in signed_groups(pushes(base, probe), means).items()}
    named = {name: neurons for name, neurons in signed.items() if len(neurons)}
    named |= given | {ALL_NEURONS: NeuronSet.all(base)}
    sets = dict(named)
    for name, neurons in named.items():
        if name != ALL_NEURONS:
            sets |= {random_run(name, i): _random_set(neurons, base, seed + i) for i in range(n_random)}

    work = _Work(texts, rows, sets, probe, methods, progress)
    changes: dict[str, dict[str, Changes]] = {}
    along = work.projected(base, tuned) if "projection" in methods else {}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
    for direction, (before, after) in zip(DIRECTIONS, ((base, tuned), (tuned, base)), strict=True):
        by_method = {"projection": along} | work.attributed(before, after, steps) | work.patched(before, after, options)
        changes[direction] = {method: by_method[method] for method in METHODS if method in methods}
        along = {name: -values for name, values in along.items()}
    codes = tuple(prompt.language for prompt in texts.prompts)
    return AlignmentSplit(codes, named, changes, (base.identity(), tuned.identity()))


@dataclasses.dataclass(frozen=True)
class _Work:
    """The texts, the groups and the settings that all methods share.

    Attributes:
        texts: the continuations, in which those that do not count are blank.
        rows: the tokens of those that count.
        sets: all groups and random sets by name.
    """

    texts: Continuations
    rows: Sequence[WeightedRow]
    sets: Mapping[str, NeuronSet]
    probe: Probe
    methods: Sequence[str]
    progress: bool

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.texts.prompts

    def projected(self, base: HookedLM, tuned: HookedLM) -> Changes:
        """Return by how much each set's push along the probe changes, each model with its own write vectors."""
        before, after = (
            pushed(lm, self.rows, self.sets, self.probe, n_prompts=len(self.prompts), progress=self.progress)
            for lm in (base, tuned)
        )
        parts = {name: after[name] - before[name] for name in self.sets}
        return {WHOLE: parts[ALL_NEURONS], **parts}

    def attributed(self, before: HookedLM, after: HookedLM, steps: int | None) -> dict[str, Changes]:
        """Return the sums of both estimates over each set, for each measure that was asked for."""
        measures: list[tuple[RowMeasure, dict[str, Estimate]]] = [
            (LogProbability(), {"linear": "linear", "integrated": "integrated"}),
            (ProbeLogit(self.probe), {"integrated_probe": "integrated"}),
        ]
        changes = dict[str, Changes]()
        for measure, estimates in measures:
            asked = {method: estimate for method, estimate in estimates.items() if method in self.methods}
            if not asked:
                continue
            attribution = attribute(
                before,
                after,
                self.prompts,
                continuations=self.texts,
                measure=measure,
                components=("neurons", "heads") if _has_heads(before) else ("neurons",),
                groups=self.sets,
                steps=steps,
                progress=self.progress,
            )
            whole = attribution.totals["exact"]
            for method, estimate in asked.items():
                parts = {name: values[estimate] for name, values in attribution.groups.items()}
                changes[method] = {WHOLE: whole, **parts}
        return changes

    def patched(self, before: HookedLM, after: HookedLM, options: Mapping[str, Any]) -> dict[str, Changes]:
        """Return the effect of patching each set, for each measure that was asked for."""
        measures = {"patch": "log_probability", "patch_probe": "probe"}
        asked = {method: measure for method, measure in measures.items() if method in self.methods}
        if not asked:
            return {}
        effect = patch_effect(
            before,
            after,
            self.prompts,
            self.sets,
            probe=self.probe if "patch_probe" in asked else None,
            continuations=self.texts if "patch" in asked else None,
            n_random=0,
            progress=self.progress,
            **options,
        )

        def change(run: str, measure: str) -> PerPrompt:
            return effect.runs[run][measure] - effect.runs[BASE][measure]

        return {
            method: {WHOLE: change(TUNED, measure), **{name: change(name, measure) for name in self.sets}}
            for method, measure in asked.items()
        }


def _counting(
    base: HookedLM, written: Continuations, scorer: Scorer | None, kept: Kept
) -> tuple[Continuations, list[WeightedRow]]:
    """Return the continuations of the prompts that have any that counts, with blanks for the others, and their tokens.

    Raises:
        ValueError: none counts.
    """
    if scorer is not None:
        written = only(written, keeps(scorer, written, kept).tolist())
        if not any(written.texts):
            raise ValueError(
                f"{scorer.name} finds none of {len(written)} continuations {kept}: give others, more samples, or "
                "prompts that provoke them"
            )
    rows = continuation_rows(base, written)
    places = {number: place for place, number in enumerate(sorted({row.prompt for row in rows}))}
    n = written.n_samples
    texts = tuple(text for i in places for text in written.texts[i * n : (i + 1) * n])
    written = dataclasses.replace(written, prompts=tuple(written.prompts[i] for i in places), texts=texts)
    return written, [row._replace(prompt=places[row.prompt]) for row in rows]


def _chosen(mask: Bool[Tensor, "layer d_mlp"]) -> NeuronSet:
    return NeuronSet.of(mask.nonzero().tolist())


def _random_set(neurons: NeuronSet, lm: HookedLM, seed: int) -> NeuronSet:
    """Draw as many neurons of each layer from all of that layer.

    The shares of all neurons add up. So neurons from outside a group that carries much would carry little by that
    alone, and would be no fair comparison for a group of many.
    """
    by_layer = neurons.by_layer()
    pools = {layer: range(lm.d_mlp) for layer in by_layer}
    name = f"split {seed}"
    drawn = draw_weighted(by_layer, neurons.amounts, lm, pools=pools, name=name, match="layers", activations=None)
    return NeuronSet.of(list(drawn))


def _has_heads(lm: HookedLM) -> bool:
    try:
        return lm.n_heads > 0
    except ValueError:
        return False
