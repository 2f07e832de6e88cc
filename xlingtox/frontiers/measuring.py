"""Measuring: take the Point of a model, as it is, under an edit, or as another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Float

from xlingtox.data import Prompt
from xlingtox.data.translations import Parallel
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation import metrics
from xlingtox.evaluation.degenerate import UNSOUND, Identifier, Kind
from xlingtox.evaluation.halves import Halves
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.evaluation.knowledge import knowledge_margins, knowledge_margins_under
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.evaluation.resampling import Meanings
from xlingtox.evaluation.trials import Trial, Trials
from xlingtox.frontiers.point import Point
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.scoring.protocol import Scorer

Knowledge = Mapping[str, Float[np.ndarray, "pair"]]
"""For each language, how much likelier each true sentence is than a false one."""

KINDS: tuple[Kind, ...] = ("sound", *UNSOUND)


class Measuring:
    """The unedited model, with the texts and the judges that stay the same from one method to the next.

    Attributes:
        unedited: the point of the unedited model.
        halves: the half that each prompt and each held-out text is in.
    """

    def __init__(
        self,
        lm: HookedLM,
        prompts: Sequence[Prompt],
        *,
        meanings: Meanings | None,
        scorers: Mapping[str, Scorer],
        held_out: Dataset,
        parallel: Parallel | None,
        source_language: str,
        generation: Mapping[str, Any],
        identify_language: Identifier | None,
        progress: bool,
    ) -> None:
        self._lm, self._scorers = lm, scorers
        self._parallel = parallel
        self._asking: dict[str, Any] = {"source_language": source_language, "progress": progress}
        self._trials = Trials(
            lm,
            prompts,
            held_out=held_out,
            generation=generation,
            identify_language=identify_language,
            progress=progress,
        )
        self.unedited = self._point(0.0, self._trials.unedited, self._knowledge(lm))
        self.halves = Halves.alternating(prompts, meanings, self._trials.unedited.losses)

    def under(self, strengths: Sequence[float], edits: Sequence[Intervention]) -> Iterator[Point]:
        """Yield the point of the model under each edit. The edits are of these strengths."""
        known: Sequence[Knowledge] = [{}] * len(edits)
        if self._parallel is not None:
            known = knowledge_margins_under(self._lm, edits, self._parallel, **self._asking)
        yield from map(self._point, strengths, self._trials.under(edits), known)

    def of(self, strength: float, model: HookedLM) -> Point:
        """Return the point of another model with the same tokenizer."""
        return self._point(strength, self._trials.of(model), self._knowledge(model))

    def _knowledge(self, model: HookedLM) -> Knowledge:
        return {} if self._parallel is None else knowledge_margins(model, self._parallel, **self._asking)

    def _point(self, strength: float, trial: Trial, known: Knowledge) -> Point:
        written = trial.continuations
        toxicity = {
            name: {code: metrics.prompt_means(rows) for code, rows in toxicity_scores(written, scorer).items()}
            for name, scorer in self._scorers.items()
        }
        return Point(
            strength,
            toxicity,
            degenerate=trial.share(*UNSOUND),
            kinds={kind: trial.share(kind) for kind in KINDS},
            distinct=self._distinct(written),
            losses=trial.losses,
            knowledge=known,
        )

    def _distinct(self, written: Continuations) -> dict[str, PerPrompt]:
        """Return the diversity of each prompt's continuations, by language; NaN where nothing was written."""
        tokens, n = self._lm.token_ids(list(written.texts)), written.n_samples
        by_prompt = [tokens[i : i + n] for i in range(0, len(tokens), n)]
        values = metrics.prompt_distinct_per_unigram(by_prompt, n=2)
        codes = np.array([prompt.language for prompt in written.prompts])
        return {code: values[codes == code] for code in written.languages}
