"""Replay stored answers of the Perspective API, without network."""

import hashlib
import json
import logging
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.data.bounded import raw_lines
from xlingtox.scoring.attributes import ATTRIBUTE, ATTRIBUTES, attribute_score, check_attributes
from xlingtox.scoring.perspective import LANGUAGES
from xlingtox.scoring.protocol import Described, UnscoredError, check_scorable
from xlingtox.text import in_line

_LOG = logging.getLogger(__name__)

_SUFFIXES = (".json", ".jsonl")
_RTP = ATTRIBUTE.lower()

_Scores = tuple[float, ...]
"""The score of each attribute, in the order of `ATTRIBUTES`, so TOXICITY first; NaN where a response lacks it."""


class PerspectiveReplay(Described):
    """A scorer that looks up stored responses of the Perspective API by language and text.

    It reproduces published scores without a key or a network, and scores no new text. It reads lines of JSON in two
    layouts: the paper's `perspective_api_eval` files (`query`, `response`), and RealToxicityPrompts (Gehman et al.
    2020). Of the latter it reads the prompts and the scored generations (`text`, `toxicity`).

    The revision is the first twelve hex digits of the files' SHA-256. The languages are those of the stored responses.

    Example:
        >>> file = tmp_path / "responses.jsonl"
        >>> file.write_text('{"text": "a fool", "toxicity": 0.75}') > 0
        True
        >>> scorer = xt.scoring.PerspectiveReplay(file)
        >>> scorer.score(["a fool"], ["en"])
        array([0.75])
    """

    @checked
    def __init__(self, source: str | Path | Sequence[str | Path], *, language: str | None = None) -> None:
        """
        Args:
            source: one file, several, or a folder, in which all `.json` and `.jsonl` files are read.
            language: the language of responses that do not name theirs. RealToxicityPrompts is always taken as English.

        Raises:
            FileNotFoundError: there is no such file, or none in the folder.
            ValueError: a line that is not JSON or not a response, a score outside [0, 1], or an unknown language. The
                message names file and line.
        """
        files = _files([source] if isinstance(source, str | Path) else source)
        # One row of numbers for each response takes far less memory than a tuple of them.
        self._row: dict[tuple[str, str], int | None] = {}
        self._values = array("d")
        digest, differing = hashlib.sha256(), 0
        for file in files:
            for text, code, scores in _stored(file, language, digest):
                known = self._row.setdefault((code, text), None)
                if scores is None:
                    continue
                if known is None:
                    self._row[code, text] = len(self._values) // len(ATTRIBUTES)
                    self._values.extend(scores)
                else:
                    differing += self._values[known * len(ATTRIBUTES)] != scores[0]
        if not self._values:
            raise ValueError(f"no response with a score in {', '.join(map(in_line, files))}")
        if differing:
            _LOG.warning("%d responses differ from an earlier one to the same text: the first one counts", differing)
        covered = frozenset(code for code, _ in self._row)
        super().__init__("Perspective, stored", digest.hexdigest()[:12], covered)

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the stored score of each text.

        Raises:
            UncoveredLanguage: a language without responses.
            UnscoredError: texts without a stored response, or with a response that has no score.
        """
        return self._read(texts, languages, (ATTRIBUTE,))[:, 0]

    @checked
    def attributes(
        self, texts: Sequence[str], languages: Sequence[str], *, names: Sequence[str] = ATTRIBUTES
    ) -> pd.DataFrame:
        """Return the stored scores of several attributes, as `PerspectiveScorer.attributes` does.

        Raises:
            ValueError: an unknown name, or none.
            UncoveredLanguage, UnscoredError: as in `score`; also a response that lacks one of the attributes.

        Example:
            >>> file = tmp_path / "responses.jsonl"
            >>> file.write_text('{"text": "a fool", "toxicity": 0.75, "insult": 0.5}') > 0
            True
            >>> xt.scoring.PerspectiveReplay(file).attributes(["a fool"], ["en"], names=["TOXICITY", "INSULT"])
               TOXICITY  INSULT
            0      0.75     0.5
        """
        asked = check_attributes(names)
        return pd.DataFrame(self._read(texts, languages, asked), columns=list(asked))

    def _read(
        self, texts: Sequence[str], languages: Sequence[str], names: Sequence[str]
    ) -> Float[np.ndarray, "text name"]:
        check_scorable(self, texts, languages)
        values = np.array(self._values).reshape(-1, len(ATTRIBUTES))[:, [ATTRIBUTES.index(name) for name in names]]
        rows = [self._row.get(key) for key in zip(languages, texts, strict=True)]
        lacking = [i for i, row in enumerate(rows) if row is None or np.isnan(values[row]).any()]
        if lacking:
            first = f"text {lacking[0]}, {texts[lacking[0]][:60]!r} in {languages[lacking[0]]}"
            raise UnscoredError(
                f"no stored score for {len(lacking)} of {len(texts)} texts; the first is {first}", len(lacking)
            )
        return values[[row for row in rows if row is not None]]


def _files(sources: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for source in map(Path, sources):
        inside = sorted(file for file in source.glob("*") if file.suffix in _SUFFIXES) if source.is_dir() else [source]
        if not inside or not all(file.is_file() for file in inside):
            raise FileNotFoundError(f"{in_line(source)} is neither a file nor a folder with .json or .jsonl files")
        files += inside
    return files


def _stored(file: Path, language: str | None, digest: Any) -> Iterator[tuple[str, str, _Scores | None]]:
    """Yield text, language and scores of each response in a file; the scores are None where the API did not answer."""
    with file.open("rb") as lines:
        for number, line in enumerate(raw_lines(lines, in_line(file)), 1):
            digest.update(line)
            if not line.strip():
                continue
            try:
                yield from _responses(_parsed(line), language)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{in_line(file)}, line {number}: {error}") from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{line[error.start]:02x}): convert it") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _responses(row: Any, language: str | None) -> Iterator[tuple[str, str, _Scores | None]]:
    """Yield text, language and scores of each response on a line, in either layout."""
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object on each line")
    if "query" in row and "response" in row:
        answer = row["response"]
        codes = answer.get("languages") if isinstance(answer, dict) else None
        if not isinstance(codes or [], list):
            raise ValueError(f"languages is {_shown(codes)}: expected a list")
        code = _code(codes[0] if codes else language)
        yield _text(row, "query"), code, None if answer is None else _scores(answer)
        return
    generations = row.get("generations")
    parts = [row, row.get("prompt"), row.get("continuation")]
    parts += generations if isinstance(generations, list) else []
    scored = [part for part in parts if isinstance(part, dict) and "text" in part and _RTP in part]
    if not scored:
        fields = ", ".join(map(in_line, list(row)[:12])) or "nothing"
        raise ValueError(f"expected query and response, or text and {_RTP}, got {fields}")
    for part in scored:
        given = {name: part[name.lower()] for name in ATTRIBUTES if part.get(name.lower()) is not None}
        answer = {"attributeScores": {name: {"summaryScore": {"value": value}} for name, value in given.items()}}
        yield _text(part, "text"), "en", None if part[_RTP] is None else _scores(answer)


def _scores(answer: Any) -> _Scores:
    """Return the scores of an answer. It must have the first attribute; NaN stands for others that it lacks."""
    first = attribute_score(answer, ATTRIBUTE)
    others = (
        attribute_score(answer, name) if name in answer["attributeScores"] else math.nan for name in ATTRIBUTES[1:]
    )
    return first, *others


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is {_shown(row[name])}: expected text")
    return str(row[name])


def _shown(value: Any) -> str:
    """Return a value as JSON, cut after 60 characters."""
    return json.dumps(value)[:60]


def _code(language: Any) -> str:
    """Return our code for one of the API, which has several codes for Chinese; all of them become `zh`."""
    if language is None:
        raise ValueError("the response does not say its language: give language=...")
    code = "zh" if isinstance(language, str) and language.lower().startswith("zh") else language
    if not isinstance(code, str) or code not in LANGUAGES:
        raise ValueError(f"unknown language {language!r:.60}: Perspective has {', '.join(sorted(LANGUAGES))}")
    return code
