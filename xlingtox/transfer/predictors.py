"""Predict transfer by other quantities than retrieval that are known before tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet


@checked
def tokens_per_character(lm: HookedLM, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Divide the number of tokens by the number of characters, over all texts of each language.

    A high ratio says that the tokenizer cuts the language into small pieces, because its training text had little of
    it.

    Raises:
        ValueError: a language without a character.

    Example:
        >>> xt.transfer.tokens_per_character(lm, {"en": ["the teacher greets"], "es": ["la maestra saluda"]})
        {'en': 0..., 'es': 0...}
    """
    ratios = {}
    for code, sentences in texts.items():
        n_characters = sum(map(len, sentences))
        if not n_characters:
            raise ValueError(f"there is no text in {code}")
        tokenized = lm.tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
        ratios[code] = sum(map(len, tokenized)) / n_characters
    return ratios


@checked
def active_share(activations: Activations) -> dict[str, float]:
    """Return, for each language, the share of neurons whose mean activation is above 0 there.

    Usually the neurons are the sources of toxicity.

    Example:
        >>> xt.transfer.active_share(activations)
        {'en': 0..., 'es': 0...}
    """
    return {code: float((activations.mean(language=code) > 0).float().mean()) for code in activations.language_codes}


@checked
def promoted_share(
    lm: HookedLM, neurons: NeuronSet, texts: Mapping[str, Sequence[str]], *, k: int = 10
) -> dict[str, float]:
    """Return, for each language, how large a share of the tokens that the neurons promote occurs in its texts.

    A token that several neurons promote counts once. It belongs to a language if the language's texts use it, because a
    script tells few languages apart and no list of words is complete.

    Args:
        neurons: usually the sources of toxicity.
        texts: texts that may hold the promoted words, such as prompts with the untuned model's continuations. Give
            equally many texts of every language.
        k: how many tokens of each neuron count as promoted.

    Example:
        >>> texts = {"en": prompts["prompt"][:2], "es": prompts["prompt"][2:]}
        >>> xt.transfer.promoted_share(lm, sources, texts)
        {'en': 0..., 'es': 0...}
    """
    promoted = set(neurons.promoted_tokens(lm, k=k)["token_id"])
    used = {code: set().union(*lm.token_ids(sentences)) for code, sentences in texts.items()}
    return {code: len(promoted & tokens) / len(promoted) for code, tokens in used.items()}
