"""What groups of neurons and heads carry of the change that the demo's tuning makes: exact patches with intervals.

Prompts are drawn in two halves, by meaning. Groups by attribution are chosen on the first half, and all groups are
patched on the second, on the base model's own continuations. A share is the effect of the patch over the whole change.
Its interval resamples meanings, each with its translations in all languages.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plain_patches
from plain_patches import Models, Unit

import xlingtox as xt
from xlingtox.evaluation.continuation_rows import WeightedRow, continuation_rows
from xlingtox.study import templates

SAMPLES = 10
TOP = (45, 200)
TOP_HEADS = 4
N_RANDOM = 5
PROMPTS_SEED = 1000

Table = Mapping[str, Any]


def tuned_by_demo(model: str, seed: int, work: Path, template: str = "ours") -> Path:
    """Return the folder of the copy that the demo's settings, or another template's, make with a study seed, once."""
    out = work / f"{Path(model).name}-seed-{seed}"
    if not list(out.glob("tuned/*/config.json")):
        changes = {"output_dir": out, "model.source": model, "study.stages": ["tune"], "study.seed": seed}
        xt.Study.from_toml(templates.file(template), changes=changes).run(progress=False)
    return next(out.glob("tuned/*/config.json")).parent


class Half(NamedTuple):
    """One half of the prompts: their continuations, those that count, and one clean continuation of each prompt."""

    prompts: Any
    written: xt.Continuations
    toxic: list[WeightedRow]
    clean: list[WeightedRow]


def halves(lm: xt.HookedLM, n_prompts: int, kept: Path) -> list[Half]:
    """Return both halves of the prompts. Texts are written once."""
    prompts = xt.mini.prompts(n=n_prompts, seed=PROMPTS_SEED)
    meanings = sorted(set(prompts["index"]))
    made = []
    for number, some in enumerate((meanings[::2], meanings[1::2])):
        half = prompts.filter(lambda row, some=some: row["index"] in some)
        file = kept / f"texts-{n_prompts}-{number}.json"
        if not file.exists():
            xt.generate(lm, half, n_samples=SAMPLES, seed=0, progress=False).save(file)
        written = xt.Continuations.load(file)
        toxic, clean = (
            continuation_rows(lm, written, scorer=xt.mini.scorer(), kept=kept_rows) for kept_rows in ("toxic", "clean")
        )
        first = {row.prompt: row._replace(weight=1.0) for row in reversed(clean)}
        made.append(Half(half, written, toxic, list(first.values())))
    return made


class Change:
    """The change of each text's log-probability under each patch, with what bootstrap draws make of it."""

    def __init__(self, models: Models, rows: Sequence[WeightedRow], prompts: Any, sets: Sequence[Sequence[Unit]]):
        values = plain_patches.patched(models, rows, sets)
        codes, meanings = (list(dict.fromkeys(prompts[column])) for column in ("language", "index"))
        sums = np.full((len(values), len(codes), len(meanings)), np.nan)
        for row, of_row in zip(rows, (values - values[0]).T, strict=True):
            place = codes.index(row.language), meanings.index(prompts["index"][row.prompt])
            before = sums[(slice(None), *place)]
            sums[(slice(None), *place)] = np.where(np.isnan(before), 0, before) + of_row * row.weight
        draws = np.random.default_rng(0).integers(0, len(meanings), (1000, len(meanings)))
        # The first draw is of every meaning once: the estimate itself.
        draws = np.concatenate([np.arange(len(meanings))[None], draws])
        known = np.where(np.isnan(sums), 0, sums)
        counted = (~np.isnan(sums[0])).astype(float)
        taken = np.stack([np.bincount(draw, minlength=len(meanings)) for draw in draws]).astype(float)
        n = np.einsum("lm,dm->ld", counted, taken)
        means = np.einsum("slm,dm->sld", known, taken) / np.where(n > 0, n, np.nan)
        self.draws = np.nanmean(means, 1)[1:]
        self.n_prompts = int(counted.sum())

    def effect(self, places: Sequence[int] | None = None) -> str:
        """The mean effect of some sets in nats, with its interval; of the tuned model without sets."""
        return ends(self._of(places), "{:+.2f}")

    def share(self, places: Sequence[int]) -> list[float]:
        draws = 100 * self._of(places) / self.draws[0]
        return [float(draws[0]), *map(float, np.nanquantile(draws[1:], (0.025, 0.975)))]

    def _of(self, places: Sequence[int] | None) -> np.ndarray:
        # `draws` has the tuned model first, and then the sets.
        return self.draws[0] if places is None else self.draws[[1 + place for place in places]].mean(0)


