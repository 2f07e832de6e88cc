"""What scoring costs: `PYTHONPATH=tests python tests/benchmarks/scoring.py [--device cuda] [--shape large]`.

10,000 short texts under a random XLM-R, against a bare forward of the same batches, sorted by length and tokenized
before. Medians of rounds in which the ways take turns. Nothing is downloaded.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine import show, timed
from toys import xlm_roberta

from xlingtox.scoring import Cached, ClassifierScorer

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
TEXTS, ROWS = 10_000, 64


def short_texts(n: int = TEXTS) -> list[str]:
    """Return texts of 1 to 10 words: about 20 tokens, as continuations have."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioumnrstl", k=chance.randint(2, 7))) for _ in range(500)]
    return [" ".join(chance.choices(words, k=chance.randint(1, 10))) + f" {i}" for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts = short_texts()
    shape = {**SHAPES[given.shape], "max_position_embeddings": 514, "initializer_range": 0.02}
    model, tokenizer = xlm_roberta({**shape, "id2label": {0: "neutral", 1: "toxic"}}, texts[:500])
    model = model.to(given.device)
    scorer = ClassifierScorer(model, languages=["en"], tokenizer=tokenizer, batch_size=ROWS, progress=False)
    codes = ["en"] * TEXTS

    ids = sorted(tokenizer(texts)["input_ids"], key=len)
    batches: list[dict[str, Any]] = [
        dict(tokenizer.pad({"input_ids": ids[at : at + ROWS]}, return_tensors="pt").to(given.device))
        for at in range(0, TEXTS, ROWS)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch).logits.softmax(-1).cpu()

    with tempfile.TemporaryDirectory() as folder:
        fresh = iter(range(10**6))

        def cached() -> None:
            Cached(scorer, path=Path(folder) / f"{next(fresh)}.sqlite", progress=False).score(texts, codes)

        full = Cached(scorer, path=Path(folder) / "full.sqlite", progress=False)
        ways: dict[str, Callable[[], Any]] = {
            "bare forward of sorted batches": bare,
            "ClassifierScorer, tokenizing too": lambda: scorer.score(texts, codes),
            "the same, into a new cache": cached,
            "the same, all in the cache": lambda: full.score(texts, codes),
        }
        mean = sum(map(len, ids)) / TEXTS
        show(
            f"{TEXTS} texts of {mean:.0f} tokens, XLM-R {given.shape}, {given.device}",
            timed(ways, given.rounds),
            "bare forward of sorted batches",
        )


if __name__ == "__main__":
    main()
