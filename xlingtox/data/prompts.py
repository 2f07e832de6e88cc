"""Prompts on which toxicity is measured: RTP-LX and PolygloToxicityPrompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.hub import config_names, from_columns
from xlingtox.data.reading import File, by_language, files, json_rows, number_of, text_of
from xlingtox.languages import CODES, spelled

HARMS = {
    "Toxicity": "toxicity",
    "IdentityAttack": "identity_attack",
    "Bias": "bias",
    "Microaggression": "microaggression",
    "Violence": "violence",
    "SelfHarm": "self_harm",
    "Insult": "insult",
    "SexualContent": "sexual_content",
}
"""RTP-LX's published names of harms, and our names. Toxicity has levels from 1 to 5, the others from 1 to 3."""

_LEVELS = {harm: Value("float64") for harm in HARMS.values()}
_VOTES = {harm: [Value("float64")] for harm in HARMS.values()}
_ANNOTATIONS = {
    "prompt": ("PromptAnnotations", "Annotations"),
    "completion": ("CompletionAnnotations",),
    "benign_completion": ("BenignCompletionAnnotations", "BenignCompletionsAnnotations"),
}
_RTP_LX = {
    "language": TEXT,
    "prompt": TEXT,
    "index": Value("int64"),
    "locale": TEXT,
    "dialect": TEXT,
    "completion": TEXT,
    "benign_completions": [TEXT],
    **{f"{part}_annotations": _LEVELS for part in _ANNOTATIONS},
    **{f"{part}_votes": _VOTES for part in _ANNOTATIONS},
}
_PLACEHOLDER = "NA"
"""The text that RTP-LX has in place of a missing one."""


@checked
def rtp_lx(source: str | Path, *, password: str | None = None, languages: str | Sequence[str] | None = None) -> Dataset:
    """Read RTP-LX (de Wynter et al. 2024, arXiv 2404.14397): toxic prompts, translated into many languages.

    Translations of a prompt have the same `index`.

    Args:
        source: the published zip archive, a folder of `RTP_LX_*.json` of any release, or one such file.
        password: the password of the archive; its publisher's README states it.
        languages: the languages to read, in this order; by default those of the paper's 17 that have a file. Where a
            language has several locales, such as `PT` and `PT-BR`, the shortest name is read. Give the file of another
            locale to read that one.

    Returns:
        A table with the columns `language, prompt, index, locale, dialect, completion, benign_completions`. The prompt
        and both completions also have `{part}_annotations` (the mean of the annotators) and `{part}_votes`, by harm
        (`HARMS`). Values that a release does not have are None or an empty list.

    Raises:
        ValueError: there is no such file, the password is wrong, a file is not UTF-8 or not RTP-LX, or a language has
            no file.

    Example:
        >>> _ = (tmp_path / "RTP_LX_ES.json").write_text('{"Prompt": "eres un", "Index": 3, "Locale": "ES"}')
        >>> prompts = xt.data.rtp_lx(tmp_path)
        >>> prompts["language"][0], prompts["prompt"][0], prompts["index"][0]
        ('es', 'eres un', 3)
    """
    skips = Skips()
    rows = (row for _, _, row in rtp_lx_rows(source, password, languages, skips))
    return collect(rows, _RTP_LX, skips, "rtp_lx")


@checked
def polyglo_toxicity_prompts(
    source: str | Path = "ToxicityPrompts/PolygloToxicityPrompts",
    *,
    languages: str | Sequence[str] = CODES,
    split: str = "small",
    revision: str | None = None,
) -> Dataset:
    """Read PolygloToxicityPrompts (Jain et al. 2024, arXiv 2405.09373): web prompts in the paper's languages.

    Args:
        source: the data set's name on the hub, or a local copy of its repository.
        languages: the languages to read, in this order.
        split: `small`, with 5,000 prompts in each language, or `full`.
        revision: the revision of the data set on the hub.

    Returns:
        A table with the columns `language, prompt`.

    Raises:
        ValueError: the data set cannot be found, or lacks a language, the split or its column `text`.
    """
    return concatenate_datasets(
        [
            from_columns(source, {"prompt": "text"}, name=name, split=split, language=code, revision=revision)
            for code, name in config_names(source, languages, revision, prefix="ptp-").items()
        ]
    )


def rtp_lx_rows(
    source: str | Path, password: str | None, languages: Sequence[str] | None, skips: Skips
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the rows of `rtp_lx`, each with the name of its file and its line."""
    published = files(source, "RTP_LX_*.json", password)
    if len(published) == 1 and spelled(_locale(published[0])) is None:
        chosen: dict[str, File] = {"": published[0]}
    else:
        chosen = by_language(published, _locale, languages=languages, what=Path(source).name, skips=skips)
    for code, file in chosen.items():
        for number, row in json_rows(file, ("Prompt",), skips):
            language = code or spelled(str(row.get("Locale")))
            prompt = text_of(row.get("Prompt"))
            if prompt is None:
                skips.add(file.name, "no text in Prompt", number)
            elif prompt == _PLACEHOLDER:
                skips.add(file.name, f"Prompt is the placeholder {_PLACEHOLDER}", number)
            elif language is None:
                skips.add(file.name, "no known language in the file's name, nor in Locale", number)
            else:
                yield file.name, number, {"language": language, "prompt": prompt, **_rest(row)}


def _locale(file: File) -> str:
    return file.stem.removeprefix("RTP_LX_")


def _rest(row: dict[str, Any]) -> dict[str, Any]:
    """Return all columns of a published row but its language and its prompt."""
    index = number_of(row.get("Index"))
    benign = row.get("BenignCompletions", row.get("BenignCompletion"))
    completion = text_of(row.get("Completion"))
    columns: dict[str, Any] = {
        "index": int(index) if index is not None and abs(index) < 2**53 else None,
        "locale": text_of(row.get("Locale")),
        "dialect": text_of(row.get("Dialect")),
        "completion": None if completion == _PLACEHOLDER else completion,
        "benign_completions": [
            text for value in (benign if isinstance(benign, list) else [benign]) if (text := text_of(value))
        ],
    }
    for part, names in _ANNOTATIONS.items():
        means = next((row[name] for name in names if isinstance(row.get(name), dict)), None)
        votes = next((row[f"{name}Raw"] for name in names if isinstance(row.get(f"{name}Raw"), dict)), None)
        columns[f"{part}_annotations"] = {ours: number_of((means or {}).get(harm)) for harm, ours in HARMS.items()}
        columns[f"{part}_votes"] = {ours: _numbers((votes or {}).get(harm)) for harm, ours in HARMS.items()}
    return columns


def _numbers(values: Any) -> list[float]:
    """Return the finite numbers of a list, or none where the value is not a list."""
    return [number for value in values if (number := number_of(value)) is not None] if isinstance(values, list) else []
