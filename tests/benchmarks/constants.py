"""How much of DPO can constants do? `python tests/benchmarks/constants.py [--seeds 0] [--prompts 30] [--samples 2]`.

The miniature is tuned by DPO on English pairs. Edits that need no tuning then move chosen neurons by one number each.
The numbers are means of the tuned model, or of the miniature alone. Each kind of edit is tried on groups of neurons, at
the strengths that raise the perplexity of held-out text equally far: by the larger budget (+5 %), and by the smaller
one, which is DPO's own rise, or +1 % where DPO's is less.

Neurons, constants and attribution come from prompts of the split `tune`. Strengths are found on held-out text of
`validation`. On prompts of that split, the edit with the least toxicity is chosen for each kind and each group, among
those within the budget with no more text that is not sound than the unedited model's; and once more with up to two
points more of it. Prompts and texts of `test` measure the chosen ones. Random neurons, as many in each layer as
attribution chose, are chosen among in the same way.

Prints a Markdown table, seed of DPO by seed. A row's share says how much of DPO's fall in average toxicity the edit
reaches. Patches are not chosen: they have no strength.

`--sources 1 8 16 24` is short, and chooses nothing: the mean difference on the paper's sources at these strengths, and
at the last of them on as many random neurons of their layers.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

import xlingtox as xt
from xlingtox.data import as_prompts
from xlingtox.edits import aligned_means, aligned_offset, mean_mix, mean_offset, mean_scale
from xlingtox.evaluation import fluency, mean_intervals, metrics
from xlingtox.evaluation.dose_measures import Response, Setup
from xlingtox.neurons.controls import random_sets

SIZES = (45, 200, 800)
LEAST, BUDGET = 0.01, 0.05
"""The smaller budget of perplexity where DPO takes less, and the larger one."""

FOR_GROUPS = 15
"""The prompts in each language that constants and attribution come from."""

MARGIN = 0.02
"""The larger budget is spent twice: also on edits after which this share more of the text is not sound."""

STEEP = 1.5
"""Perplexity rises about with this power of the strength. It only guides the search."""

MOST = 64.0
"""The greatest strength. What costs little perplexity there goes no further."""

Build = Callable[[xt.NeuronSet, float], xt.Intervention]


@dataclass(frozen=True, eq=False)
class Case:
    """One kind of edit on one group of neurons, with its strength as a dial."""

    kind: str
    group: str
    neurons: xt.NeuronSet
    build: Build

    def at(self, strength: float) -> xt.Intervention:
        return self.build(self.neurons, strength)

    @property
    def is_random(self) -> bool:
        return self.group.startswith("random")


@dataclass(frozen=True, eq=False)
class Tried:
    """A case at one strength, and how much that raised the perplexity of the texts on which it was found."""

    case: Case
    strength: float
    rise: float


class Materials:
    """Both models, and what the groups and the constants come from."""

    def __init__(self, seed: int) -> None:
        self.lm, self.seed = xt.HookedLM.load("mini"), seed
        recipe = dataclasses.replace(xt.tuning.MINI, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "dpo"
            self.tuned = xt.tune_dpo(self.lm, xt.mini.pairs("en"), output_dir=out, recipe=recipe, progress=False)
        self.prompts = xt.mini.prompts(n=FOR_GROUPS, split="tune", seed=seed)
        everything = xt.NeuronSet.all(self.lm)
        self.before = xt.collect_activations(self.lm, self.prompts, everything, progress=False)
        self.after = xt.collect_activations(self.tuned, self.prompts, everything, writer=self.lm, progress=False)
        self.probe = xt.Probe.fit(self.lm, xt.mini.labelled("en"), progress=False)

    @cached_property
    def sources(self) -> xt.NeuronSet:
        """The paper's sources: those of 100 candidates that are active on English prompts."""
        read = dict(zip(self.before.neurons, self.before.mean(language="en").tolist(), strict=True))
        candidates = xt.localize.by_cosine(self.lm, self.probe, k=100)
        return candidates.where([read[neuron] > 0 for neuron in candidates])

    @cached_property
    def groups(self) -> dict[str, xt.NeuronSet]:
        """Each group of each size, by name. The sources stand for the fewest by cosine."""
        lm, k = self.lm, max(SIZES)
        attributed = xt.attribute(
            lm,
            self.tuned,
            self.prompts,
            scorer=xt.mini.scorer(),
            components=("neurons",),
            seed=self.seed,
            progress=False,
        )
        ranked = {
            "attribution": attributed.top(k),
            "cosine": xt.localize.by_cosine(lm, self.probe, k=k),
            "AUROC": _first(xt.localize.by_auroc(lm, xt.mini.labelled("en", n=500), progress=False), k),
            "contribution": self._by_fall_of_contribution(k),
        }
        groups = {f"{name} {size}": _first(neurons, size) for name, neurons in ranked.items() for size in SIZES}
        del groups[f"cosine {SIZES[0]}"]
        groups["sources"] = self.sources
        groups["all neurons"] = self.before.neurons
        for size in SIZES:
            like = groups[f"attribution {size}"]
            [groups[f"random {size}"]] = random_sets(like, lm, n=1, seed=self.seed, match="layers")
        return groups

    def _by_fall_of_contribution(self, k: int) -> xt.NeuronSet:
        """Return the neurons whose push along the probe fell furthest by tuning (Yang et al. 2024)."""
        sides = [
            xt.localize.by_contribution(lm, self.probe, activations, k=len(activations.neurons))
            for lm, activations in ((self.lm, self.before), (self.tuned, self.after))
        ]
        before, after = (dict(zip(side, side.scores, strict=True)) for side in sides)
        falls = {neuron: before[neuron] - after[neuron] for neuron in before}
        order = sorted(falls, key=lambda neuron: -falls[neuron])[:k]
        return xt.NeuronSet.of(order, scores=[falls[neuron] for neuron in order])

    def cases(self) -> list[Case]:
        """Return every kind of edit on every group."""
        lm, probe, before, after = self.lm, self.probe, self.before, self.after
        kinds: dict[str, Build] = {
            "mean difference": lambda some, s: mean_offset(some, before, after, strength=s),
            "mix with the tuned mean": lambda some, s: mean_mix(some, after, strength=s),
            "factor to the tuned mean": lambda some, s: mean_scale(some, before, after, strength=s),
            "base only: shift against the probe": lambda some, s: aligned_offset(some, lm, probe, before, strength=s),
            "base only: own means × (1 ∓ α)": lambda some, s: aligned_means(some, lm, probe, before, alpha=s),
            "base only: the same offset": lambda some, s: xt.Offset(some, -s),
        }

        def in_english(some: xt.NeuronSet, s: float) -> xt.Intervention:
            return mean_offset(some, before, after, strength=s, language="en")

        def damping(some: xt.NeuronSet, s: float) -> xt.Intervention:
            return xt.Scale(some, tuple(1 - 2 * s * (score - 0.5) for score in some.scores))

        cases = []
        for group, some in self.groups.items():
            name, _, size = group.partition(" ")
            few = ("factor to the tuned mean", "base only: own means × (1 ∓ α)")
            cases += [Case(kind, group, some, kinds[kind]) for kind in kinds if kind not in few or size in ("", "200")]
            if name == "attribution":
                cases.append(Case("mean difference in English", group, some, in_english))
            if name == "AUROC":
                cases.append(Case("base only: damping by AUROC", group, some, damping))
        return cases

    def patches(self) -> dict[tuple[str, str], xt.Intervention]:
        """Return the edits without a dial, by what they patch and the group."""
        live, means = "patch: the tuned model, token by token", "patch: tuned mean of each language"
        groups = [f"attribution {size}" for size in SIZES]
        patched: dict[tuple[str, str], xt.Intervention] = {
            (live, group): xt.Patch(self.groups[group], self.tuned) for group in [*groups, "all neurons"]
        }
        return patched | {(means, group): xt.Patch(self.groups[group], self.after) for group in groups}


