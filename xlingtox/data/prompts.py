"""Prompts that toxicity is measured on: RTP-LX and PolygloToxicityPrompts; columns `language, prompt` and more."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from xlingtox.checking import checked
from xlingtox.data.hub import config_names, from_columns
from xlingtox.data.loaded import TEXT, Skips, collect
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
"""RTP-LX's harms as published, to ours: toxicity from 1 to 5, the others from 1 to 3."""

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


@checked
def rtp_lx(source: str | Path, *, password: str | None = None, languages: str | Sequence[str] | None = None) -> Dataset:
    """RTP-LX (de Wynter et al. 2024, arXiv 2404.14397): toxic prompts, the same ones in each language by `index`.

    Args:
        source: the published zip archive, a folder of `RTP_LX_*.json` of any release, or one such file.
        password: of the archive; its publisher's README states it.
        languages: which to read, in this order; by default those of the paper's 17 that are there. Where there are
            several locales of one, as `PT` and `PT-BR`, the plainest is read; give another's file to read that one.

    Returns:
        Columns `language, prompt, index, locale, dialect, completion, benign_completions`, and for the prompt and both
        completions `{part}_annotations` (mean of the annotators) and `{part}_votes`, by harm (`HARMS`); what a release
        does not have is None, or an empty list.

    Raises:
        ValueError: no such file, a wrong password, a file that is not UTF-8 or not RTP-LX, or a language that is not
            there.
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
    """PolygloToxicityPrompts (Jain et al. 2024, arXiv 2405.09373): prompts found on the web, in the paper's languages.

    Args:
        source: the data set's name on the hub, or a local copy of its repository.
        languages: which to read, in this order.
        split: `small`, 5,000 a language, or `full`.
        revision: of the data set on the hub.

    Returns:
        Columns `language, prompt`.

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
    """Rows of `rtp_lx`, each with its file's name and its line."""
    found = files(source, "RTP_LX_*.json", password)
    if len(found) == 1 and spelled(_locale(found[0])) is None:
        chosen: dict[str, File] = {"": found[0]}
    else:
        chosen = by_language(found, _locale, languages, Path(source).name, skips)
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
    index = number_of(row.get("Index"))
    benign = row.get("BenignCompletions", row.get("BenignCompletion"))
    completion = text_of(row.get("Completion"))
    kept: dict[str, Any] = {
        "index": int(index) if index is not None and abs(index) < 2**53 else None,
        "locale": text_of(row.get("Locale")),
        "dialect": text_of(row.get("Dialect")),
        "completion": None if completion == _PLACEHOLDER else completion,
        "benign_completions": [
            text for each in (benign if isinstance(benign, list) else [benign]) if (text := text_of(each))
        ],
    }
    for part, names in _ANNOTATIONS.items():
        means = next((row[name] for name in names if isinstance(row.get(name), dict)), None)
        votes = next((row[f"{name}Raw"] for name in names if isinstance(row.get(f"{name}Raw"), dict)), None)
        kept[f"{part}_annotations"] = {ours: number_of((means or {}).get(harm)) for harm, ours in HARMS.items()}
        kept[f"{part}_votes"] = {ours: _numbers((votes or {}).get(harm)) for harm, ours in HARMS.items()}
    return kept


def _numbers(values: Any) -> list[float]:
    return [number for value in values if (number := number_of(value)) is not None] if isinstance(values, list) else []
