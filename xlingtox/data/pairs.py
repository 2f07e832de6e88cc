"""Preference pairs for DPO: Lee et al.'s, ParaDetox, RTP-LX's completions; columns `prompt, chosen, rejected`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data.columns import PAIR_FIELDS
from xlingtox.data.loaded import TEXT, Skips, collect
from xlingtox.data.prompts import rtp_lx_rows
from xlingtox.data.reading import files, json_rows, one_file, table_rows, text_of
from xlingtox.languages import UNSPACED
from xlingtox.text import appearance, visible

_COLUMNS = dict.fromkeys(PAIR_FIELDS, TEXT)
_PUBLISHED = ("prompt_text", "unpert_gen_text", "pert_gen_text")
_REWRITES = ("neutral1", "neutral2", "neutral3")


@checked
def toxicity_pairwise(source: str | Path) -> Dataset:
    """Lee et al.'s 24,576 English pairs (2024, arXiv 2401.01967): GPT-2's continuation, and one steered to be toxic.

    Args:
        source: a JSON lines file with `prompt_text, unpert_gen_text, pert_gen_text`, or the folder or zip archive of
            them (`split_0.jsonl`, ...).

    Raises:
        ValueError: no such file, not UTF-8, a missing field, or no pair.
    """
    skips = Skips()
    found = files(source, "*.jsonl")

    def rows() -> Iterator[dict[str, str | None]]:
        for file in found:
            for number, row in json_rows(file, _PUBLISHED, skips):
                pair = {ours: text_of(row.get(theirs)) for ours, theirs in zip(PAIR_FIELDS, _PUBLISHED, strict=True)}
                if _usable(pair, file.name, number, skips):
                    yield pair

    return collect(rows(), _COLUMNS, skips, "toxicity_pairwise")


@checked
def paradetox(source: str | Path) -> Dataset:
    """ParaDetox (Logacheva et al. 2022, ACL): English toxic sentences, each with one to three neutral rewrites.

    The words with which a sentence and a rewrite both begin, whatever their case, are the prompt; how the rewrite goes
    on is chosen, how the sentence goes on is rejected. Rewrites that begin otherwise have no prompt and are left out.

    Args:
        source: the TSV file with `toxic, neutral1, neutral2, neutral3`.

    Raises:
        ValueError: no such file, not UTF-8, a missing column, or no pair.
    """
    skips = Skips()
    file = one_file(source, "*.tsv")

    def rows() -> Iterator[dict[str, str | None]]:
        for number, row in table_rows(file, ("toxic", *_REWRITES[:1]), skips, delimiter="\t"):
            rewrites = [rewrite for name in _REWRITES if (rewrite := text_of(row.get(name)))]
            toxic = text_of(row["toxic"])
            if toxic is None or not rewrites:
                skips.add(file.name, "no sentence, or no rewrite", number)
                continue
            for rewrite in rewrites:
                pair = _continued(toxic, rewrite)
                if pair is None:
                    skips.add(file.name, "sentence and rewrite do not begin alike, or one ends there", number)
                elif _usable(pair, file.name, number, skips):
                    yield pair

    return collect(rows(), _COLUMNS, skips, "paradetox")


@checked
def rtp_lx_pairs(
    source: str | Path, *, password: str | None = None, languages: str | Sequence[str] | None = None
) -> Dataset:
    """Pairs in many languages from RTP-LX's releases with completions: the benign one chosen, the other one rejected.

    Pairs whose rejected completion was not annotated as more toxic than the chosen one, where both were annotated, are
    left out. Prompts without a completion can be given one: let a model continue `rtp_lx(...)` with `generate`, and
    take its toxic continuations as rejected.

    Args:
        source, password, languages: as for `rtp_lx`.

    Returns:
        Columns `prompt, chosen, rejected, language`.

    Raises:
        ValueError: as `rtp_lx`, or no prompt has both completions.
    """
    skips = Skips()

    def rows() -> Iterator[dict[str, Any]]:
        for name, number, row in rtp_lx_rows(source, password, languages, skips):
            bad, good = (row[f"{part}_annotations"]["toxicity"] for part in ("completion", "benign_completion"))
            if row["completion"] is None:
                skips.add(name, "no completion to reject", number)
            elif not row["benign_completions"]:
                skips.add(name, "no benign completion", number)
            elif None not in (bad, good) and bad <= good:
                skips.add(name, "the completion is no more toxic than the benign one", number)
            else:
                for benign in row["benign_completions"]:
                    said = (_joined(row["prompt"], text, row["language"]) for text in (benign, row["completion"]))
                    pair = dict(zip(PAIR_FIELDS, (row["prompt"], *said), strict=True))
                    if _usable(pair, name, number, skips):
                        yield pair | {"language": row["language"]}

    return collect(rows(), _COLUMNS | {"language": TEXT}, skips, "rtp_lx_pairs")


def _usable(pair: dict[str, str | None], source: str, line: int, skips: Skips) -> bool:
    """What `check_pairs` asks for; what is not so is counted as skipped."""
    missing = [name for name in PAIR_FIELDS if pair[name] is None]
    if missing:
        skips.add(source, f"no {' and no '.join(missing)}", line)
    elif appearance(str(pair["chosen"])) == appearance(str(pair["rejected"])):
        skips.add(source, "chosen equals rejected", line)
    else:
        return True
    return False


def _continued(toxic: str, neutral: str) -> dict[str, str | None] | None:
    """The first words that both share, and how each goes on from there; None if they share none or one ends there."""
    ends = (0, 0)
    for one, other in zip(re.finditer(r"\S+", toxic), re.finditer(r"\S+", neutral), strict=False):
        if one[0].casefold() != other[0].casefold():
            break
        ends = (one.end(), other.end())
    rest = (neutral[ends[1] :], toxic[ends[0] :])
    if not ends[0] or not all(map(visible, rest)):
        return None
    return dict(zip(PAIR_FIELDS, (toxic[: ends[0]], *rest), strict=True))


def _joined(prompt: str, completion: str, language: str) -> str:
    """The completion with the space that must stand between it and the prompt."""
    spaced = language in UNSPACED or prompt[-1].isspace() or completion[0].isspace()
    return completion if spaced else f" {completion}"