def _first(neurons: xt.NeuronSet, k: int) -> xt.NeuronSet:
    return neurons.where([place < k for place in range(len(neurons))])


def perplexity(losses: Mapping[str, Any]) -> float:
    return float(np.mean([metrics.perplexity(*of_language) for of_language in losses.values()]))


def at_equal_perplexity(
    lm: xt.HookedLM, cases: Sequence[Case], levels: Sequence[float], held_out: Dataset, *, rounds: int = 4
) -> dict[float, list[Tried]]:
    """Return each case at the strength that raises perplexity by each level, as near as the search comes to it.

    A case whose perplexity is above the level at every strength that was tried is left out.
    """
    unedited = perplexity(fluency.held_out_losses(lm, held_out, progress=False))
    rises: dict[Case, dict[float, float]] = {case: {} for case in cases}
    for step in range(rounds):
        # The larger level is found first. What was tried on the way brings the search near the smaller ones.
        asked = levels[-1:] if step < rounds // 2 else levels
        wanted = dict.fromkeys((case, next_strength(rises[case], level)) for case in cases for level in asked)
        new = [(case, strength) for case, strength in wanted if strength not in rises[case]]
        edits = [case.at(strength) for case, strength in new]
        under = fluency.held_out_losses_under(lm, edits, held_out, progress=False)
        for (case, strength), losses in zip(new, under, strict=True):
            rises[case][strength] = perplexity(losses) / unedited - 1
    return {
        level: [
            Tried(case, strongest, rises[case][strongest]) for case in cases if (strongest := below(rises[case], level))
        ]
        for level in levels
    }


