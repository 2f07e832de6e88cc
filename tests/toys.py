"""Small stand-ins that several tests share: a scorer without a list, and strict JSON."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class HashScorer:
    """A number in [0, 1] that depends on the whole text and on nothing else."""

    name = "hash"
    revision = "1"

    def __init__(self, *languages: str) -> None:
        self.languages = frozenset(languages)

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        return np.array([zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2**32 for text in texts])


class NeverAsked(HashScorer):
    """For bad input that must be refused before any work."""

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> np.ndarray:
        raise AssertionError("work had begun")


def strict_json(path: Path) -> Any:
    """Read JSON as the standard has it: without NaN and infinities."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)
