"""What groups of neurons carry of the change from one model to another, by patching them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts
from xlingtox.edits.patch import Patch
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.models.batching import by_length, in_batches, rows_that_fit
from xlingtox.models.generation import check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring.protocol import Scorer, check_covered, check_scores

Values = Mapping[str, Float[np.ndarray, "prompt"]]
"""Measure to its value for each prompt."""

_BASE, _TUNED, _RANDOM = "base", "tuned", " (random)"


@checked
@dataclass(frozen=True, repr=False, eq=False)
class PatchEffect:
    """How a model's behaviour moves towards another's as groups of its neurons act as they do there.

    Attributes:
        languages: of each prompt.
        runs: `base`, `tuned`, the name of each group, and of each group's control (`name (random)`), to the values of
            each measure: `probe` (its logit at the last prompt token), `toxic_mass` (probability of the toxic tokens as
            the next one), `toxicity` (mean score of the continuations). A control is the mean over its random sets.
        models: which models they were, base and tuned; None where that is not known.
    """

    languages: tuple[str, ...]
    runs: Mapping[str, Values]
    models: tuple[Identity, Identity] | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether all values and both models are the same; NaN equals NaN."""
        if not isinstance(other, PatchEffect):
            return NotImplemented
        return (
            (self.languages, self.models, list(self.runs)) == (other.languages, other.models, list(other.runs))
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
        """One row a measure, group and language, and one for `all`, the mean over languages.

        Columns `measure, group, language, base, tuned, patched, share, low, high`. `share` is
        `(patched - base) / (tuned - base)`, with its bootstrap interval over prompts: 0 where the group carries nothing
        of the change, 1 where it carries all; NaN where there is no change, and without an interval where there is one
        prompt a language, or where the prompts do not tell that there is a change: a share of what may be nothing can
        be anything.
        """
        rng, quantiles = np.random.default_rng(seed), [(1 - level) / 2, (1 + level) / 2]
        codes = languages.in_order(self.languages)
        own = {code: np.flatnonzero(np.array(self.languages) == code) for code in codes}
        drawn = {code: rows[rng.integers(0, len(rows), (n_resamples, len(rows)))] for code, rows in own.items()}
        rows = []
        for measure in self.runs[_BASE]:
            means, resampled = {}, {}
            for run, values in self.runs.items():
                means[run] = {code: float(values[measure][own[code]].mean()) for code in codes}
                resampled[run] = {code: values[measure][drawn[code]].mean(1) for code in codes}
                means[run]["all"] = float(np.mean(list(means[run].values())))
                resampled[run]["all"] = np.mean(list(resampled[run].values()), axis=0)
            for run in self.runs:
                if run in (_BASE, _TUNED):
                    continue
                for code in (*codes, "all"):
                    ends = [means[each][code] for each in (_BASE, _TUNED, run)]
                    shares = _share(*(resampled[each][code] for each in (_BASE, _TUNED, run)))
                    span = np.full(2, np.nan)
                    least, most = np.quantile(resampled[_TUNED][code] - resampled[_BASE][code], quantiles)
                    # One prompt of each language, drawn again and again, varies in nothing.
                    several = max(len(each) for each in own.values()) if code == "all" else len(own[code])
                    if least * most > 0 and several > 1:
                        span = np.quantile(shares[np.isfinite(shares)], quantiles)
                    rows.append((measure, run, code, *ends, float(_share(*map(np.array, ends))), *map(float, span)))
        names = ["measure", "group", "language", "base", "tuned", "patched", "share", "low", "high"]
        return pd.DataFrame(rows, columns=names)

    def __repr__(self) -> str:
        measures, groups = ", ".join(self.runs[_BASE]), ", ".join(self.groups)
        return f"PatchEffect({len(self.languages)} prompts: {measures} with {groups} patched)"

    @property
    def groups(self) -> dict[str, str | None]:
        """Each group to the run of its random neurons, if it has any."""
        names = [run for run in self.runs if run not in (_BASE, _TUNED) and not run.endswith(_RANDOM)]
        return {name: name + _RANDOM if name + _RANDOM in self.runs else None for name in names}

    @checked
    def shares(self, *, language: str = "all") -> dict[tuple[str, str], tuple[float, float, float]]:
        """Measure and run (of a group, or its control) to the share and its 95 % interval, as in `to_frame`.

        Raises:
            ValueError: a language that is not there.
        """
        table = self.to_frame()
        if language not in (there := list(dict.fromkeys(table["language"]))):
            raise ValueError(f"unknown language {language!r}: expected one of {', '.join(there)}")
        own = table[table["language"] == language]
        spans = (
            (float(share), float(low), float(high))
            for share, low, high in zip(own.share, own.low, own.high, strict=True)
        )
        return dict(zip(zip(own["measure"], own["group"], strict=True), spans, strict=True))

    def _repr_html_(self) -> str:
        """For notebooks: a row a measure and group, over all languages, beside its random neurons."""
        shares = self.shares()

        def told(measure: str, run: str | None) -> str:
            if run is None:
                return "–"
            share, low, high = shares[measure, run]
            span = f" ({tables.percent(low)} to {tables.percent(high)})" if math.isfinite(low) else ""
            return tables.percent(share) + span

        rows = [
            [escaped(group), escaped(measure.replace("_", " ")), told(measure, group), told(measure, control)]
            for measure in self.runs[_BASE]
            for group, control in self.groups.items()
        ]
        columns = ["Group", "Measured by", "Share of the change (95 % interval)", "Random neurons"]
        return tables.table("What patched neurons carry of the change, over all languages", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write as one JSON file."""
        runs = {run: {name: each.tolist() for name, each in values.items()} for run, values in self.runs.items()}
        models = self.models and [dataclasses.asdict(model) for model in self.models]
        files.write_results(path, {"languages": self.languages, "runs": runs, "models": models})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> PatchEffect:
        whole = files.read_results(path)
        with files.understood(path, "effect of patching"):
            runs = {run: {name: np.array(each) for name, each in row.items()} for run, row in whole["runs"].items()}
            models = whole.get("models")
            both = (Identity.of(models[0]), Identity.of(models[1])) if isinstance(models, list) else None
            return cls(tuple(whole["languages"]), runs, both)


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
    n_random: int = 3,
    n_samples: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> PatchEffect:
    """Run `before` with each group of neurons patched from `after`, beside both models as they are.

    Both run on the same tokens, also while new ones are generated. With the models exchanged it is the other direction.
    Yang et al. 2024 (section 5) patch means instead: `Patch(neurons, activations)` does.

    Args:
        groups: by name; each gets a control of random neurons in the same layers, of those outside the group where they
            are enough, unless it is all neurons of its layers.
        probe: for the probe's logit.
        toxic_tokens: for their probability; those that the sources promote, say.
        scorer: for the toxicity of `n_samples` continuations.
        n_random: random sets behind each control; 0 for none.

    Raises:
        ValueError: nothing to measure by, no groups or one that is called as a run is, models that do not match, a
            neuron outside them, bad prompts, a language that the scorer does not cover.
    """
    given = as_prompts(prompts, tokenizer=before.tokenizer)
    tokens = None if toxic_tokens is None else sorted({int(token) for token in toxic_tokens})
    if before is after:
        raise ValueError(f"{before.name} is given as both models: there is no change to carry")
    before.check_alike(after)
    lengths = check_lengths(before, given, max_new_tokens)
    if tokens == [] or n_random < 0:
        raise ValueError(
            f"toxic_tokens are {tokens}, n_random is {n_random}: expected at least one token, and 0 or more"
        )
    if probe is None and not tokens and scorer is None:
        raise ValueError("nothing to measure by: give a probe, toxic_tokens or a scorer")
    if probe is not None:
        probe.check(before)
    if tokens and not 0 <= tokens[0] <= tokens[-1] < before.unembedding().shape[0]:
        raise ValueError(f"toxic_tokens are from {tokens[0]} to {tokens[-1]}: not all are of the model's vocabulary")
    if scorer is not None:
        check_covered(scorer, [prompt.language for prompt in given])
    if not groups or any(name in (_BASE, _TUNED) or name.endswith(_RANDOM) for name in groups):
        raise ValueError(f"groups are {list(groups)}: expected at least one, none called base, tuned or '...{_RANDOM}'")
    for group in groups.values():
        group.check(before)

    def measured(lm: HookedLM, patched: NeuronSet | None = None) -> Values:
        with contextlib.nullcontext() if patched is None else Patch(patched, after).on(lm):
            found = _next_token(lm, given, lengths, probe, tokens)
            if scorer is not None:
                written = generate(
                    lm, given, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed, progress=False
                )
        if scorer is not None:
            # Outside: a probe of either model is a judge of its own, and must not be patched.
            scores = check_scores(scorer, written.texts, written.row_languages)
            found["toxicity"] = scores.reshape(len(given), -1).mean(1)
        bar.update()
        return found

    controls = {name: _controls(group, before, n_random, seed) for name, group in groups.items()}
    with tqdm(
        total=2 + sum(1 + len(each) for each in controls.values()),
        desc="patching",
        unit="run",
        disable=not progress,
        leave=False,
    ) as bar:
        runs = {_BASE: measured(before), _TUNED: measured(after)}
        for name, group in groups.items():
            runs[name] = measured(before, group)
            if beside := [measured(before, each) for each in controls[name]]:
                runs[name + _RANDOM] = {each: np.mean([values[each] for values in beside], 0) for each in beside[0]}
    return PatchEffect(tuple(prompt.language for prompt in given), runs, (before.identity(), after.identity()))


def _next_token(
    lm: HookedLM, prompts: Sequence[Prompt], lengths: Sequence[int], probe: Probe | None, tokens: Sequence[int] | None
) -> dict[str, Float[np.ndarray, "prompt"]]:
    """What can be said at the last token of each prompt."""
    found = {
        name: np.empty(len(prompts)) for name, asked in (("probe", probe), ("toxic_mass", tokens)) if asked is not None
    }
    if not found:
        return {}

    def read(rows: list[int]) -> None:
        ids, mask = lm.encode([prompts[i].text for i in rows])
        states: list[Tensor] = []
        with lm.hooks(residual={lm.n_layers: lambda state: states.append(state[:, -1].double().cpu())}, edit=None):
            logits = lm.logits(ids, mask, languages=[prompts[i].language for i in rows], last_only=True)
        if probe is not None:
            found["probe"][rows] = (states[0] @ probe.direction.double() + probe.bias).numpy()
        if tokens is not None:
            chance = torch.softmax(logits[:, -1].double(), -1)[:, list(tokens)]
            found["toxic_mass"][rows] = chance.sum(-1).cpu().numpy()

    in_batches(by_length(lengths), rows_that_fit(lm, max(lengths)), read)
    return found


def _controls(group: NeuronSet, lm: HookedLM, n: int, seed: int) -> list[NeuronSet]:
    counts = {layer: len(indices) for layer, (indices, _) in group.by_layer().items()}
    if min(counts.values()) == lm.d_mlp:
        return []
    if max(counts.values()) <= lm.d_mlp // 2:
        return [group.random_like(lm, seed=seed + i) for i in range(n)]
    rngs = [random.Random(f"random beside {seed + i}") for i in range(n)]
    layers = sorted(counts.items())
    return [NeuronSet.of((layer, i) for layer, k in layers for i in rng.sample(range(lm.d_mlp), k)) for rng in rngs]


def _share(
    base: Float[np.ndarray, "*any"], tuned: Float[np.ndarray, "*any"], patched: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    change = np.asarray(tuned - base)
    # Means of the same numbers in another order differ by rounding.
    none = np.abs(change) <= 1e-9 * np.maximum(np.abs(base), np.abs(tuned))
    return np.where(none, np.nan, (patched - base) / np.where(none, 1.0, change))
