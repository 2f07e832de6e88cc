"""Lists of offensive words, as WordlistScorer takes them."""

from collections.abc import Sequence
from pathlib import Path

from xlingtox.checking import checked
from xlingtox.data.loaded import Skips, warn
from xlingtox.data.reading import by_language, files, lines, text_of
from xlingtox.languages import NAMES


@checked
def word_lists(source: str | Path, *, languages: str | Sequence[str] | None = None) -> dict[str, list[str]]:
    """Language to words, from files of a word a line that are named by language (`de`, `de.txt`), as LDNOOBW's.

    Words are stripped of space around them and listed once; what was left out is logged as a warning.

    Args:
        source: a folder, or one file.
        languages: which to read; by default all that are known.

    Raises:
        ValueError: no such file, a language that is not there, not UTF-8, or a list without words.
    """
    skips = Skips()
    found = by_language(
        files(source, "*"), lambda file: file.name.split(".")[0], languages, Path(source).name, skips, tuple(NAMES)
    )
    words: dict[str, list[str]] = {}
    for code, file in found.items():
        words[code] = list(dict.fromkeys(line.strip() for _, line in lines(file) if text_of(line)))
        if not words[code]:
            raise ValueError(f"{file} has no words")
    warn(skips, "word_lists")
    return words