def below(rises: Mapping[float, float], level: float) -> float | None:
    """Return the greatest strength up to which no perplexity is above the level (by a tenth); None if there is none."""
    strengths = sorted(rises)
    above = next((i for i, strength in enumerate(strengths) if not rises[strength] <= 1.1 * level), len(strengths))
    return strengths[above - 1] if above else None


def next_strength(rises: Mapping[float, float], level: float) -> float:
    """Guess the strength at which perplexity rises by the level, from the strengths that are known."""
    low = below(rises, level)
    if not rises:
        return 1.0
    if low is not None and (rises[low] >= 0.9 * level or low == MOST):
        return low
    high = min((strength for strength in rises if low is None or strength > low), default=None)
    if low is not None and high is not None:
        # Between two strengths, the rise is taken as a power of the strength.
        first, last = max(rises[low], level / 50), min(rises[high], 1e3)
        return low * (high / low) ** (math.log(level / first) / math.log(last / first))
    known = high if low is None else low
    assert known is not None
    factor = (level / min(max(rises[known], level / 50), 1e3)) ** (1 / STEEP)
    return min(MOST, known * min(8.0, max(1 / 8, factor)))


def measured(setup: Setup, edits: Sequence[xt.Intervention]) -> list[Response]:
    return list(setup.responses(edits))  # type: ignore[arg-type]


def setup_of(lm: xt.HookedLM, split: str, *, n_prompts: int, n_samples: int, n_texts: int, seed: int) -> Setup:
    prompts = xt.mini.prompts(n=n_prompts, split=split, seed=seed)  # type: ignore[arg-type]
    return Setup(
        lm,
        as_prompts(prompts, tokenizer=lm.tokenizer),
        meanings=xt.data.meanings(prompts),
        scorer=xt.mini.scorer(),
        held_out=xt.mini.held_out(n=n_texts, split=split, seed=seed),  # type: ignore[arg-type]
        generation={"n_samples": n_samples, "max_new_tokens": 20, "seed": seed},
        identify_language=xt.mini.identify_language,
        progress=False,
    )


def of_tuned(setup: Setup, tuned: xt.HookedLM) -> Response:
    """Measure the tuned model as an edit of the miniature is measured."""
    return setup.of(tuned)


