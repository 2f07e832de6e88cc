"""Lists of offensive words, in the form that `WordlistScorer` takes."""

from collections.abc import Sequence
from pathlib import Path

from xlingtox.checking import checked
from xlingtox.data.collecting import Skips, warn
from xlingtox.data.reading import by_language, files, lines, text_of
from xlingtox.languages import NAMES


@checked
def word_lists(source: str | Path, *, languages: str | Sequence[str] | None = None) -> dict[str, list[str]]:
    """Read lists of offensive words and return a dict from language to words.

    Each file has one word a line and is named by its language (`de`, `de.txt`), like those of LDNOOBW. Blanks around a
    word are removed, and each word is listed once. Files that were left out are logged as a warning.

    Args:
        source: a folder, or one file.
        languages: the languages to read; by default all that are known.

    Raises:
        ValueError: there is no such file, a language has no file, a file is not UTF-8, or a list has no words.

    Example:
        >>> _ = (tmp_path / "de.txt").write_text("Narr\\nEsel\\nNarr\\n")
        >>> xt.data.word_lists(tmp_path)
        {'de': ['Narr', 'Esel']}
    """
    skips = Skips()
    files_by_language = by_language(
        files(source, "*"),
        lambda file: file.name.split(".")[0],
        languages=languages,
        what=Path(source).name,
        skips=skips,
        default=tuple(NAMES),
    )
    words: dict[str, list[str]] = {}
    for code, file in files_by_language.items():
        words[code] = list(dict.fromkeys(line.strip() for _, line in lines(file) if text_of(line)))
        if not words[code]:
            raise ValueError(f"{file} has no words")
    warn(skips, "word_lists")
    return words
