"""Labels from the votes of annotators, which RTP-LX gives for its prompts and their completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, Value

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.prompts import HARMS
from xlingtox.data.reading import number_of, text_of
from xlingtox.data.tabular import Table, column_names, columns

PARTS: Mapping[str, str] = {
    "prompt": "prompt",
    "completion": "completion",
    "benign_completion": "benign_completions",
}
"""The parts of RTP-LX that were voted on, and the column with the text of each."""

_TOXIC_FROM = {"toxicity": 3}
"""The least level that counts as toxic: the middle of five levels. Harms with three levels count from the second."""


@checked
def votes_as_labels(
    rated: Table,
    *,
    parts: str | Sequence[str] = tuple(PARTS),
    harm: str = "toxicity",
    toxic_from: float | None = None,
) -> Dataset:
    """Turn the votes of RTP-LX's annotators into labels, against which judges can be validated.

    A label is the share of annotators who saw at least the level `toxic_from`. Where a release has no single votes, the
    mean of the annotators decides: the label is then 0 or 1. Prompts and completions are mostly toxic, and benign
    completions mostly are not, so that all parts together hold both classes.

    Args:
        rated: the table that `rtp_lx` returns.
        parts: which texts to take: "prompt", "completion" and "benign_completion".
        harm: the harm that was voted on, one of `HARMS`.
        toxic_from: the least level that counts as toxic. By default it is 3 of the 5 levels of toxicity, and 2 of the 3
            levels of other harms. This choice is ours, not the publisher's.

    Returns:
        A table with the columns `language, text, label, part`. Rows without a text or without votes are left out.

    Raises:
        ValueError: the table is not of RTP-LX, a part or the harm is unknown, or no text has votes.

    Example:
        >>> votes = '{"Prompt": "You fool", "Locale": "EN", "PromptAnnotationsRaw": {"Toxicity": [5, 4, 2]}}'
        >>> _ = (tmp_path / "RTP_LX_EN.json").write_text(votes)
        >>> labelled = xt.data.votes_as_labels(xt.data.rtp_lx(tmp_path))
        >>> labelled["text"][0], round(labelled["label"][0], 3)
        ('You fool', 0.667)
    """
    wanted = (parts,) if isinstance(parts, str) else tuple(parts)
    if unknown := [part for part in wanted if part not in PARTS]:
        raise ValueError(f"part is {unknown[0]!r}: expected some of {', '.join(PARTS)}")
    if not wanted:
        raise ValueError(f"there are no parts: expected some of {', '.join(PARTS)}")
    if harm not in HARMS.values():
        raise ValueError(f"harm is {harm!r}: expected one of {', '.join(HARMS.values())}")
    least = _TOXIC_FROM.get(harm, 2) if toxic_from is None else toxic_from
    skips = Skips()
    rows = (row for part in wanted for row in _rows(rated, part, harm, least, skips))
    kinds = {"language": TEXT, "text": TEXT, "label": Value("float64"), "part": TEXT}
    return collect(rows, kinds, skips, "votes_as_labels")


def has_votes(table: Table) -> bool:
    """Return whether a table is one of `rtp_lx`, which has texts with votes in place of labels."""
    names = column_names(table) or []
    return "label" not in names and "prompt_votes" in names


def _rows(rated: Table, part: str, harm: str, least: float, skips: Skips) -> Iterator[dict[str, Any]]:
    names = ("language", PARTS[part], f"{part}_annotations", f"{part}_votes")
    table = columns(rated, names, "rows with votes")
    for number, (language, texts, means, votes) in enumerate(zip(*table.values(), strict=True)):
        text = text_of((texts or [None])[0] if isinstance(texts, list) else texts)
        levels = [level for vote in (votes or {}).get(harm) or () if (level := number_of(vote)) is not None]
        mean = number_of((means or {}).get(harm))
        if text is None:
            skips.add(part, "no text", f"row {number}")
        elif levels:
            share = sum(level >= least for level in levels) / len(levels)
            yield {"language": language, "text": text, "label": share, "part": part}
        elif mean is not None:
            yield {"language": language, "text": text, "label": float(mean >= least), "part": part}
        else:
            skips.add(part, f"no vote on {harm}", f"row {number}")
