"""Patching: how much of the change from one model to another do groups of neurons carry?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.patch import Patch
from xlingtox.edits.under import Plan, generate_under, in_parts, results_under
from xlingtox.evaluation.named_sets import activations_of_layers
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.batches import Batches
from xlingtox.models.batching import by_length, rows_that_fit
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, check_covered, check_scores

Values = Mapping[str, Float[np.ndarray, "prompt"]]
"""The values of each measure, one for each prompt."""

PatchMatch = Literal["layers", "activity"]
"""What the random neurons of a control share with their group: its layers, or also its activity."""

_BASE, _TUNED, _RANDOM = "base", "tuned", " (random)"

_CONTROLS: Mapping[PatchMatch | None, str] = {
    "layers": "Random neurons of the same layers",
    "activity": "Random neurons of the same layers, equally active",
    None: "Random neurons",
}
"""Names of the controls, for tables and figures."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class PatchEffect:
    """The effect of patching: one model's behaviour when groups of its neurons act as they do in another model.

    A group that carries the whole change makes the base model behave like the tuned one. Its share is then 1.

    Attributes:
        languages: the language of each prompt.
        runs: the values of each measure in each run, one for each prompt. The runs are `base` (the model before),
            `tuned` (the model after), one for each group under its name, and one for each group's control (`name
            (random)`), the mean over its random sets. The measures are `probe` (its logit at the last prompt token),
            `toxic_mass` (the probability of the toxic tokens as the next one) and `toxicity` (the mean score of the
            continuations).
        models: which models were used, base and tuned; None where that is not known.
        match: what the random neurons share with their group: "layers", or also their "activity" in the base model.
            None where there are none, or where that is not known.

    Example:
        >>> import numpy as np
        >>> runs = {"base": [4.0, 6.0], "tuned": [2.0, 4.0], "some": [3.0, 5.0]}
        >>> effect = xt.PatchEffect(("en", "es"), {run: {"probe": np.array(row)} for run, row in runs.items()})
        >>> effect.to_frame()[["language", "share"]].values.tolist()
        [['en', 0.5], ['es', 0.5], ['all', 0.5]]
        >>> effect.save(tmp_path / "effect.json")
        >>> xt.PatchEffect.load(tmp_path / "effect.json") == effect
        True
    """

    languages: tuple[str, ...]
    runs: Mapping[str, Values]
    models: tuple[Identity, Identity] | None = None
    match: PatchMatch | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether all values, both models and the kind of control are the same; NaN equals NaN."""
        if not isinstance(other, PatchEffect):
            return NotImplemented
        return (
            (self.languages, self.models, self.match) == (other.languages, other.models, other.match)
            and list(self.runs) == list(other.runs)
            and all(list(values) == list(other.runs[run]) for run, values in self.runs.items())
            and all(
                np.array_equal(values, other.runs[run][measure], equal_nan=True)
                for run, values_by_measure in self.runs.items()
                for measure, values in values_by_measure.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @checked
    def to_frame(self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return one row for each measure, group and language, and one for `all`, the mean over languages.

        Columns `measure, group, language, base, tuned, patched, share, low, high`. `share` is
        `(patched - base) / (tuned - base)`: 0 where the group carries nothing of the change, 1 where it carries all,
        NaN where there is no change.

        `low` and `high` are its bootstrap interval over prompts. They are NaN where each language has one prompt. They
        are also NaN where the prompts do not show that there is a change: a share of what may be nothing can be
        anything.
        """
        rng, quantiles = np.random.default_rng(seed), [(1 - level) / 2, (1 + level) / 2]
        codes = languages.in_order(self.languages)
        prompts = {code: np.flatnonzero(np.array(self.languages) == code) for code in codes}
        drawn = {
            code: places[rng.integers(0, len(places), (n_resamples, len(places)))] for code, places in prompts.items()
        }
        rows = []
        for measure in self.runs[_BASE]:
            means, resampled = {}, {}
            for run, values in self.runs.items():
                means[run] = {code: float(values[measure][prompts[code]].mean()) for code in codes}
                resampled[run] = {code: values[measure][drawn[code]].mean(1) for code in codes}
                means[run]["all"] = float(np.mean(list(means[run].values())))
                resampled[run]["all"] = np.mean(list(resampled[run].values()), axis=0)
            for run in self.runs:
                if run in (_BASE, _TUNED):
                    continue
                for code in (*codes, "all"):
                    ends = [means[name][code] for name in (_BASE, _TUNED, run)]
                    shares = _share(*(resampled[name][code] for name in (_BASE, _TUNED, run)))
                    interval = np.full(2, np.nan)
                    least, most = np.quantile(resampled[_TUNED][code] - resampled[_BASE][code], quantiles)
                    # One prompt of each language, drawn again and again, varies in nothing.
                    several = max(map(len, prompts.values())) if code == "all" else len(prompts[code])
                    if least * most > 0 and several > 1:
                        interval = np.quantile(shares[np.isfinite(shares)], quantiles)
                    share = float(_share(*map(np.array, ends)))
                    rows.append((measure, run, code, *ends, share, *map(float, interval)))
        names = ["measure", "group", "language", "base", "tuned", "patched", "share", "low", "high"]
        return pd.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        measures, groups = ", ".join(self.runs[_BASE]), ", ".join(self.groups)
        return f"PatchEffect({len(self.languages)} prompts: {measures} with {groups} patched)"

    @property
    def groups(self) -> dict[str, str | None]:
        """The name of each group, and the name of the run of its random neurons; None where it has none."""
        names = [run for run in self.runs if run not in (_BASE, _TUNED) and not run.endswith(_RANDOM)]
        return {name: name + _RANDOM if name + _RANDOM in self.runs else None for name in names}

    @property
    def control(self) -> str:
        """The random neurons in words, for tables and figures."""
        return _CONTROLS[self.match]

    @checked
    def shares(self, *, language: str = "all") -> dict[tuple[str, str], tuple[float, float, float]]:
        """Return the share of each measure and run, of a group or its control, with its 95 % interval.

        Keys are (measure, run), values (share, low, high), as in `to_frame`.

        Raises:
            ValueError: there are no prompts in this language.
        """
        table = self.to_frame()
        if language not in (known := list(dict.fromkeys(table["language"]))):
            raise ValueError(f"unknown language {language!r}: expected one of {', '.join(known)}")
        rows = table[table["language"] == language]
        shares = (
            (float(share), float(low), float(high))
            for share, low, high in zip(rows.share, rows.low, rows.high, strict=True)
        )
        return dict(zip(zip(rows["measure"], rows["group"], strict=True), shares, strict=True))

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each measure and group, over all languages."""
        shares = self.shares()

        def cell(measure: str, run: str | None) -> str:
            if run is None:
                return "–"
            share, low, high = shares[measure, run]
            interval = f" ({tables.percent(low)} to {tables.percent(high)})" if math.isfinite(low) else ""
            return tables.percent(share) + interval

        rows = [
            [escaped(group), escaped(measure.replace("_", " ")), cell(measure, group), cell(measure, control)]
            for measure in self.runs[_BASE]
            for group, control in self.groups.items()
        ]
        columns = ["Group", "Measured by", "Share of the change (95 % interval)", self.control]
        return tables.table("What patched neurons carry of the change, over all languages", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        runs = {
            run: {measure: values.tolist() for measure, values in values_by_measure.items()}
            for run, values_by_measure in self.runs.items()
        }
        models = self.models and [dataclasses.asdict(model) for model in self.models]
        content = {"languages": self.languages, "runs": runs, "models": models, "match": self.match}
        files.write_results(path, content)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> PatchEffect:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no effect of patching. The error names the file.
        """
        content = files.read_results(path)
        with files.understood(path, "effect of patching"):
            runs = {
                run: {measure: np.array(values) for measure, values in values_by_measure.items()}
                for run, values_by_measure in content["runs"].items()
            }
            models = content.get("models")
            both = (Identity.of(models[0]), Identity.of(models[1])) if isinstance(models, list) else None
            # Earlier versions drew random neurons from the same layers only. NaN stands for null in the file.
            drawn = any(run.endswith(_RANDOM) for run in runs)
            match: Any = content.get("match", "layers" if drawn else None)
            return cls(tuple(content["languages"]), runs, both, None if isinstance(match, float) else match)


