"""Small worlds in which the truth is known: neurons that write toxic words, the same neurons shuffled, or no effect."""

from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from families import randomised
from tokenizers import Tokenizer, models, pre_tokenizers

from xlingtox.models.hooked import HookedLM

D_MODEL, N_LAYERS, D_MLP = 48, 2, 160
N_PLANTED = 30
N_NEUTRAL, N_TOXIC = 150, 10
LENGTH = 8


class World(NamedTuple):
    """A model, labelled sentences of two languages, and the toxic words of each."""

    lm: HookedLM
    labelled: list[dict[str, Any]]
    toxic_words: dict[str, list[str]]


def world(seed: int, kind: str, *, family: str = "gpt2", labels: str = "true") -> World:
    """A random model of random words.

    Args:
        kind: "planted": neurons that each write one toxic word; "shuffled": the same, with the entries of all value
            vectors in random places; "random": no neuron was set.
        labels: "true": a sentence is toxic where it has a toxic word; "random": labels mean nothing.
    """
    rng = np.random.default_rng(seed)
    neutral = {code: [f"{code}word{i}" for i in range(N_NEUTRAL)] for code in ("en", "es")}
    toxic = {code: [f"{code}toxic{i}" for i in range(N_TOXIC)] for code in ("en", "es")}
    vocabulary = ["<eos>", "<pad>", *(word for words in (*neutral.values(), *toxic.values()) for word in words)]
    number = {word: i for i, word in enumerate(vocabulary)}
    model = randomised(_model(family, len(vocabulary)), seed=seed)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        ids = torch.tensor([number[word] for words in toxic.values() for word in words])
        # Toxic words of both languages have something in common, as in a trained model.
        common = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
        embedding[ids] += 0.2 * common
        for weight in model.parameters():
            if weight.ndim == 2 and weight is not embedding:
                weight *= 0.2  # so that the residual stream still holds the words
        if kind != "random":
            _plant(model, family, embedding[ids], rng)
        if kind == "shuffled":
            for layer in range(N_LAYERS):
                weight = _down(model, family, layer)
                weight.copy_(weight.flatten()[torch.tensor(rng.permutation(weight.numel()))].view_as(weight))
    rows = []
    for code, n in (("en", 400), ("es", 80)):
        for i in range(n):
            words = list(rng.choice(neutral[code], LENGTH))
            if i % 2:
                for place in rng.choice(LENGTH, 2, replace=False):
                    words[place] = str(rng.choice(toxic[code]))
            rows.append({"language": code, "text": " ".join(words), "label": i % 2})
    if labels == "random":
        order = rng.permutation(400)
        for row, label in zip(rows[:400], [rows[i]["label"] for i in order], strict=True):
            row["label"] = label
    level = Tokenizer(models.WordLevel(number, unk_token="<pad>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=level, eos_token="<eos>", pad_token="<pad>")
    return World(HookedLM.load(model, tokenizer=fast), rows, toxic)


def _model(family: str, n_words: int) -> Any:
    ids = {"vocab_size": n_words, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True}
    if family == "gpt2":
        size = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 4, "n_inner": D_MLP, "n_positions": 32}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **ids))
    size = {"hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads, **ids))


def _down(model: Any, family: str, layer: int) -> torch.Tensor:
    """The value vectors of a layer, `[neuron, d_model]`, as a view of the weights."""
    if family == "gpt2":
        return model.transformer.h[layer].mlp.c_proj.weight
    return model.model.layers[layer].mlp.down_proj.weight.T


def _plant(model: Any, family: str, toxic_rows: torch.Tensor, rng: np.random.Generator) -> None:
    """Let random neurons write a toxic word each, and something of what toxic words have in common."""
    for place in rng.choice(N_LAYERS * D_MLP, N_PLANTED, replace=False):
        layer, index = divmod(int(place), D_MLP)
        row = toxic_rows[rng.integers(len(toxic_rows))] + toxic_rows.mean(0)
        _down(model, family, layer)[index] = 0.2 * row