def by_meaning(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Average over languages, prompt by prompt: prompts of one place are translations of each other."""
    return np.mean(list(values.values()), axis=0)


def share(before: np.ndarray, edited: np.ndarray, tuned: np.ndarray) -> tuple[float, float, float]:
    """Return how much of the tuned model's fall an edit reaches, with the ends of its 95 % interval over prompts."""
    weights = np.random.default_rng(0).standard_exponential((4000, len(before)))
    drawn = (weights @ (before - edited)) / (weights @ (before - tuned))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float((before - edited).mean() / (before - tuned).mean()), float(low), float(high)


class Report:
    """The rows of one seed's table, on prompts and texts that nothing was chosen on."""

    def __init__(self, seed: int, unedited: Response, tuned: Response) -> None:
        self._seed, self._unedited, self._tuned = seed, unedited, tuned

    def row(
        self, budget: str, chosen: str, edit: str, group: str, n: int | str, strength: str, response: Response
    ) -> str:
        before, after, tuned = (by_meaning(side.toxicity) for side in (self._unedited, response, self._tuned))
        _, (low, high) = mean_intervals(response.toxicity, meanings=_same_meanings(response.toxicity))
        cells = [str(self._seed), budget, chosen, edit, group, str(n), strength]
        cells.append(f"{after.mean():.3f} ({low:.3f} to {high:.3f})")
        reached, least, most = share(before, after, tuned)
        is_unedited = response is self._unedited
        cells.append("–" if is_unedited else f"{100 * reached:.0f} % ({100 * least:.0f} to {100 * most:.0f})")
        rise = perplexity(response.losses[0]) / perplexity(self._unedited.losses[0]) - 1
        cells.append("–" if is_unedited else f"{100 * rise:+.1f} %")
        cells.append(f"{100 * by_meaning(response.degenerate).mean():.1f} %")
        return "| " + " | ".join(cells) + " |"


def _same_meanings(values: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    return {code: list(range(len(of_language))) for code, of_language in values.items()}


def choose(tried: Iterable[tuple[Tried, Response]], unedited: Response, margin: float) -> Tried | None:
    """Return the edit with the least toxicity, among those as sound as the unedited model, or nearly."""
    limit = by_meaning(unedited.degenerate).mean() + margin
    sound = [(one, response) for one, response in tried if by_meaning(response.degenerate).mean() <= limit]
    best = min(sound, key=lambda pair: by_meaning(pair[1].toxicity).mean(), default=None)
    return None if best is None else best[0]


def one_seed(seed: int, n_prompts: int, n_samples: int) -> None:
    materials = Materials(seed)
    lm, cases = materials.lm, materials.cases()
    validation = setup_of(lm, "validation", n_prompts=max(2, n_prompts // 5), n_samples=2, n_texts=4, seed=seed)
    own = of_tuned(validation, materials.tuned)
    rise = perplexity(own.losses[0]) / perplexity(validation.unedited.losses[0]) - 1
    small = max(LEAST, rise)
    levels = sorted({small, BUDGET})
    by_level = at_equal_perplexity(lm, cases, levels, validation._held_out)
    tried = list({(one.case, one.strength): one for level in levels for one in by_level[level]}.values())
    responses = dict(zip(tried, measured(validation, [one.case.at(one.strength) for one in tried]), strict=True))

    chosen: dict[tuple[str, str, str], Tried | None] = {}
    budgets = [(f"{100 * level:+.1f} %", level, 0.0) for level in levels]
    budgets.append((f"{100 * BUDGET:+.1f} %, {100 * MARGIN:.0f} points less sound", BUDGET, MARGIN))
    for name, level, margin in budgets:
        within = [(one, responses[one]) for one in tried if one.rise <= 1.1 * level]

        def pick(
            keep: Callable[[Case], bool],
            within: Sequence[tuple[Tried, Response]] = within,
            margin: float = margin,
        ) -> Tried | None:
            return choose([pair for pair in within if keep(pair[0].case)], validation.unedited, margin)

        chosen[name, "all", "all"] = pick(lambda case: not case.is_random)
        chosen[name, "random neurons", "all"] = pick(lambda case: case.is_random)
        for kind in dict.fromkeys(case.kind for case in cases):
            chosen[name, "kind", kind] = pick(lambda case, kind=kind: case.kind == kind and not case.is_random)
        for group in dict.fromkeys(case.group for case in cases):
            chosen[name, "group", group] = pick(lambda case, group=group: case.group == group)

    test = setup_of(lm, "test", n_prompts=n_prompts, n_samples=n_samples, n_texts=20, seed=seed)
    report = Report(seed, test.unedited, of_tuned(test, materials.tuned))
    print(report.row("–", "–", "none", "–", "–", "–", test.unedited))
    print(report.row("–", "–", "DPO", "–", "–", "–", report._tuned), flush=True)
    final = list({id(one): one for one in chosen.values() if one is not None}.values())
    measured_once = dict(zip(final, measured(test, [one.case.at(one.strength) for one in final]), strict=True))
    for (budget, among, name), one in chosen.items():
        among = among if name == "all" else f"{among}: {name}"
        if one is None:
            print(f"| {seed} | {budget} | {among} | none is as sound |" + " – |" * 7)
            continue
        case = one.case
        cells = case.kind, case.group, len(case.neurons), f"{one.strength:.2g}", measured_once[one]
        print(report.row(budget, among, *cells), flush=True)
    patches = materials.patches()
    for (kind, group), response in zip(patches, measured(test, list(patches.values())), strict=True):
        print(report.row("–", "–", kind, group, len(materials.groups[group]), "–", response), flush=True)


def sources_alone(seed: int, n_prompts: int, n_samples: int, strengths: Sequence[float]) -> None:
    """Print what the sources' mean difference does at each strength, next to random neurons at the last."""
    materials = Materials(seed)
    lm, before, after = materials.lm, materials.before, materials.after
    [random] = random_sets(materials.sources, lm, n=1, seed=seed, match="layers")
    asked = [("sources", materials.sources, strength) for strength in strengths]
    asked.append(("random like sources", random, strengths[-1]))
    test = setup_of(lm, "test", n_prompts=n_prompts, n_samples=n_samples, n_texts=20, seed=seed)
    report = Report(seed, test.unedited, of_tuned(test, materials.tuned))
    print(report.row("–", "–", "none", "–", "–", "–", test.unedited))
    print(report.row("–", "–", "DPO", "–", "–", "–", report._tuned), flush=True)
    edits = [mean_offset(some, before, after, strength=strength) for _, some, strength in asked]
    for (group, some, strength), response in zip(asked, measured(test, edits), strict=True):
        print(report.row("–", "–", "mean difference", group, len(some), f"{strength:g}", response), flush=True)


COLUMNS = (
    *("Seed", "Budget", "Chosen among", "Edit", "Group", "Neurons", "Strength"),
    *("Toxicity (95 %)", "Share of DPO's fall (95 %)", "Perplexity", "Not sound"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--sources", type=float, nargs="+", metavar="STRENGTH")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for seed in given.seeds:
        if given.sources:
            sources_alone(seed, given.prompts, given.samples, given.sources)
        else:
            one_seed(seed, given.prompts, given.samples)


if __name__ == "__main__":
    main()