@checked
def patch_effect(
    before: HookedLM,
    after: HookedLM,
    prompts: Prompts,
    groups: Mapping[str, NeuronSet],
    *,
    probe: Probe | None = None,
    toxic_tokens: Iterable[int] | None = None,
    scorer: Scorer | None = None,
    match: PatchMatch = "activity",
    n_random: int = 3,
    n_samples: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> PatchEffect:
    """Run `before` with each group of neurons patched from `after`, and both models as they are.

    If a group carries the change, patching it makes `before` behave like `after`. A patched neuron has, at every
    position, the activation that it has in `after`. Both models read the same tokens, also while new ones are
    generated. Exchange the models to patch in the other direction. Yang et al. 2024 (section 5) patch means instead, as
    `Patch(neurons, activations)` does. All groups and their controls share batches, as far as that is faster.

    Args:
        before, after: the model that is patched, and the one whose activations are patched in.
        groups: the groups of neurons, by name. Each gets a control of random neurons in the same layers, unless it
            is all neurons of its layers. They are drawn from outside the group if it has at most half of each
            layer, and otherwise from all neurons. Weights of neurons have no effect.
        probe: the probe whose logit is measured.
        toxic_tokens: the ids of the tokens whose probability is measured, such as those that the sources promote.
        scorer: the scorer of `n_samples` continuations of each prompt.
        match: "activity" draws random neurons that are as active in `before` on the same prompts, because a neuron that
            hardly acts has little to carry. "layers" draws any others. Unlike the control of an offset, none is scaled
            to push as far: a patched neuron has the activation of `after`, and another would be of no model.
        n_random: how many random sets each control is the mean of; 0 for no control.

    Raises:
        ValueError: there is no probe, toxic token or scorer to measure with; there are no groups, or one has the name
            of a run; the models do not match; a neuron is outside them; prompts are bad; or the scorer does not cover a
            language.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> effect = xt.patch_effect(lm, edited, prompts, {"sources": sources}, probe=probe, n_random=1, progress=False)
        >>> effect
        PatchEffect(4 prompts: probe with sources patched)
    """
    prompt_list = as_prompts(prompts, tokenizer=before.tokenizer)
    token_ids = None if toxic_tokens is None else sorted({int(token) for token in toxic_tokens})
    if before is after:
        raise ValueError(f"{before.name} is given as both models: there is no change to carry")
    before.check_alike(after)
    lengths = check_lengths(before, prompt_list, max_new_tokens)
    if token_ids == [] or n_random < 0:
        raise ValueError(
            f"toxic_tokens are {token_ids}, n_random is {n_random}: expected at least one token, and 0 or more"
        )
    if probe is None and not token_ids and scorer is None:
        raise ValueError("nothing to measure by: give a probe, toxic_tokens or a scorer")
    if probe is not None:
        probe.check(before)
    if token_ids and not 0 <= token_ids[0] <= token_ids[-1] < before.unembedding().shape[0]:
        raise ValueError(
            f"toxic_tokens are from {token_ids[0]} to {token_ids[-1]}: not all are of the model's vocabulary"
        )
    if scorer is not None:
        check_covered(scorer, [prompt.language for prompt in prompt_list])
    if not groups or any(name in (_BASE, _TUNED) or name.endswith(_RANDOM) for name in groups):
        raise ValueError(f"groups are {list(groups)}: expected at least one, none called base, tuned or '...{_RANDOM}'")
    for group in groups.values():
        group.check(before)

    last_token = _LastToken(prompt_list, lengths, probe, token_ids)
    sizes: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "progress": progress}
    writing: dict[str, Any] = {"n_samples": n_samples, **sizes}

    def scored(values: Float[np.ndarray, "measure prompt"], written: Continuations | None) -> Values:
        """Return all measures of a run. No model is patched now: the scorer may be a probe of one of them."""
        measures = dict(zip(last_token.measures, values, strict=True))
        if scorer is not None and written is not None:
            scores = check_scores(scorer, written.texts, written.row_languages)
            measures["toxicity"] = scores.reshape(len(prompt_list), -1).mean(1)
        shown.update()
        return measures

    def measured(lm: HookedLM) -> Values:
        written = None if scorer is None else generate(lm, prompt_list, **writing)
        return scored(last_token.read(lm), written)

    def patched(neuron_sets: Sequence[NeuronSet]) -> Iterator[Values]:
        """Yield the measures of `before` with each set patched. Several sets run together, because that is faster."""
        for patches in in_parts([Patch(one, after) for one in neuron_sets], n_samples * len(prompt_list)):
            values = last_token.read_under(before, patches)
            texts = [None] * len(patches) if scorer is None else generate_under(before, patches, prompt_list, **writing)
            yield from map(scored, values, texts)

    controls = _controls(before, prompt_list, groups, match, n_random, **sizes)
    sets = {name: [group, *controls[name]] for name, group in groups.items()}
    with bar("patching", total=2 + sum(map(len, sets.values())), unit="run", progress=progress) as shown:
        runs = {_BASE: measured(before), _TUNED: measured(after)}
        of_sets = patched([one for neuron_sets in sets.values() for one in neuron_sets])
        for name, neuron_sets in sets.items():
            runs[name], *random_runs = itertools.islice(of_sets, len(neuron_sets))
            if random_runs:
                runs[name + _RANDOM] = {
                    measure: np.mean([values[measure] for values in random_runs], 0) for measure in random_runs[0]
                }
    codes = tuple(prompt.language for prompt in prompt_list)
    return PatchEffect(codes, runs, (before.identity(), after.identity()), match if any(controls.values()) else None)


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
        with lm.hooks(residual={lm.n_layers: lambda state: states.append(state[:, -1].double().cpu())}, edit=None):
            logits = lm.logits(
                ids.repeat(times, 1),
                mask.repeat(times, 1),
                languages=[prompt.language for prompt in prompts] * times,
                edits=None if n_edits is None else [edit for edit in range(n_edits) for _ in prompts],
                last=1,
            )
        values = []
        if self.probe is not None:
            values.append(states[0] @ self.probe.direction.double() + self.probe.bias)
        if self.token_ids is not None:
            chances = torch.softmax(logits[:, -1].double(), -1)[:, list(self.token_ids)]
            values.append(chances.sum(-1).cpu())
        return torch.stack(values).numpy()


def _controls(
    before: HookedLM,
    prompts: Sequence[Prompt],
    groups: Mapping[str, NeuronSet],
    match: PatchMatch,
    n_random: int,
    *,
    max_new_tokens: int,
    seed: int,
    progress: bool,
) -> dict[str, list[NeuronSet]]:
    """Draw the random sets of each group; none where a group is all neurons of its layers."""
    activations = None
    if match == "activity" and n_random > 0:
        sets = list(groups.values())
        activations = activations_of_layers(before, sets, prompts, max_new_tokens=max_new_tokens, progress=progress)
    return {
        name: random_sets(group, before, n=n_random, seed=seed, match=match, activations=activations)
        for name, group in groups.items()
    }


def _share(
    base: Float[np.ndarray, "*any"], tuned: Float[np.ndarray, "*any"], patched: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    """Return the share of the change; NaN where there is none."""
    change = np.asarray(tuned - base)
    # Means of the same numbers in another order differ by rounding.
    unchanged = np.abs(change) <= 1e-9 * np.maximum(np.abs(base), np.abs(tuned))
    return np.where(unchanged, np.nan, (patched - base) / np.where(unchanged, 1.0, change))
