"""From texts to token ids, as a model reads them: one beginning, and no end that nobody wrote."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, behind the beginning of sequence if the tokenizer adds one.

    A text is always something to go on from: a prompt, a sentence that is read, the start of a longer text. So an end
    of sequence that the tokenizer would add is left out: the model would take what follows for another document. A text
    that already begins with the beginning, as a rendered chat template does, gets no second one. What stands in the
    text itself is read as the tokenizer reads it, an end of sequence too: chat templates end each turn with one.
    """
    if not texts:
        return []
    start = added_start(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) if ids[: len(start)] == start else [*start, *ids] for ids in rows]


def added_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before each text: mostly none, or a beginning of sequence.

    They are looked up anew at each call, because a tokenizer's rules can be changed at any time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.num_special_tokens_to_add(False) == 0:
        return []
    special = set(tokenizer.all_special_ids)
    # Any text with an ordinary token shows it: what stands before the text's own tokens was added.
    for token in (token for token in range(len(tokenizer)) if token not in special):
        text = tokenizer.decode([token])
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not plain or plain[0] in special:
            continue
        read = tokenizer(text)["input_ids"]
        places = (i for i in range(len(read)) if read[i : i + len(plain)] == plain)
        return list(read[: next(places, 0)])
    return []


def n_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens both rows begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy that pads with its end of sequence where it has no padding that the model knows.

    Args:
        vocabulary: tokens that the model knows.

    Raises:
        ValueError: no end-of-sequence token, or one that the model does not know.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token first")
    if tokenizer.eos_token_id >= vocabulary:
        raise ValueError(
            f"the tokenizer's end of sequence is token {tokenizer.eos_token_id}, and the model knows {vocabulary}: "
            "model.resize_token_embeddings(len(tokenizer)), or give the model's own tokenizer"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def rows_without_text(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Iterable[int] = ()) -> list[int]:
    """Return the numbers below `rows` that are no token of the tokenizer, but for those that end a text."""
    if len(tokenizer) == rows and max(tokenizer.added_tokens_decoder, default=0) < rows:
        return []
    known = {*tokenizer.get_vocab().values(), *ends}
    return [row for row in range(rows) if row not in known]


def without_added_start(held: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a TransformerLens model as its own files have it: TransformerLens makes every tokenizer put its
    beginning of sequence before a text, with which the plain model's texts and numbers would be others.

    Raises:
        ValueError: its own files are neither in a folder nor in the hub's cache, or hold another vocabulary.
    """
    if not getattr(held, "add_bos_token", False):
        return held
    name = held.name_or_path
    try:
        own = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=trust_remote_code)
        known = bool(name) and own.get_vocab() == held.get_vocab()
    except (OSError, ValueError):
        known = False
    if not known:
        raise ValueError(
            "the TransformerLens model's tokenizer puts a beginning of sequence before each text, and whether the "
            f"model's own does cannot be seen: {name!r} is no folder or cached name with this vocabulary. Give it: "
            "load(model, tokenizer=...)"
        )
    return held if own.add_bos_token else own


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that decides which tokens a text has, for JSON; not how the last texts were padded and cut."""
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return {name: rule for name, rule in json.loads(fast.to_str()).items() if name not in ("truncation", "padding")}
