"""AttributedOffset: move the neurons that carry what tuning did, by as much as tuning moved them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.attribute import attribute
from xlingtox.evaluation.continuation_rows import WeightedRow
from xlingtox.evaluation.row_measures import LogProbability
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import read_moments
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class AttributedOffset(Method):
    """Do with a few neurons what tuning did with all weights: an offset by the mean change that tuning brought them.

    Attribution patching finds the `k` neurons whose change through tuning lowers the log-probability of the labelled
    toxic sentences most (`xt.attribute`, the linear estimate). At strength 1, each of them moves by the difference
    between its means in the two models, over the tokens of these sentences (`edits.mean_offset`). So it needs a tuned
    model once, to be fitted, and afterwards none.

    Where fewer than `k` neurons lower the log-probability, all that do are taken.

    Attributes:
        tuned: the tuned model, of the same shape and tokenizer.
        k: how many neurons are moved.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> fitted = xt.methods.AttributedOffset(tuned, k=10).fit(lm, xt.mini.labelled("en", n=20), progress=False)
        >>> fitted.at(1.0)
        Offset(NeuronSet(10, weighted: ...), 1)
    """

    tuned: HookedLM
    k: int = 100
    name: str = field(default="offset of attributed neurons", kw_only=True)
    citation: str = field(default="this library, after Syed et al. 2023 and Yang et al. 2024", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        toxic = Examples.of(labelled).toxic
        for model in (lm, self.tuned):
            model.check_unedited("a method that is fitted here would not show")
        if self.k < 1:
            raise ValueError(f"k is {self.k}: expected at least 1")
        attribution = attribute(
            lm,
            self.tuned,
            toxic,
            measure=_WholeSentences(),
            components=("neurons",),
            steps=1,
            progress=progress,
        )
        n_lowering = int((attribution.values("neurons") < 0).sum())
        if not n_lowering:
            raise ValueError(
                f"no neuron's change from {lm.name} to {self.tuned.name} lowers the log-probability of the toxic "
                "sentences: is it tuned against toxicity?"
            )
        neurons = attribution.top(min(self.k, n_lowering), sign=-1)
        before, after = (read_moments(model, toxic, neurons, progress=progress).means for model in (lm, self.tuned))
        moved = neurons.weighted((after.double() - before.double()).tolist())
        return Fitted.of(self, lambda strength: Offset(moved, strength))


class _WholeSentences(LogProbability):
    """The log-probability of each sentence, from its second token on."""

    def rows(self, lm: HookedLM, prompts: Any, written: Callable[[], Sequence[WeightedRow]]) -> Sequence[WeightedRow]:
        """Return the sentences that have two tokens or more, up to the model's context."""
        all_ids = [ids[: lm.n_positions] for ids in lm.token_ids(prompts)]
        rows = [WeightedRow(number, "en", ids, begin=1) for number, ids in enumerate(all_ids) if len(ids) > 1]
        if not rows:
            raise ValueError(f"none of the {len(all_ids)} toxic sentences has two tokens: there is nothing to predict")
        return rows