def ends(draws: np.ndarray, form: str) -> str:
    low, high = np.nanquantile(draws[1:], (0.025, 0.975))
    return f"{form.format(draws[0])} ({form.format(low)} to {form.format(high)})".replace("-", "−")


def units(neurons: xt.NeuronSet) -> list[Unit]:
    return [(neurons.site, *neuron) for neuron in neurons]


def random_like(chosen: Sequence[Unit], models: Models, seed: int) -> list[Unit]:
    """As many units of the same kinds and layers, from outside the set where enough are left."""
    rng, taken = np.random.default_rng(seed), set(chosen)
    drawn: list[Unit] = []
    for place in sorted({unit[:2] for unit in chosen}):
        of_layer = [unit for unit in models.all_units(place[0]) if unit[:2] == place]
        n = sum(unit[:2] == place for unit in chosen)
        others = [unit for unit in of_layer if unit not in taken]
        pool = others if len(others) >= n else of_layer
        drawn += [pool[i] for i in rng.choice(len(pool), n, replace=False)]
    return drawn


def attributed(lm: xt.HookedLM, tuned: xt.HookedLM, half: Half) -> xt.Attribution:
    """The linear estimates. One point on the path is enough, since the integrated ones are not used."""
    given = {"continuations": half.written, "scorer": xt.mini.scorer(), "steps": 1, "progress": False}
    return xt.attribute(lm, tuned, half.prompts, **given)


def fixed_groups(lm: xt.HookedLM, prompts: Any, models: Models) -> dict[str, list[Unit]]:
    """The groups that tuning does not decide, by name."""
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=2000), progress=False)
    by_cosine = xt.localize.by_cosine(lm, probe, k=lm.n_layers * lm.d_mlp)
    candidates = xt.NeuronSet.of(list(by_cosine)[:100])
    english = prompts.filter(lambda row: row["language"] == "en")
    active = xt.collect_activations(lm, english, candidates, max_new_tokens=20, progress=False).mean() > 0
    positive = [score > 0 for score in by_cosine.scores]
    return {
        "the paper's sources": units(candidates.where(active)),
        "all neurons of positive cosine": units(by_cosine.where(positive)),
        "all neurons of negative cosine": units(by_cosine.where([not flag for flag in positive])),
        "all neurons": models.all_units("neurons"),
        "all heads": models.all_units("heads"),
        "all neurons and heads": models.all_units("neurons") + models.all_units("heads"),
    }


def top_groups(attribution: xt.Attribution) -> dict[str, list[Unit]]:
    """The groups by attribution, by name."""
    n_heads, n_lower = attribution.values("heads").size, int((attribution.values("heads") < 0).sum())
    k = min(TOP_HEADS, n_lower)
    tops = {f"top {k} neurons by attribution": units(attribution.top(k)) for k in TOP}
    return tops | {f"top {k} of {n_heads} heads by attribution": units(attribution.top(k, component="heads"))}


