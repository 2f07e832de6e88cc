"""Preference pairs for DPO: the pairs of Lee et al., ParaDetox, and the completions of RTP-LX.

All have the columns `prompt, chosen, rejected`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.columns import PAIR_FIELDS
from xlingtox.data.prompts import rtp_lx_rows
from xlingtox.data.reading import files, json_rows, one_file, table_rows, text_of
from xlingtox.languages import UNSPACED
from xlingtox.text import appearance, visible

_COLUMNS = dict.fromkeys(PAIR_FIELDS, TEXT)
_PUBLISHED = ("prompt_text", "unpert_gen_text", "pert_gen_text")
_REWRITES = ("neutral1", "neutral2", "neutral3")


@checked
def toxicity_pairwise(source: str | Path) -> Dataset:
    """Read the 24,576 English pairs of Lee et al. (2024, arXiv 2401.01967).

    The chosen side is GPT-2's continuation of the prompt; the rejected side is one that was steered to be toxic.

    Args:
        source: a JSON lines file with `prompt_text, unpert_gen_text, pert_gen_text`, or a folder or zip archive of
            such files (`split_0.jsonl`, ...).

    Raises:
        ValueError: there is no such file, it is not UTF-8, a field is missing, or there is no pair.

    Example:
        >>> row = '{"prompt_text": "You are", "unpert_gen_text": " kind", "pert_gen_text": " a fool"}'
        >>> _ = (tmp_path / "split_0.jsonl").write_text(row)
        >>> xt.data.toxicity_pairwise(tmp_path)[0]
        {'prompt': 'You are', 'chosen': ' kind', 'rejected': ' a fool'}
    """
    skips = Skips()
    sources = files(source, "*.jsonl")

    def rows() -> Iterator[dict[str, str | None]]:
        for file in sources:
            for number, row in json_rows(file, _PUBLISHED, skips):
                pair = {ours: text_of(row.get(theirs)) for ours, theirs in zip(PAIR_FIELDS, _PUBLISHED, strict=True)}
                if _usable(pair, file.name, number, skips):
                    yield pair

    return collect(rows(), _COLUMNS, skips, "toxicity_pairwise")


@checked
def paradetox(source: str | Path) -> Dataset:
    """Read ParaDetox (Logacheva et al. 2022, ACL): English toxic sentences, each with one to three neutral rewrites.

    The prompt is the words with which the sentence and its rewrite both begin, ignoring case. The rest of the rewrite
    is chosen, and the rest of the sentence is rejected. Rewrites that share no first word are left out.

    Args:
        source: the TSV file with `toxic, neutral1, neutral2, neutral3`.

    Raises:
        ValueError: there is no such file, it is not UTF-8, a column is missing, or there is no pair.

    Example:
        >>> _ = (tmp_path / "paradetox.tsv").write_text("toxic\\tneutral1\\nyou are a fool\\tyou are wrong\\n")
        >>> xt.data.paradetox(tmp_path / "paradetox.tsv")[0]
        {'prompt': 'you are', 'chosen': ' wrong', 'rejected': ' a fool'}
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
    """Read pairs in many languages from the releases of RTP-LX with completions.

    The benign completion is chosen, and the toxic one is rejected. A pair is left out if both were annotated and the
    rejected one is not more toxic.

    Prompts without a completion can get one from a model: continue `rtp_lx(...)` with `generate`, and take its toxic
    continuations as rejected.

    Args:
        source, password, languages: the arguments of `rtp_lx`.

    Returns:
        A table with the columns `prompt, chosen, rejected, language`.

    Raises:
        ValueError: `rtp_lx` refuses the source, or no prompt has both completions.

    Example:
        >>> row = '{"Prompt": "eres un", "Completion": "tonto", "BenignCompletion": "amigo"}'
        >>> _ = (tmp_path / "RTP_LX_ES.json").write_text(row)
        >>> xt.data.rtp_lx_pairs(tmp_path)[0]
        {'prompt': 'eres un', 'chosen': ' amigo', 'rejected': ' tonto', 'language': 'es'}
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
                    sides = (_after_space(text, row["prompt"], row["language"]) for text in (benign, row["completion"]))
                    pair = dict(zip(PAIR_FIELDS, (row["prompt"], *sides), strict=True))
                    if _usable(pair, name, number, skips):
                        yield pair | {"language": row["language"]}

    return collect(rows(), _COLUMNS | {"language": TEXT}, skips, "rtp_lx_pairs")


def _usable(pair: dict[str, str | None], source: str, line: int, skips: Skips) -> bool:
    """Return whether `check_pairs` would accept the pair; otherwise count it as skipped."""
    missing = [name for name in PAIR_FIELDS if pair[name] is None]
    if missing:
        skips.add(source, f"no {' and no '.join(missing)}", line)
    elif appearance(str(pair["chosen"])) == appearance(str(pair["rejected"])):
        skips.add(source, "chosen equals rejected", line)
    else:
        return True
    return False


def _continued(toxic: str, neutral: str) -> dict[str, str | None] | None:
    """Return the pair whose prompt is the shared first words, or None where no word is shared or a text ends there."""
    toxic_end = neutral_end = 0
    for toxic_word, neutral_word in zip(re.finditer(r"\S+", toxic), re.finditer(r"\S+", neutral), strict=False):
        if toxic_word[0].casefold() != neutral_word[0].casefold():
            break
        toxic_end, neutral_end = toxic_word.end(), neutral_word.end()
    chosen, rejected = neutral[neutral_end:], toxic[toxic_end:]
    if not toxic_end or not (visible(chosen) and visible(rejected)):
        return None
    return {"prompt": toxic[:toxic_end], "chosen": chosen, "rejected": rejected}


def _after_space(completion: str, prompt: str, language: str) -> str:
    """Return the completion, with a space in front where the language needs one after the prompt."""
    needs_none = language in UNSPACED or prompt[-1].isspace() or completion[0].isspace()
    return completion if needs_none else f" {completion}"
