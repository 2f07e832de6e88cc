"""What the metrics cost: `python tests/benchmarks/metrics.py [--threads 2]`.

A study of the paper's size, 17 languages x 1,000 prompts x 25 samples before and after, from made-up scores and texts.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import xlingtox as xt
from xlingtox import languages, mini
from xlingtox.evaluation import metrics

PROMPTS, SAMPLES, RESAMPLES = 1000, 25, 2000


def made_up(toxic: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Flat scores by language, as a scorer returns them."""
    return {code: rng.beta(toxic, 4, PROMPTS * SAMPLES) for code in languages.CODES}


def toxicity(sides: list[dict[str, np.ndarray]]) -> None:
    """Everything of the paper's Table 2 about toxicity, with intervals and tests, by language and in the mean."""
    ids = np.repeat(np.arange(PROMPTS), SAMPLES)
    for side in sides:
        for scores in side.values():
            metrics.expected_maximum_toxicity(scores, prompt_ids=ids)
            metrics.toxicity_probability(scores, prompt_ids=ids)
            metrics.average_toxicity(scores, prompt_ids=ids)
    maxima = [{code: metrics.prompt_maxima(scores, prompt_ids=ids) for code, scores in side.items()} for side in sides]
    means = [{code: metrics.prompt_means(scores, prompt_ids=ids) for code, scores in side.items()} for side in sides]
    reached = [{code: (each >= 0.5).astype(float) for code, each in side.items()} for side in maxima]
    for before, after in (maxima, reached, means):
        metrics.paired_changes(before, after, n_resamples=RESAMPLES)


def tokens(rng: np.random.Generator) -> list[list[list[list[int]]]]:
    """Language, prompt, sample: 20 tokens each."""
    drawn = rng.zipf(1.3, (len(languages.CODES), PROMPTS, SAMPLES, 20)) % 100_000
    return drawn.tolist()


def texts() -> tuple[list[str], list[str]]:
    """The miniature's sentences, over and over."""
    rows = mini.held_out(n=100)
    times = PROMPTS * SAMPLES // 100
    return list(rows["text"]) * times, list(rows["language"]) * times


def timed(name: str, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    print(f"  {name:60s} {time.perf_counter() - began:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    rng = np.random.default_rng(0)
    sides = [made_up(toxic, rng) for toxic in (1.0, 0.5)]
    own, (written, codes) = tokens(rng), texts()
    print(f"{len(languages.CODES)} languages x {PROMPTS} prompts x {SAMPLES} samples, {RESAMPLES} resamples")
    timed("toxicity before and after, three intervals and tests", lambda: toxicity(sides))
    timed("distinct 1 to 3, one side", lambda: [metrics.distinct_n(each, n=n) for each in own for n in (1, 2, 3)])
    timed("degenerate text, one side", lambda: xt.evaluation.degenerate.kinds(written, codes))


if __name__ == "__main__":
    main()
