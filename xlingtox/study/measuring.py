"""Let a model write a little and read it, and measure how toxic and how sound its text is, and how fast it works."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset

from xlingtox.data import check_pairs
from xlingtox.evaluation import degenerate
from xlingtox.evaluation.fluency import conditional_perplexity
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.evaluation.metrics import TOXIC, mean_intervals, prompt_means
from xlingtox.languages import in_order
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import using
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Scorer, covered_scores
from xlingtox.study.costs import TRAINED, Rates
from xlingtox.study.plan import planned
from xlingtox.study.power import Spread, prompts_needed
from xlingtox.study.settings import Materials, Settings, first_rows
from xlingtox.study.sizes import prompts_by_language
from xlingtox.study.study_check import LanguageCheck
from xlingtox.tuning import Recipe

T = TypeVar("T")

N_PROMPTS, N_SAMPLES = 10, 4
"""So many prompts of each language are tried, and so many samples of each."""

_PATIENCE = 60.0
"""Where one continuation of each prompt takes longer than so many seconds, only two more are sampled."""

_SMALL = 500_000_000
"""On a CPU, a step of tuning is tried on models with fewer weights than these."""

_SLOW = 2.0
"""A step that takes longer than so many seconds is not repeated."""

_TRL = 2.0
"""TRL's step takes about so many times a plain one: it adds up log-probabilities in 32 bits, and pads more."""


@dataclass(frozen=True)
class Measured:
    """A measurement of the text in each language, and of how fast the model works.

    Attributes:
        n_texts: how many texts were written, read and scored.
    """

    languages: Mapping[str, LanguageCheck]
    rates: Rates
    n_texts: int


def measure(lm: HookedLM, materials: Materials, settings: Settings, recipe: Recipe, *, progress: bool) -> Measured:
    """Write, read and score a little text. A journal that is in use is not read, so that times are true."""
    few, new = first_rows(materials.toxic_prompts, N_PROMPTS), settings.max_new_tokens
    options: dict[str, Any] = {"max_new_tokens": new, "seed": settings.seed, "progress": False}
    with using(None), bar("trying the model", total=5, unit="part", progress=progress) as shown:
        # The first passes of a model are slow.
        warm = generate(lm, first_rows(few, 1), n_samples=1, max_new_tokens=2, progress=False)
        conditional_perplexity(lm, warm, progress=False)
        shown.update()
        greedy, once = _timed(lambda: generate(lm, few, greedy=True, **options))
        shown.update()
        n_samples = 2 if once > _PATIENCE else max(2, min(N_SAMPLES, settings.n_samples))
        sampled, writing = _timed(lambda: generate(lm, few, n_samples=n_samples, **options))
        shown.update()
        # One sample of each prompt tells how fast the model reads.
        firsts = dataclasses.replace(sampled, n_samples=1, texts=sampled.texts[::n_samples])
        _, reading = _timed(lambda: conditional_perplexity(lm, firsts, progress=False))
        shown.update()
        scores, scoring = _timed(lambda: toxicity_scores(sampled, materials.scorer))
        _, again = _timed(lambda: _judge_again(sampled, materials.second_judges))
        identify, codes = materials.identify_language, sampled.row_languages
        # Nothing has changed the model yet, so that no text of its own counts as gibberish.
        kinds, judging = _timed(lambda: degenerate.kinds(sampled.texts, codes, identify_language=identify))
        of_greedy = toxicity_scores(greedy, materials.scorer)
        is_tuned = materials.pairs is not None and "tune" in planned(materials, settings)
        trained = _step(lm, materials.pairs, recipe) if is_tuned else None
        shown.update()
    prompt_tokens, n_read = _tokens(lm, firsts)
    read = reading / n_read
    # Texts that end early are counted in full: those of the study end as early.
    written = max(writing - read * prompt_tokens, 0.2 * writing) / (len(sampled) * new)
    rates = Rates(
        written=written,
        read=read,
        judged=(scoring + again + judging) / len(sampled),
        trained=TRAINED * read if trained is None else trained,
    )
    checks = _checks(
        sampled, scores, of_greedy, np.array(kinds), prompts_by_language(materials.toxic_prompts), settings
    )
    return Measured(checks, rates, len(greedy) + len(sampled))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def _judge_again(written: Continuations, scorers: Sequence[Scorer]) -> list[np.ndarray]:
    """Return the scores that second judges give, each in the languages that it covers."""
    return [covered_scores(scorer, written.texts, written.row_languages) for scorer in scorers]


def _tokens(lm: HookedLM, written: Continuations) -> tuple[int, int]:
    """Return the tokens of the prompts, and of the prompts with their only continuations."""
    prompts = [prompt.text for prompt in written.prompts]
    joined = [prompt + text for prompt, text in zip(prompts, written.texts, strict=True)]
    return sum(map(len, lm.token_ids(prompts))), sum(map(len, lm.token_ids(joined)))


def _checks(
    sampled: Continuations,
    scores: Mapping[str, np.ndarray],
    greedy: Mapping[str, np.ndarray],
    kinds: np.ndarray,
    n_prompts: Mapping[str, int],
    settings: Settings,
) -> dict[str, LanguageCheck]:
    """Sum up each language, and say how many prompts would show that its toxicity halved."""
    intervals, _ = mean_intervals({code: prompt_means(rows) for code, rows in scores.items()})
    codes = np.array(sampled.row_languages)
    checks = {}
    for code in in_order(scores):
        rows = scores[code]
        low, high = intervals[code]
        spread = Spread.of(rows)
        if spread.mean <= 0:
            # Nothing was toxic. Then the best guess (Jeffreys 1946) is half a toxic text among one more.
            spread = Spread.rare(0.5 / (rows.size + 1))
        of_language = kinds[codes == code]
        checks[code] = LanguageCheck(
            n_prompts[code],
            toxicity=float(rows.mean()),
            low=low,
            high=high,
            greedy=float(greedy[code].mean()),
            toxic_texts=int((rows >= TOXIC).sum()),
            n_texts=rows.size,
            blank=float((of_language == "empty").mean()),
            unsound=float((of_language != "sound").mean()),
            needed=prompts_needed(spread, n_samples=settings.n_samples),
        )
    return checks


def _step(lm: HookedLM, pairs: Dataset, recipe: Recipe) -> float | None:
    """Return the seconds that a token takes in a step of DPO; None where a step is too dear to try."""
    if lm.device.type != "cpu" or lm.n_parameters >= _SMALL or recipe.lora is not None or lm.quantised:
        return None
    table = check_pairs(pairs.select(range(min(recipe.batch_size, len(pairs)))), tokenizer=lm.tokenizer, chat=lm.chat)
    texts = [prompt + side for name in ("chosen", "rejected") for prompt, side in zip(table["prompt"], table[name])]  # noqa: B905
    room = min(recipe.max_length, lm.n_positions)
    rows = [ids[:room] for ids in lm.token_ids(texts)]
    ids, mask = lm.pad(rows)
    model = lm.unwrapped().float().requires_grad_(True)
    model.config.use_cache = False
    kind = torch.optim.RMSprop if "rmsprop" in recipe.optimizer else torch.optim.AdamW
    # No learning: only the time counts.
    optimizer = kind(model.parameters(), lr=0.0)

    def step() -> None:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
            chances = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
            chosen, rejected = (chances * mask[:, 1:]).sum(1).chunk(2)
            loss: Any = -torch.nn.functional.logsigmoid(recipe.beta * (chosen - rejected)).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    _, once = _timed(step)
    if once < _SLOW:  # the first step of a small model is mostly allocation
        _, once = _timed(step)
    return _TRL * once / sum(map(len, rows))
