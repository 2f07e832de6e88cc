"""Tokenizers: the tokens of a text as a model reads it, and checks of a model's tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, after a beginning of sequence if the tokenizer adds one.

    A text is always something to continue: a prompt, a sentence, or the start of a longer text. So an end of sequence
    that the tokenizer would add is left out, because the model would take the next token for another document. A text
    that already has a beginning of sequence, such as a rendered chat template, gets no second one. An end of sequence
    inside the text itself is kept: chat templates end each turn with one.
    """
    if not texts:
        return []
    start = added_start(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) if ids[: len(start)] == start else [*start, *ids] for ids in rows]


def added_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before each text: none, or more rarely a beginning of sequence.

    They are looked up anew in each call, because a tokenizer's rules can be changed at any time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.num_special_tokens_to_add(False) == 0:
        return []
    special = set(tokenizer.all_special_ids)
    # Read a text of one ordinary token. The tokens before that token were added.
    for token in (token for token in range(len(tokenizer)) if token not in special):
        text = tokenizer.decode([token])
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not plain or plain[0] in special:
            continue
        read = tokenizer(text)["input_ids"]
        places = (i for i in range(len(read)) if read[i : i + len(plain)] == plain)
        return list(read[: next(places, 0)])
    return []


def text_after(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
) -> list[str]:
    """Return the text of token ids that follow a prompt, without special tokens.

    Some tokenizers, such as Llama 2's, drop the first space of a text. So a continuation is decoded together with its
    prompt.

    Args:
        prompts: each prompt's token ids.
        rows: the token ids that follow each prompt.
    """

    def decoded(ids: Iterable[Sequence[int]]) -> list[str]:
        return list(tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True))

    # Many rows may follow one prompt.
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    start_of = dict(zip(distinct, decoded(distinct), strict=True))
    starts = [start_of[tuple(prompt)] for prompt in prompts]
    texts = decoded([*prompt, *row] for prompt, row in zip(prompts, rows, strict=True))
    # A prompt that ends within a character decodes differently alone. Then the row has to be decoded alone too.
    return [
        text[len(start) :] if text.startswith(start) else decoded([row])[0]
        for start, text, row in zip(starts, texts, rows, strict=True)
    ]


def n_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two rows have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or a copy that pads with its end of sequence if the model knows no padding token of it.

    Args:
        vocabulary: the number of tokens that the model knows.

    Raises:
        ValueError: there is no end-of-sequence token, or the model does not know it.
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
    """Return the numbers below `rows` that are neither a token of the tokenizer nor among `ends`."""
    if len(tokenizer) == rows and max(tokenizer.added_tokens_decoder, default=0) < rows:
        return []
    known = {*tokenizer.get_vocab().values(), *ends}
    return [row for row in range(rows) if row not in known]


def without_added_start(tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return a TransformerLens model's tokenizer as its files define it.

    TransformerLens makes every tokenizer put a beginning of sequence before a text. A model that never saw one there
    gives other texts and numbers.

    Raises:
        ValueError: the tokenizer's files are neither in a folder nor in the hub's cache, or have another vocabulary.
    """
    if not getattr(tokenizer, "add_bos_token", False):
        return tokenizer
    name = tokenizer.name_or_path
    try:
        from_files = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=trust_remote_code)
        known = bool(name) and from_files.get_vocab() == tokenizer.get_vocab()
    except (OSError, ValueError):
        known = False
    if not known:
        raise ValueError(
            "the TransformerLens model's tokenizer puts a beginning of sequence before each text, and whether the "
            f"model's own does cannot be seen: {name!r} is no folder or cached name with this vocabulary. Give it: "
            "load(model, tokenizer=...)"
        )
    return tokenizer if from_files.add_bos_token else from_files


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return all rules that decide the tokens of a text, as JSON values. Rules of padding and cutting are left out."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return {name: rule for name, rule in json.loads(backend.to_str()).items() if name not in ("truncation", "padding")}
