"""Count the toxic words among the tokens that vectors promote, without holding the logits of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import regex
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.models.hooked import HookedLM

TOP = 10
"""How many promoted tokens of each neuron are looked at."""

_MOST_BYTES = 2**27
"""The most bytes of logits that are held at once."""

_LETTERS = 3
"""The beginning of a listed word counts if it has so many letters, because shorter ones begin too many words."""

_LETTER = regex.compile(r"\p{L}")


def toxic_tokens(lm: HookedLM, words: Mapping[str, Sequence[str]]) -> dict[str, Bool[Tensor, "vocab"]]:
    """Return which rows of the unembedding are toxic tokens, for each language that has any.

    A token counts when it is a listed word, in any case and with or without a space before it, or when it is the first
    token of one and has at least three letters. A language of whose words the vocabulary knows no such token is left
    out.
    """
    n_rows = lm.unembedding().shape[0]
    n_tokens = min(len(lm.tokenizer), n_rows)
    texts = lm.tokenizer.batch_decode([[token] for token in range(n_tokens)], clean_up_tokenization_spaces=False)
    bare = [text.strip().casefold() for text in texts]
    toxic: dict[str, Tensor] = {}
    for code, listed in words.items():
        folded = {word.strip().casefold() for word in listed}
        flags = torch.zeros(n_rows, dtype=torch.bool)
        flags[[token for token, text in enumerate(bare) if text in folded]] = True
        spellings = {
            before + spelling
            for word in listed
            for spelling in (word.strip(), word.strip().lower(), word.strip().capitalize())
            for before in ("", " ")
        }
        for ids in lm.tokenizer(sorted(spellings), add_special_tokens=False)["input_ids"]:
            # Some tokenizers write the space before a word as a token of its own.
            first = next((token for token in ids if bare[token]), None)
            if first is not None and len(_LETTER.findall(bare[first])) >= _LETTERS:
                flags[first] = True
        flags[[token for token in lm.tokenizer.all_special_ids if token < n_rows]] = False
        flags &= lm.only_tokens(torch.zeros(n_rows, device=lm.device)).cpu().isfinite()
        if bool(flags.any()):
            toxic[code] = flags
    return toxic


def promoted_counts(
    lm: HookedLM, vectors: Float[Tensor, "neuron d_model"], tables: Bool[Tensor, "table vocab"], *, k: int = TOP
) -> Int[np.ndarray, "neuron table"]:
    """Return how many of the k tokens that each vector promotes most are in each table of tokens."""
    counts = []
    for block in torch.split(vectors, max(1, _MOST_BYTES // (4 * len(lm.unembedding())))):
        top = lm.only_tokens(lm.unembedded(block)).topk(k).indices.cpu()
        counts.append(tables[:, top].sum(-1).T)
    return torch.cat(counts).numpy()


def vectors_at(lm: HookedLM, places: Int[Tensor, "neuron"]) -> Float[Tensor, "neuron d_model"]:
    """Return the write vectors of the neurons at these places (`layer * d_mlp + index`)."""
    vectors = torch.empty(len(places), lm.d_model)
    layers = places // lm.d_mlp
    for layer in sorted(set(layers.tolist())):
        rows = layers == layer
        vectors[rows] = lm.write_vectors(layer)[places[rows] % lm.d_mlp].float().cpu()
    return vectors
