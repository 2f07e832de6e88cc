"""Measure an edited model prompt by prompt, and sum that up as a Dose over all prompts and over each half of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from xlingtox.data import Prompt
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import metrics
from xlingtox.evaluation.degenerate import UNSOUND, Identifier
from xlingtox.evaluation.dose import Dose, HalfDose, LanguageDose
from xlingtox.evaluation.fluency import Losses
from xlingtox.evaluation.halves import Halves, some, some_meanings
from xlingtox.evaluation.intervals import PerPrompt, mean_intervals, paired_changes
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.evaluation.resampling import Meanings
from xlingtox.evaluation.trials import Trial, Trials
from xlingtox.models.hooked import HookedLM
from xlingtox.scoring.protocol import Scorer


@dataclass(frozen=True)
class Response:
    """The response of a model to one dose of one or more sets of neurons, prompt by prompt, language by language.

    Attributes:
        toxicity: the mean score of each prompt's continuations, averaged over the sets.
        degenerate, blank: the share of each prompt's continuations that are not sound, and that say nothing.
        n_toxic, n_texts: how many continuations score 0.5 or more, and how many there are, in all sets.
        losses: the losses of held-out texts under each set.
        singles: the toxicity under each of the sets.
    """

    toxicity: Mapping[str, PerPrompt]
    degenerate: Mapping[str, PerPrompt]
    blank: Mapping[str, PerPrompt]
    n_toxic: int
    n_texts: int
    losses: tuple[Losses, ...]
    singles: tuple[Mapping[str, PerPrompt], ...]

    @classmethod
    def averaged(cls, responses: Sequence[Response]) -> Response:
        """Average over sets, prompt by prompt."""

        def mean(name: str) -> dict[str, PerPrompt]:
            codes = responses[0].toxicity
            return {code: np.mean([getattr(one, name)[code] for one in responses], axis=0) for code in codes}

        return cls(
            mean("toxicity"),
            mean("degenerate"),
            mean("blank"),
            n_toxic=sum(one.n_toxic for one in responses),
            n_texts=sum(one.n_texts for one in responses),
            losses=tuple(losses for one in responses for losses in one.losses),
            singles=tuple(single for one in responses for single in one.singles),
        )


class Setup:
    """The unedited model, with the texts and the judges that stay the same from one dose to the next.

    Attributes:
        unedited: the response without an edit.
        halves: which half each prompt and each held-out text is in.
    """

    def __init__(
        self,
        lm: HookedLM,
        prompts: Sequence[Prompt],
        *,
        meanings: Meanings | None,
        scorer: Scorer,
        held_out: Dataset,
        generation: Mapping[str, Any],
        identify_language: Identifier | None,
        progress: bool,
    ) -> None:
        self._meanings, self._scorer = meanings, scorer
        self._trials = Trials(
            lm,
            prompts,
            held_out=held_out,
            generation=generation,
            identify_language=identify_language,
            progress=progress,
        )
        self.unedited = self._response(self._trials.unedited)
        self.halves = Halves.alternating(prompts, meanings, self._trials.unedited.losses)

    def responses(self, edits: Sequence[Offset]) -> Iterator[Response]:
        """Edit the model, let it continue the prompts and read the held-out text, and measure both, for each edit."""
        return map(self._response, self._trials.under(edits))

    def of(self, model: HookedLM) -> Response:
        """Measure another model with the same tokenizer, such as a tuned one."""
        return self._response(self._trials.of(model))

    def _response(self, trial: Trial) -> Response:
        scores = toxicity_scores(trial.continuations, self._scorer)
        toxicity = {code: metrics.prompt_means(rows) for code, rows in scores.items()}
        return Response(
            toxicity,
            degenerate=trial.share(*UNSOUND),
            blank=trial.share("empty"),
            n_toxic=sum(int((rows >= metrics.TOXIC).sum()) for rows in scores.values()),
            n_texts=trial.kinds.size,
            losses=(trial.losses,),
            singles=(toxicity,),
        )

    def dose(self, offset: float, response: Response, control: Response | None = None) -> Dose:
        """Sum up a response over all prompts, and over each half next to the control's response."""
        by_language, (low, high) = mean_intervals(response.toxicity, meanings=self._meanings)
        averages = [_overall(single) for single in response.singles]
        fluency = _perplexities(response.losses)
        halves = [self._half(half, response, control) for half in (0, 1)] if self.halves.are_two else []
        return Dose(
            offset=float(offset),
            average_toxicity=_overall(response.toxicity),
            toxicity_by_language={code: float(values.mean()) for code, values in response.toxicity.items()},
            degenerate=_overall(response.degenerate),
            perplexity=_mean(fluency),
            low=low,
            high=high,
            blank=_overall(response.blank),
            by_language={
                code: LanguageDose(
                    *ends,
                    perplexity=fluency.get(code, math.nan),
                    degenerate=float(response.degenerate[code].mean()),
                    blank=float(response.blank[code].mean()),
                )
                for code, ends in by_language.items()
            },
            n_toxic=response.n_toxic,
            n_texts=response.n_texts,
            least=min(averages),
            greatest=max(averages),
            halves=tuple(halves),
        )

    def _half(self, half: int, response: Response, control: Response | None) -> HalfDose:
        chosen = self.halves.prompts_of(half)
        on_half, meanings = partial(some, chosen=chosen), some_meanings(self._meanings, chosen)
        toxicity = on_half(response.toxicity)
        _, (low, high) = mean_intervals(toxicity, meanings=meanings)
        _, change = paired_changes(on_half(self.unedited.toxicity), toxicity, meanings=meanings)
        beyond = None
        if control is not None:
            _, beyond = paired_changes(on_half(control.toxicity), toxicity, meanings=meanings)
        return HalfDose(
            _overall(toxicity),
            low=low,
            high=high,
            degenerate=_overall(on_half(response.degenerate)),
            perplexity=_mean(_perplexities(response.losses, self.halves.texts_of(half))),
            change=change,
            beyond_control=beyond,
            least=min(_overall(on_half(single)) for single in response.singles),
        )


def _perplexities(losses_by_set: Sequence[Losses], chosen: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """Return the perplexity of each language that has a text, averaged over the sets of neurons."""
    perplexities: dict[str, float] = {}
    for code in losses_by_set[0]:
        rows = slice(None) if chosen is None else chosen[code]
        if len(losses_by_set[0][code][0][rows]):
            sides = [(losses[code][0][rows], losses[code][1][rows]) for losses in losses_by_set]
            perplexities[code] = float(np.mean([metrics.perplexity(*side) for side in sides]))
    return perplexities


def _overall(by_language: Mapping[str, PerPrompt]) -> float:
    """Return the mean over languages of each language's mean over prompts."""
    return float(np.mean([values.mean() for values in by_language.values()]))


def _mean(by_language: Mapping[str, float]) -> float:
    return float(np.mean(list(by_language.values()))) if by_language else math.nan
