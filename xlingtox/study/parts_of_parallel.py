"""Held-out text and neutral prompts from parallel sentences, so that no sentence serves two purposes."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from xlingtox.languages import UNSPACED, in_order
from xlingtox.text import appearance

_LEAST_WORDS, _LEAST_CHARACTERS = 4, 8
"""A shorter sentence has no beginning that says enough; characters count in languages without spaces."""

_SHARE = 4
"""Each purpose takes at most one sentence in so many; the others are left for retrieval."""


@dataclass(frozen=True)
class Parts:
    """Parallel text that was split.

    Attributes:
        parallel: what is left for retrieval.
        held_out, neutral_prompts: what was made; None where it was not asked for.

    Example:
        >>> from xlingtox.study.parts_of_parallel import split
        >>> parts = split(xt.mini.parallel(n=40, languages=["en", "es"]), ["en", "es"], n=5, seed=0, held_out=True)
        >>> len(parts.parallel), len(parts.held_out), parts.neutral_prompts is None
        (35, 10, True)
    """

    parallel: Dataset
    held_out: Dataset | None
    neutral_prompts: Dataset | None


def split(
    parallel: Dataset,
    languages: Iterable[str],
    *,
    n: int,
    seed: int,
    held_out: bool = False,
    neutral: bool = False,
    usable: Callable[[Sequence[str], Sequence[str]], Sequence[bool]] = lambda texts, codes: [True] * len(texts),
) -> Parts:
    """Split parallel text by meaning: translations of one sentence are never used for two purposes.

    Args:
        parallel: one column a language, or rows `language, sentence, translation`.
        languages: the languages in which text is made.
        n: the most texts of each kind in each language.
        seed: decides which sentences go where.
        held_out, neutral: what to make.
        usable: a function that says which sentences of which languages may be used, such as those that are not toxic.
    """
    wanted = in_order(languages)
    meanings = _meanings(parallel)
    keys = sorted(meanings)
    random.Random(f"parts {seed}").shuffle(keys)
    aligned = "sentence" not in parallel.column_names
    texts = [(key, code, text) for key in keys for code, text, _ in meanings[key] if code in wanted]
    good = usable([text for _, _, text in texts], [code for _, code, _ in texts])
    refused = {(key, code) for (key, code, _), is_good in zip(texts, good, strict=True) if not is_good}
    share = len(keys) // _SHARE
    taken: set[str] = set()

    def take(may: Callable[[str, str], bool]) -> dict[str, list[tuple[str, str]]]:
        """Return for each language up to n texts with their meanings, and count these as taken."""
        chosen: dict[str, list[tuple[str, str]]] = {code: [] for code in wanted}
        used: set[str] = set()
        for key in keys:
            if key in taken or len(used) >= share or all(len(rows) >= n for rows in chosen.values()):
                continue
            here = {
                code: text
                for code, text, _ in meanings[key]
                if code in chosen and (key, code) not in refused and may(code, text)
            }
            if aligned and len(here) < len([code for code in wanted if code in parallel.column_names]):
                continue
            room = {code: text for code, text in here.items() if len(chosen[code]) < n}
            if room and (aligned or set(room) != {"en"} or len(wanted) == 1):
                used.add(key)
                for code, text in room.items():
                    chosen[code].append((key, text))
        taken.update(used)
        return chosen

    texts_by_language = take(lambda _, text: bool(text.strip())) if held_out else {}
    starts_by_language = take(lambda code, text: beginning(text, code) is not None) if neutral else {}
    number = {key: i for i, key in enumerate(sorted(taken))}
    left = sorted(row for key in keys if key not in taken for row in {row for _, _, row in meanings[key]})
    return Parts(
        parallel.select(left),
        _table("text", {code: [(number[key], text) for key, text in rows] for code, rows in texts_by_language.items()}),
        _table(
            "prompt",
            {
                code: [(number[key], str(beginning(text, code))) for key, text in rows]
                for code, rows in starts_by_language.items()
            },
        ),
    )


def beginning(sentence: str, language: str) -> str | None:
    """Return the first half of a sentence, or None for one that is too short.

    Example:
        >>> from xlingtox.study.parts_of_parallel import beginning
        >>> beginning("My sister reads a book.", "en"), beginning("Hello.", "en"), beginning("我妹妹每天都读书。", "zh")
        ('My sister', None, '我妹妹每')
    """
    if language in UNSPACED:
        text = sentence.strip()
        return text[: len(text) // 2].strip() if len(text) >= _LEAST_CHARACTERS else None
    words = sentence.split()
    return " ".join(words[: len(words) // 2]) if len(words) >= _LEAST_WORDS else None


def _meanings(parallel: Dataset) -> dict[str, list[tuple[str, str, int]]]:
    """Return the sentences of each meaning as language, text and row.

    Sentences with the same English text have the same meaning, also where that is written twice.
    """
    meanings: dict[str, list[tuple[str, str, int]]] = {}
    if "sentence" in parallel.column_names:
        rows = zip(parallel["language"], parallel["sentence"], parallel["translation"], strict=True)
        for i, (code, sentence, translation) in enumerate(rows):
            key = appearance(translation)
            if key not in meanings:
                meanings[key] = [("en", translation, i)]
            meanings[key].append((code, sentence, i))
        return meanings
    columns = in_order(parallel.column_names)
    for i, texts in enumerate(zip(*(parallel[code] for code in columns), strict=True)):
        meanings.setdefault(appearance(texts[0]), []).extend(
            (code, text, i) for code, text in zip(columns, texts, strict=True)
        )
    return meanings


def _table(column: str, rows: dict[str, list[tuple[int, str]]]) -> Dataset | None:
    """Return a table of texts in each language, those of the same meaning with the same `index`."""
    if not any(rows.values()):
        return None
    return Dataset.from_list(
        [{"language": code, column: text, "index": i} for code, texts in rows.items() for i, text in texts]
    )


def without(parallel: Dataset, texts: Collection[str]) -> tuple[Dataset, int]:
    """Return parallel text without the rows in which one of these texts occurs, and the number of rows left out."""
    looks = {appearance(text).casefold() for text in texts}
    columns = [name for name in parallel.column_names if name != "language"]
    rows = zip(*(parallel[name] for name in columns), strict=True)
    kept = [i for i, row in enumerate(rows) if looks.isdisjoint(appearance(text).casefold() for text in row)]
    return parallel.select(kept), len(parallel) - len(kept)
