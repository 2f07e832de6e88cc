"""Attribute what tuning changed to every neuron and every head, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.attribution import ESTIMATES, Attribution
from xlingtox.evaluation.components import Component, Components, Place
from xlingtox.evaluation.continuation_rows import Kept, WeightedRow, check_continued, continuation_rows
from xlingtox.evaluation.effects import Effects, Path
from xlingtox.evaluation.row_measures import RowMeasure, measure_of
from xlingtox.models.batches import Batches
from xlingtox.models.batching import MOST_TEXTS, by_length, fitting
from xlingtox.models.generation import Continuations, check_lengths, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, check_covered


@checked
def attribute(
    base: HookedLM,
    tuned: HookedLM,
    prompts: Any,
    *,
    continuations: Continuations | None = None,
    scorer: Scorer | None = None,
    kept: Kept = "toxic",
    measure: str | RowMeasure = "log_probability",
    components: Sequence[Component] = ("neurons", "heads"),
    groups: Mapping[str, NeuronSet | Sequence[NeuronSet]] | None = None,
    steps: int | None = None,
    n_samples: int = 10,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Attribution:
    """Say how much each neuron and each head carries of what tuning changed in a measure.

    Tuning changes what a model thinks of a text. Which neurons and heads carry that change? Exact patching moves one of
    them at a time to the value that it has in the tuned model, which takes a pass for each. Two estimates take a few
    passes for all.

    - The *linear* estimate is the gradient of the measure in the base model, times the difference of activations
      (attribution patching, Syed et al. 2023, arXiv 2310.10348). It takes one forward and one backward pass of the base
      model. It orders single units nearly as exact patching does. Its sum means nothing, because what passes through
      two components is counted twice.
    - The *integrated* estimate averages the gradient along a path, and multiplies it by the difference. On this path
      all components go straight from the base's activations to the tuned ones (integrated gradients, Sundararajan et
      al. 2017, arXiv 1703.01365). It adds up to the exact effect of patching them all, so it is for sums over layers,
      kinds and groups. It orders single units worse (rank correlations of 0 to .7 with exact patching), since the
      others have moved too.

    Groups of units interact, so patch a group before you claim what it carries: `patch_effect` does. All components on
    the path move at once, and those that were not asked for respond to them.

    Args:
        base, tuned: the models. Both read the same tokens: the texts of the base.
        prompts: texts, conversations or a table of them; for `PreferenceMargin` a table of preference pairs.
        continuations: the texts that the measure is taken over. By default the base writes `n_samples` for each prompt.
        scorer: the scorer of continuations; only those that are kept count. By default all count.
        kept: which continuations count where there is a scorer: "toxic" (scored at least 0.5) or "clean".
        measure: "log_probability", or a value: `LogProbability()`, `ToxicMass(tokens)`, `ProbeLogit(probe)`,
            `PreferenceMargin(beta)` of `xt.evaluation`. It is the mean over a prompt's continuations.
        components: what may carry the change. "neurons" are post-activations, "heads" the outputs of attention heads,
            "layers" all that a block adds to the residual stream, "embeddings" the embedding's output. "value_vectors",
            "biases", "output_projections", "norms" and "unembedding" are weights that tuning changed. All of these but
            "layers" together make up the whole change.
        groups: sets of neurons or heads by name, whose sums are kept for each prompt, so that they have intervals. A
            group may be several sets, such as neurons and heads.
        steps: the number of points on the path. By default 2, doubled until the sum is within 1 % of the exact effect,
            text by text, or comes no closer, and at most 64.
        n_samples, max_new_tokens, seed: for the texts that the base writes, as in `generate`.

    Raises:
        ValueError: the models are one, or do not match; the family has not a component; no continuation counts; a
            measure is unknown or not finite; or prompts are bad.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> attribution = xt.attribute(lm, tuned, prompts, n_samples=2, max_new_tokens=4, progress=False)
        >>> attribution.to_frame().columns.tolist()
        ['component', 'layer', 'index', 'language', 'linear', 'integrated']
        >>> abs(attribution.completeness - 1) < 0.01
        True
    """
    chosen = measure_of(measure)
    if base is tuned:
        raise ValueError(f"{base.name} is given as both models: there is no change to attribute")
    base.check_alike(tuned)
    chosen.check(base)
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}: expected at least 1")
    path = Path(base, tuned, chosen, Components.of(base, tuned, components))
    columns = {name: _columns(base, group, path.components) for name, group in (groups or {}).items()}

    def written() -> list[WeightedRow]:
        texts, prompt_list = continuations, base.as_prompts(prompts)
        if texts is None:
            check_lengths(base, prompt_list, max_new_tokens)
            if scorer is not None:
                check_covered(scorer, [prompt.language for prompt in prompt_list])
            sizes: dict[str, Any] = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed}
            texts = generate(base, prompt_list, **sizes, progress=progress)
        else:
            check_continued(prompt_list, texts)
        return continuation_rows(base, texts, scorer=scorer, kept=kept)

    rows = list(chosen.rows(base, prompts, written))
    sums = _Sums.of(rows, path.components, list(columns))
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths)
    batches = Batches(None, "attribution", [base, tuned])
    with bar("attribution", total=len(rows), unit="text", progress=progress) as shown:

        def use(batch: list[int], of_batch: _BatchSums) -> None:
            sums.add([rows[i] for i in batch], of_batch)
            shown.update(len(batch))

        batches.each(
            by_length(lengths),
            batches.size(longest, lambda: _texts_that_fit(base, longest)),
            lambda batch: sums.of_batch([rows[i] for i in batch], path, columns, steps),
            use,
        )
    return sums.attribution(chosen.name, path)


def _columns(lm: HookedLM, group: NeuronSet | Sequence[NeuronSet], components: Components) -> dict[Place, list[int]]:
    """Return the units of a group by kind and layer."""
    columns: dict[Place, list[int]] = {}
    for neurons in [group] if isinstance(group, NeuronSet) else group:
        neurons.check(lm, sites=("neurons", "heads"))
        for layer, (indices, _) in neurons.by_layer().items():
            place: Place = ("heads" if neurons.site == "heads" else "neurons", layer)
            if place not in components.units:
                raise ValueError(
                    f"a group holds {neurons.site}, which are not among the components that were asked for"
                )
            columns[place] = sorted({*columns.get(place, []), *indices})
    return columns


def _texts_that_fit(lm: HookedLM, longest: int) -> int:
    """Return how many texts fit into the free memory, with the graph of their pass and the activations of both models.

    A gradient needs what every block has computed: some 6 numbers for each neuron and 16 for each place of the residual
    stream. Logits are held about four times, in 4 bytes.
    """
    numbers = lm.n_layers * (8 * lm.d_mlp + 18 * lm.d_model) * max(4, lm.unembedding().element_size())
    logits = 4 * 4 * lm.unembedding().shape[0]
    return min(MOST_TEXTS, fitting(lm.device, longest * (numbers + logits)))


class _BatchSums(NamedTuple):
    """The sums of one batch.

    Attributes:
        linear, integrated: the sums over the texts of each language, times their weights.
        texts: for each text, the values of `_Sums.names`, times its weight.
        steps: the number of points on the path.
    """

    linear: dict[Place, Float[Tensor, "language unit"]]
    integrated: dict[Place, Float[Tensor, "language unit"]]
    texts: Float[np.ndarray, "name text"]
    steps: int


class _Sums:
    """The running sums of an attribution: no activation and no gradient of more than one batch is held."""

    def __init__(self, prompt_numbers: Sequence[int], prompt_languages: Sequence[str], components: Components) -> None:
        self.codes = languages.in_order(prompt_languages)
        self.prompt_languages = tuple(prompt_languages)
        self.place_of = {number: place for place, number in enumerate(prompt_numbers)}
        self.n_prompts = Counter(prompt_languages)
        self.steps = 0
        self.estimates = [
            {
                place: torch.zeros(len(self.codes), n_units, dtype=torch.float64)
                for place, n_units in components.units.items()
            }
            for _ in ESTIMATES
        ]
        self.names: list[tuple[str, str]] = []
        self.of_prompts: Float[np.ndarray, "name prompt"] = np.zeros((0, 0))

    @classmethod
    def of(cls, rows: Sequence[WeightedRow], components: Components, groups: Sequence[str]) -> _Sums:
        languages_of = dict(sorted((row.prompt, row.language) for row in rows))
        sums = cls(list(languages_of), list(languages_of.values()), components)
        sums.names = [("totals", name) for name in ("base", "exact", "patched", *ESTIMATES)]
        sums.names += [(name, estimate) for name in groups for estimate in ESTIMATES]
        sums.of_prompts = np.zeros((len(sums.names), len(languages_of)))
        return sums

    def of_batch(
        self,
        rows: Sequence[WeightedRow],
        path: Path,
        groups: Mapping[str, Mapping[Place, Sequence[int]]],
        steps: int | None,
    ) -> _BatchSums:
        """Compute the sums of one batch.

        Raises:
            ValueError: a measure or an effect is not finite.
        """
        effects = path.effects(rows, steps)
        weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
        shares = torch.zeros(len(self.codes), len(rows), dtype=torch.float64)
        for number, row in enumerate(rows):
            shares[self.codes.index(row.language), number] = row.weight / self.n_prompts[row.language]
        estimates = [
            {place: values.double().cpu() for place, values in estimate.items()}
            for estimate in (effects.linear, effects.integrated)
        ]
        values = [effects.base, effects.tuned - effects.base, effects.patched - effects.base]
        values += [torch.stack([part.sum(1) for part in estimate.values()]).sum(0) for estimate in estimates]
        for columns in groups.values():
            values += [
                torch.stack([estimate[place][:, indices].sum(1) for place, indices in columns.items()]).sum(0)
                for estimate in estimates
            ]
        texts = torch.stack([value.detach().double().cpu() for value in values])
        _check_finite(texts, rows, path, effects)
        linear, integrated = ({place: shares @ part for place, part in estimate.items()} for estimate in estimates)
        return _BatchSums(linear, integrated, (texts * weights).numpy(), effects.steps)

    def add(self, rows: Sequence[WeightedRow], of_batch: _BatchSums) -> None:
        """Add the sums of one batch."""
        self.steps = max(self.steps, of_batch.steps)
        for total, estimate in zip(self.estimates, (of_batch.linear, of_batch.integrated), strict=True):
            for place, part in estimate.items():
                total[place] += part
        for row, values in zip(rows, of_batch.texts.T, strict=True):
            self.of_prompts[:, self.place_of[row.prompt]] += values

    def attribution(self, measure: str, path: Path) -> Attribution:
        """Return the result."""
        kinds = list(dict.fromkeys(kind for kind, _ in path.components.units))
        units = {
            kind: np.array(
                [
                    (layer, index)
                    for (one, layer), n_units in path.components.units.items()
                    if one == kind
                    for index in range(n_units)
                ]
            )
            for kind in kinds
        }
        linear, integrated = (
            {kind: torch.cat([part for (one, _), part in estimate.items() if one == kind], 1).numpy() for kind in kinds}
            for estimate in self.estimates
        )
        by_name: dict[str, dict[Any, Float[np.ndarray, "prompt"]]] = {}
        for (name, value), of_prompts in zip(self.names, self.of_prompts, strict=True):
            by_name.setdefault(name, {})[value] = of_prompts
        totals = by_name.pop("totals")
        models = path.base.identity(), path.tuned.identity()
        return Attribution(
            measure, self.prompt_languages, units, linear, integrated, totals, by_name, self.steps, models
        )


def _check_finite(texts: Float[Tensor, "name text"], rows: Sequence[WeightedRow], path: Path, effects: Effects) -> None:
    """Raise ValueError, naming the first prompt, if a measure or an effect is NaN or infinite."""
    wrong = (~texts.isfinite().all(0)).nonzero().flatten().tolist()
    if wrong:
        row, (base, tuned) = rows[wrong[0]], (float(side[wrong[0]]) for side in (effects.base, effects.tuned))
        raise ValueError(
            f"{path.measure.name} of prompt {row.prompt} ({row.language}), or its gradient, is not finite: it is "
            f"{base:g} in {path.base.name} and {tuned:g} in {path.tuned.name}"
        )
