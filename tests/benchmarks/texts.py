"""What hostile texts cost: `PYTHONPATH=tests python tests/benchmarks/texts.py`.

Seconds of processor time for texts of 100,000 and of 200,000 characters: the second is at most about twice the first,
as tests count it in steps.
"""

import time
from collections.abc import Callable

from xlingtox.evaluation import degenerate
from xlingtox.html.masking import mask
from xlingtox.scoring import WordlistScorer

UNITS = {
    "one letter": "a",
    "one word": "ab ",
    "a character": "的",
    "a mark": "\u0301",
    "Arabic marks": "\u0644\u064b\u0640",
    "words": "word once, words twice; ",
    "nearly a loop": "a" * 99 + " b ",
}
WORDS = {"en": [f"word{i}" for i in range(2000)]}


def main() -> None:
    scorer, masked = WordlistScorer(WORDS, everywhere=True), mask(WORDS)
    ways: dict[str, Callable[[str], object]] = {
        "degenerate.kinds": lambda text: degenerate.kinds([text], ["en"]),
        "WordlistScorer of 2,000 words": lambda text: scorer.score([text], ["en"]),
        "mask of 2,000 words": masked,
    }
    for name, unit in UNITS.items():
        for way, work in ways.items():
            took = []
            for length in (100_000, 200_000):
                text = (unit * length)[:length]
                began = time.process_time()
                work(text)
                took.append(time.process_time() - began)
            print(f"{name:<16}{way:<32}{took[0]:>8.3f} s{took[1]:>8.3f} s")


if __name__ == "__main__":
    main()
