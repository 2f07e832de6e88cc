"""Dose and response: toxicity and fluency as neurons are offset further and further, beside random neurons."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from xlingtox.checking import checked
from xlingtox.data import Prompts, as_prompts
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.comparison import toxicity_scores
from xlingtox.evaluation.fluency import check_held_out, perplexities
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring.protocol import Scorer, check_covered


@checked
@dataclass(frozen=True)
class Dose:
    """The response to one offset.

    Attributes:
        offset: what was added to each neuron's post-activation.
        average_toxicity: mean over languages of each language's average toxicity.
        toxicity_by_language: average toxicity per language.
        degenerate: mean over languages of the share of continuations that say nothing (`degenerate.kinds`).
        perplexity: mean over languages of the held-out perplexity.
        low, high: least and greatest average toxicity of the sets behind this dose (equal for one set).
    """

    offset: float
    average_toxicity: float
    toxicity_by_language: dict[str, float]
    degenerate: float
    perplexity: float
    low: float
    high: float


@checked
def dose_response(
    lm: HookedLM,
    neuron_sets: Sequence[NeuronSet],
    prompts: Prompts,
    *,
    offsets: Sequence[float],
    scorer: Scorer,
    held_out: Dataset,
    max_new_tokens: int = 20,
    progress: bool = True,
    identify_language: degenerate.Identifier | None = None,
) -> list[Dose]:
    """Greedy continuations under each offset (paper, Figure 2); several sets are averaged, as a random control is.

    Args:
        neuron_sets: of neurons.
        offsets: what is added to each neuron's post-activation, one dose after the other.
        scorer: any; as `scoring.Cached(scorer)` it scores no text twice, and goes on where it was interrupted.
        held_out: columns `language, text`, for perplexity.
        identify_language: tells the language of continuations, as in `compare`.

    Raises:
        ValueError: an offset is not finite, no sets, a neuron outside the model, bad prompts or held-out texts, an
            uncovered language, or the model stands under an edit.
    """
    if not neuron_sets:
        raise ValueError("a dose-response needs at least one set of neurons and one offset")
    check_offsets(offsets)
    lm.check_unedited("doses do not show")
    for neurons in neuron_sets:
        neurons.check(lm)
    given = as_prompts(prompts, tokenizer=lm.tokenizer)
    check_covered(scorer, [prompt.language for prompt in given])
    check_held_out(lm, held_out)
    doses = []
    with tqdm(total=len(offsets) * len(neuron_sets), desc="offsets", disable=not progress, leave=False) as bar:
        for offset in offsets:
            responses = []
            for neurons in neuron_sets if offset else neuron_sets[:1]:
                edit = Offset(neurons, offset).on(lm) if offset else contextlib.nullcontext()
                with edit:
                    written = generate(lm, given, max_new_tokens=max_new_tokens, greedy=True, progress=False)
                    fluency = perplexities(lm, held_out, progress=False)
                by_language = {
                    code: metrics.average_toxicity(scores) for code, scores in toxicity_scores(written, scorer).items()
                }
                unsound = degenerate.shares(written.texts, written.row_languages, identify_language=identify_language)
                responses.append((by_language, _mean(unsound), _mean(fluency)))
                bar.update(1 if offset else len(neuron_sets))
            doses.append(_averaged(offset, responses))
    return doses


def check_offsets(offsets: Sequence[float]) -> None:
    """Raise ValueError unless there is an offset, and all are finite."""
    if not offsets:
        raise ValueError("a dose-response needs at least one set of neurons and one offset")
    wrong = [offset for offset in offsets if not math.isfinite(offset)]
    if wrong:
        raise ValueError(f"offset {wrong[0]}: expected finite numbers")


def _averaged(offset: float, responses: Sequence[tuple[dict[str, float], float, float]]) -> Dose:
    toxicity, unsound, fluency = zip(*responses, strict=True)
    means = [_mean(by_language) for by_language in toxicity]
    return Dose(
        offset=float(offset),
        average_toxicity=float(np.mean(means)),
        toxicity_by_language={code: float(np.mean([row[code] for row in toxicity])) for code in toxicity[0]},
        degenerate=float(np.mean(unsound)),
        perplexity=float(np.mean(fluency)),
        low=min(means),
        high=max(means),
    )


def _mean(by_language: Mapping[str, float]) -> float:
    return float(np.mean(list(by_language.values())))