def shares(model: str, seeds: Sequence[int], n_prompts: int, work: Path | None) -> dict[str, Any]:
    """Print what each group carries at each seed, and what the seeds and languages share."""
    work = work or Path("runs") / "attribution"
    kept = work / Path(model).name
    kept.mkdir(parents=True, exist_ok=True)
    lm = xt.HookedLM.load(model)
    name, (chosen_on, patched_on) = Path(model).name, halves(lm, n_prompts, kept)
    world = name.rpartition("-")[2] if "-" in name else "0"
    made: dict[str, Any] = {"model": model, "rows": [], "tops": {}}
    print("carried\n")
    columns = "World, Seed, Patched, Units, Toxic text (nats), Share (95 %), Random, Clean text (nats)"
    print(table_line(columns.split(", ")) + "\n" + table_line(["---"] * 8), flush=True)
    attributions: dict[int, list[xt.Attribution]] = {}
    fixed: dict[str, list[Unit]] = {}
    for seed in seeds:
        folder = tuned_by_demo(model, seed, work)
        tuned = xt.HookedLM.load(folder)
        attributions[seed] = [attributed(lm, tuned, half) for half in (chosen_on, patched_on)]
        models = Models(plain_patches.plain(model), plain_patches.plain(str(folder)), "gpt2")
        fixed = fixed or fixed_groups(lm, chosen_on.prompts, models)
        groups = top_groups(attributions[seed][0]) | fixed
        controls = {
            group: [random_like(chosen, models, 100 * seed + i) for i in range(N_RANDOM)]
            for group, chosen in groups.items()
            if group not in ("all neurons", "all heads", "all neurons and heads")
        }
        sets = [*groups.values(), *itertools.chain.from_iterable(controls.values())]
        toxic = Change(models, patched_on.toxic, patched_on.prompts, sets)
        clean = Change(models, patched_on.clean, patched_on.prompts, list(groups.values()))
        cells = [world, f"{seed}", f"the tuned model ({toxic.n_prompts} prompts)", "", toxic.effect(), "100 %", ""]
        print(table_line([*cells, clean.effect()]), flush=True)
        for place, group in enumerate(groups):
            main, control = [place], None
            if group in controls:
                first = len(groups) + N_RANDOM * list(controls).index(group)
                control = toxic.share(range(first, first + N_RANDOM))
            share = toxic.share(main)
            cells = [world, f"{seed}", group, f"{len(groups[group])}", toxic.effect(main), percent(share)]
            cells += [percent(control) if control else "", clean.effect(main)]
            print(table_line(cells), flush=True)
            made["rows"].append({"world": world, "seed": seed, "group": group, "share": share, "random": control})
        made["tops"][seed] = [list(attributions[seed][0].top(TOP[0]))]
    print()
    overlaps(world, attributions)
    return made


def percent(share: Sequence[float]) -> str:
    digits = 1 if abs(share[0]) < 10 else 0
    mid, low, high = (f"{number:.{digits}f}".replace("-", "−") for number in share)
    return f"{mid} % ({low} to {high})"


def overlaps(world: str, attributions: Mapping[int, Sequence[xt.Attribution]]) -> None:
    """Print how many of the top neurons two tunings, two halves of the prompts and two languages share."""

    def shared(first: np.ndarray, second: np.ndarray) -> int:
        return len(set(np.argsort(first)[: TOP[0]]) & set(np.argsort(second)[: TOP[0]]))

    def value(attribution: xt.Attribution, language: str = "all") -> np.ndarray:
        return attribution.values("neurons", language=language)

    both = {seed: sum(map(value, pair)) for seed, pair in attributions.items()}
    sources = f"Of the top {TOP[0]}, shared by"
    print(f"shared\n\n{table_line(['World', 'Seed', sources, 'Neurons'])}\n{table_line(['---'] * 4)}")
    for seed, pair in attributions.items():
        print(table_line([world, f"{seed}", "two halves of the prompts", f"{shared(*map(value, pair))}"]))
        codes = [code for code in pair[0].codes if code in pair[1].codes]
        of_code = {code: value(pair[0], code) + value(pair[1], code) for code in codes}
        counts = {code: shared(of_code["en"], of_code[code]) for code in codes if code != "en"}
        counted = f"mean {np.mean(list(counts.values())):.0f}, " + ", ".join(f"{c} {n}" for c, n in counts.items())
        print(table_line([world, f"{seed}", "English and another language", counted]))
        within = {code: shared(value(pair[0], code), value(pair[1], code)) for code in codes}
        counted = f"mean {np.mean(list(within.values())):.0f}, en {within['en']}"
        print(table_line([world, f"{seed}", "two halves of one language's prompts", counted]))
    for one, other in itertools.combinations(both, 2):
        counted = f"{shared(both[one], both[other])}"
        print(table_line([world, f"{one}, {other}", "two seeds of tuning, same prompts", counted]), flush=True)


def table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
