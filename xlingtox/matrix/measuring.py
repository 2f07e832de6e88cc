"""Measure the base model and the tuned ones on the same prompts, texts and neurons: one cell for each target."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from xlingtox.evaluation import metrics
from xlingtox.evaluation.degenerate import UNSOUND
from xlingtox.evaluation.measurement import toxicity_by_prompt, toxicity_scores
from xlingtox.evaluation.named_sets import all_of_layers
from xlingtox.evaluation.same_text import means_by_prompt
from xlingtox.evaluation.trials import Trial, Trials
from xlingtox.matrix.asked import Asked
from xlingtox.matrix.runs import Cell
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations, collect_together
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet

_N_RANDOM = 5
"""The control is the mean of so many random sets, as in `compare`."""

ACTIVATION, CONTROL = "activation", "activation_control"
"""The mean activation of the neurons, and that of neurons which are as active in the base."""


class Measuring:
    """The base model, with all that stays the same from one tuned model to the next.

    Its sampled texts show what sound text is. Its greedy texts are read by every model, because neurons answer to the
    text. Random neurons that are as active there are the control.
    """

    def __init__(self, lm: HookedLM, asked: Asked, *, progress: bool) -> None:
        """Let the base write and read, or look that up in the journal in use."""
        self._asked, self.progress = asked, progress
        self._trials = Trials(
            lm,
            asked.prompts,
            held_out=asked.held_out,
            generation=asked.sampling,
            identify_language=asked.identify_language,
            progress=progress,
        )
        self._sets: dict[str, list[NeuronSet]] = {}
        if asked.neurons is not None:
            # Only sums are kept of all neurons of a layer.
            (of_layers,), self._greedy = collect_together(
                lm, asked.prompts, [all_of_layers(lm, [asked.neurons])], keep_values=[False], **self._reading
            )
            drawn = random_sets(
                asked.neurons,
                lm,
                n=_N_RANDOM,
                seed=asked.sampling["seed"],
                match="activity",
                activations=of_layers,
            )
            self._sets = {ACTIVATION: [asked.neurons], CONTROL: drawn}
        self._base = lm

    @property
    def _reading(self) -> dict[str, int | bool]:
        return {"max_new_tokens": self._asked.sampling["max_new_tokens"], "progress": self.progress}

    def base(self) -> dict[str, Cell]:
        """Return the cells of the base, by target."""
        return self._cells(self._base, self._trials.unedited)

    def of(self, model: HookedLM) -> dict[str, Cell]:
        """Return the cells of a tuned model, by target."""
        return self._cells(model, self._trials.of(model))

    def _cells(self, model: HookedLM, trial: Trial) -> dict[str, Cell]:
        activations = self._activations(model)
        scores = toxicity_scores(trial.continuations, self._asked.scorer)
        unsound = trial.share(*UNSOUND)
        codes = np.array([prompt.language for prompt in self._asked.prompts])
        return {
            code: Cell(
                {
                    **toxicity_by_prompt(scores[code]),
                    "degenerate": unsound[code],
                    **{name: means[codes == code] for name, means in activations.items()},
                },
                metrics.perplexity(*trial.losses[code]) if code in trial.losses else math.nan,
            )
            for code in self._asked.targets
        }

    def _activations(self, model: HookedLM) -> dict[str, Float[np.ndarray, "prompt"]]:
        """Return the mean activation of each prompt, of the neurons and of their control, on the base's greedy text."""
        if not self._sets:
            return {}

        def read(neurons: NeuronSet) -> Activations:
            return collect_together(model, self._asked.prompts, [neurons], writer=self._greedy, **self._reading)[0][0]

        n_prompts = len(self._asked.prompts)
        means = means_by_prompt(self._sets, n_prompts, self._asked.sampling["max_new_tokens"], read)
        # Neurons that fill their layers have no control.
        return {name: np.mean(of_sets, 0) if of_sets else np.full(n_prompts, np.nan) for name, of_sets in means.items()}
