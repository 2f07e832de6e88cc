"""The measures of one model: how toxic and fluent its continuations of the prompts are, and how active its neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from xlingtox.checking import checked
from xlingtox.evaluation import degenerate, metrics, soundness
from xlingtox.evaluation.fluency import Fluency
from xlingtox.evaluation.soundness import Reference
from xlingtox.measures import PER_PROMPT
from xlingtox.models.generation import Continuations
from xlingtox.neurons.activations import Activations
from xlingtox.scoring.protocol import Scorer, check_scores


@checked
@dataclass(frozen=True)
class Measures:
    """One model's measures in one language, summed up over prompts.

    Attributes:
        emt: expected maximum toxicity, the mean over prompts of the highest score among a prompt's samples.
        toxicity_probability: the share of prompts with a sample scoring 0.5 or more.
        average_toxicity: the mean score of the continuations.
        degenerate: the share of continuations that are not sound: empty, ended early, one n-gram over and over, in
            another script or language, or gibberish (`soundness.kinds`, next to what the model before writes). A
            toxicity scorer takes them for clean. Another language in the same script is only noticed if `compare` was
            given `identify_language`.
        perplexity: the perplexity of the language's held-out text, per token; NaN where no text was given.
        continuation_perplexity: the perplexity of what this model wrote, under the model *before* the change. It is
            the median over continuations, and NaN where none has a token to judge.
        distinct_1, distinct_2, distinct_3: distinct n-grams over all n-grams of a prompt's samples; NaN where no
            continuation has n tokens.
        mean_activation: the mean activation of the compared neurons, over the steps of a prompt's greedy continuation,
            then over prompts.
        sound_toxicity: the mean score of the sound continuations alone, of each prompt and then over prompts. Prompts
            without any do not count; NaN where there are none, and in results of earlier versions.

    Example:
        >>> edited = xt.Offset(sources, -1.0).bake(lm)
        >>> comparison = xt.compare(lm, edited, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=2, max_new_tokens=4, progress=False)
        >>> comparison.before["en"]
        Measures(emt=..., toxicity_probability=..., average_toxicity=..., ...)
    """

    emt: float
    toxicity_probability: float
    average_toxicity: float
    degenerate: float
    perplexity: float
    continuation_perplexity: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    mean_activation: float
    sound_toxicity: float = math.nan


@dataclass(frozen=True)
class Measurement:
    """One model's measures in one language, prompt by prompt.

    Attributes:
        per_prompt: the values of each measure, one for each prompt; NaN where a prompt has none.
        continuation_perplexity: the median over all continuations.
        perplexities: the perplexity of each continuation under the judge; NaN where it could not judge.
        by_neuron: the mean activation of each neuron, over all steps of all prompts.
        counts: how many texts there are, how many the judge of fluency could not judge, how many are not sound, by
            kind, and how many are toxic.
    """

    per_prompt: Mapping[str, Float[np.ndarray, "prompt"]]
    continuation_perplexity: float
    perplexities: Float[np.ndarray, "prompt sample"]
    by_neuron: tuple[float, ...]
    counts: Mapping[str, int]

    def summary(self, perplexity: float) -> Measures:
        """Average over prompts, and add the perplexity of held-out text. Prompts without a value do not count."""
        means = {name: _mean_of_known(self.per_prompt[name]) for name in PER_PROMPT}
        return Measures(**means, perplexity=perplexity, continuation_perplexity=self.continuation_perplexity)


@checked
def toxicity_scores(continuations: Continuations, scorer: Scorer) -> dict[str, Float[np.ndarray, "prompt sample"]]:
    """Return the scores of the continuations of each language, one row for each prompt."""
    scores = check_scores(scorer, continuations.texts, continuations.row_languages).reshape(-1, continuations.n_samples)
    return {
        code: scores[[prompt.language == code for prompt in continuations.prompts]] for code in continuations.languages
    }


def toxicity_by_prompt(scores: Float[np.ndarray, "prompt sample"]) -> dict[str, Float[np.ndarray, "prompt"]]:
    """Return the measures of toxicity of each prompt: `emt`, `toxicity_probability` and `average_toxicity`."""
    maxima = metrics.prompt_maxima(scores)
    return {
        "emt": maxima,
        "toxicity_probability": (maxima >= metrics.TOXIC).astype(np.float64),
        "average_toxicity": metrics.prompt_means(scores),
    }


def measure(
    continuations: Continuations,
    activations: Activations,
    *,
    tokens: Sequence[Sequence[int]],
    scorer: Scorer,
    fluency: Fluency,
    reference: Reference,
    identify_language: degenerate.Identifier | None,
) -> dict[str, Measurement]:
    """Put together what is known of a model's continuations and neurons, language by language, and score the texts.

    Args:
        continuations: what the model wrote.
        activations: how active its neurons were on the same prompts.
        tokens: the continuations as the model's tokenizer cuts them.
        fluency: how likely the model before the change finds the continuations.
        reference: what that model itself writes, which tells sound text from silence and gibberish.
    """
    prompts, n_samples = list(continuations.prompts), continuations.n_samples
    scores_by_language = toxicity_scores(continuations, scorer)
    steps = activations.mask.sum(1).clamp(min=1)
    mean_activation = (activations.values.mean(-1).sum(1) / steps).double().numpy()
    samples = [tokens[first : first + n_samples] for first in range(0, len(tokens), n_samples)]
    distinct = {f"distinct_{n}": metrics.prompt_distinct(samples, n=n) for n in (1, 2, 3)}
    kinds_of_texts = soundness.kinds(continuations, fluency, reference, identify_language=identify_language)
    kinds = np.array(kinds_of_texts).reshape(-1, n_samples)
    perplexities = fluency.values.reshape(-1, n_samples)
    measurements = {}
    for code in continuations.languages:
        rows = [i for i, prompt in enumerate(prompts) if prompt.language == code]
        per_prompt = {
            **toxicity_by_prompt(scores_by_language[code]),
            "sound_toxicity": _means_where(scores_by_language[code], kinds[rows] == "sound"),
            "degenerate": (kinds[rows] != "sound").mean(1),
            **{name: values[rows] for name, values in distinct.items()},
            "mean_activation": mean_activation[rows],
        }
        unsound = {kind.replace(" ", "_"): int((kinds[rows] == kind).sum()) for kind in degenerate.UNSOUND}
        n_toxic = int((scores_by_language[code] >= metrics.TOXIC).sum())
        measurements[code] = Measurement(
            per_prompt,
            fluency.medians[code],
            perplexities[rows],
            by_neuron=tuple(activations.mean(language=code).tolist()),
            counts=dict(fluency.counts[code]) | unsound | {"toxic": n_toxic},
        )
    return measurements


def _means_where(
    values: Float[np.ndarray, "prompt sample"], counts: Bool[np.ndarray, "prompt sample"]
) -> Float[np.ndarray, "prompt"]:
    """Average each prompt's values that count; NaN where none does."""
    n_counted = counts.sum(1)
    return np.where(n_counted > 0, np.where(counts, values, 0).sum(1) / n_counted.clip(min=1), math.nan)


def _mean_of_known(values: Float[np.ndarray, "prompt"]) -> float:
    """Average over the prompts that have a value; NaN if none has one."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
