"""From texts to token ids, as a model reads them: one beginning, and no end that nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase


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
