"""Trials: let a model write and read the same texts, as it is and under edits, and tell sound text from broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Shaped

from xlingtox.data import Prompt
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.under import generate_under, in_parts
from xlingtox.evaluation import soundness
from xlingtox.evaluation.degenerate import Identifier, Kind
from xlingtox.evaluation.fluency import (
    Fluency,
    Losses,
    conditional_perplexities,
    conditional_perplexity,
    held_out_losses,
    held_out_losses_under,
)
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM


@dataclass(frozen=True)
class Trial:
    """The texts that one model wrote after the prompts, and its losses on held-out texts.

    Attributes:
        continuations: what it wrote.
        kinds: the kind of each continuation (`soundness.kinds`), next to what the unedited model writes.
        losses: the losses of the held-out texts.
    """

    continuations: Continuations
    kinds: Shaped[np.ndarray, "prompt sample"]
    losses: Losses

    def share(self, *kinds: Kind) -> dict[str, PerPrompt]:
        """Return the share of each prompt's continuations that are of one of these kinds, by language."""
        codes = np.array([prompt.language for prompt in self.continuations.prompts])
        shares = np.isin(self.kinds, kinds).mean(1)
        return {code: shares[codes == code] for code in self.continuations.languages}


class Trials:
    """The unedited model, with the prompts and the texts that stay the same from one edit to the next.

    Attributes:
        unedited: the trial of the model as it is, which shows what sound text is.
    """

    def __init__(
        self,
        lm: HookedLM,
        prompts: Sequence[Prompt],
        *,
        held_out: Dataset | None,
        generation: Mapping[str, Any],
        identify_language: Identifier | None,
        progress: bool,
    ) -> None:
        """Let the unedited model write and read.

        Args:
            held_out: columns `language, text`; None to have no losses, and to judge sound text by continuations alone.
            generation: the settings of `generate`.
        """
        self._lm, self._prompts, self._held_out = lm, prompts, held_out
        self._generation, self._identify_language, self._progress = generation, identify_language, progress
        written, losses = self._written(lm)
        fluency = conditional_perplexity(lm, written, progress=progress)
        with np.errstate(over="ignore"):
            held = {code: np.exp(of_texts / counts) for code, (of_texts, counts) in losses.items()}
        self._reference = soundness.reference_of(lm.identity(), written, fluency, held)
        self.unedited = self._judged(written, fluency, losses)

    def under(self, edits: Sequence[Intervention]) -> Iterator[Trial]:
        """Yield the trial of the model under each edit.

        Several edits run together, because that is faster; not all of them, because their texts are in memory at once.
        """
        n_texts = len(self._prompts) * int(self._generation["n_samples"])
        for some in in_parts(edits, n_texts):
            written = generate_under(self._lm, some, self._prompts, **self._generation, progress=self._progress)
            losses: list[Losses] = [{}] * len(some)
            if self._held_out is not None:
                losses = [*held_out_losses_under(self._lm, some, self._held_out, progress=self._progress)]
            # Outside the edits: the unedited model judges fluency, and a scorer may be a probe of this model.
            fluencies = conditional_perplexities(self._lm, written, progress=self._progress)
            yield from map(self._judged, written, fluencies, losses)

    def of(self, model: HookedLM) -> Trial:
        """Return the trial of another model with the same tokenizer, such as a tuned one."""
        written, losses = self._written(model)
        return self._judged(written, conditional_perplexity(self._lm, written, progress=self._progress), losses)

    def _written(self, model: HookedLM) -> tuple[Continuations, Losses]:
        written = generate(model, self._prompts, **self._generation, progress=self._progress)
        if self._held_out is None:
            return written, {}
        return written, held_out_losses(model, self._held_out, progress=self._progress)

    def _judged(self, written: Continuations, fluency: Fluency, losses: Losses) -> Trial:
        kinds = soundness.kinds(written, fluency, self._reference, identify_language=self._identify_language)
        return Trial(written, np.array(kinds).reshape(-1, written.n_samples), losses)
