"""Ask whether neurons are multilingual on both sides: in the tokens that they promote, and in when they fire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.evaluation.beside_chance import draw_places
from xlingtox.evaluation.dual_result import AFTER, ALPHA, BEFORE, AtOnce, DualMultilinguality, InLanguage
from xlingtox.evaluation.firing import halves
from xlingtox.evaluation.key_side import KeySide, Texts
from xlingtox.evaluation.named_sets import NamedSets, all_of_layers, named_sets
from xlingtox.evaluation.value_side import own_tokens, value_side
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.toxic_tokens import TOP, toxic_tokens
from xlingtox.progress import bar


@checked
def dual_multilinguality(
    lm: HookedLM,
    sets: NamedSets,
    toxic_prompts: Prompts,
    neutral_prompts: Prompts,
    *,
    toxic_words: Mapping[str, Sequence[str]],
    after: HookedLM | None = None,
    source_language: str = "en",
    k: int = TOP,
    n_random: int = 999,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> DualMultilinguality:
    """Ask in how many languages sets of neurons promote toxic tokens, and in how many they fire before toxic text.

    The paper calls neurons dually multilingual: their value vectors promote toxic tokens of many languages, and they
    fire on prompts of many languages. It shows both by examples. Here each is a number next to its chance level.

    The value side counts the toxic tokens of each language among the k tokens that each value vector promotes. Random
    sets of as many neurons in the same layers say what chance gives. A token that several languages list counts in each
    of them, for the set and for random sets alike. In how many languages at once is also told without such tokens.

    The key side takes those neurons of a set that fire more before toxic than before neutral text in the source
    language. Half of the prompts in the source language choose them: the mean before toxic text has to be two standard
    errors above that before neutral text. The other prompts test whether they do so in every language, but no
    translation of a prompt that chose. Random sets that are as active on the prompts that chose say what chance gives.

    A side is above chance in a language where the random sets that reach it are few enough after Holm's correction for
    the number of languages. On the key side the prompts have to show it too, by a permutation test.

    Args:
        sets: one set of neurons, or several by name. Weights have no effect.
        toxic_prompts, neutral_prompts: prompts of both kinds in the same languages. If a column `index` says which are
            translations of each other, intervals of the mean over languages take that into account.
        toxic_words: toxic words by language, such as `data.word_lists` reads. `neurons.evidence` says which tokens
            count. A language without such tokens is named in the result, and the value side does not count it.
        after: a model after tuning. It reads what `lm` wrote, with the same sets and the same random sets.
        source_language: the language in which neurons are chosen by their firing.
        k: how many promoted tokens of each neuron are looked at.
        n_random: how many random sets are drawn; too few cannot decide at 0.05 in so many languages.
        max_new_tokens: activations are means over so many steps of greedy text, as in `collect_activations`.

    Raises:
        ValueError: a neuron is outside the model; k or `n_random` is out of range; the languages of both kinds of
            prompts differ; a language has too few; there are no words; the models do not match; or one is edited, or
            has a projection before its unembedding.

    Example:
        >>> dual = xt.dual_multilinguality(lm, sources, xt.mini.prompts(n=8, languages=["en", "es"]),
        ...     xt.mini.prompts(n=8, languages=["en", "es"], kind="neutral"),
        ...     toxic_words={code: xt.mini.toxic_words()[code] for code in ("en", "es")}, n_random=99,
        ...     max_new_tokens=2, progress=False)
        >>> dual.at_once_frame()["tested"].tolist()
        [2, 2, 2, 2]
    """
    named = named_sets(sets)
    models = {BEFORE: lm} | ({} if after is None else {AFTER: after})
    _check(models, named, toxic_words, k=k, max_new_tokens=max_new_tokens)
    toxic, neutral = (
        halves(prompts, lm, source_language=source_language, kind=kind, seed=seed)
        for prompts, kind in ((toxic_prompts, "toxic"), (neutral_prompts, "neutral"))
    )
    toxic_rows, neutral_rows = toxic[1].rows(), neutral[1].rows()
    if (codes := list(toxic_rows)) != list(neutral_rows):
        raise ValueError(
            f"toxic prompts are in {', '.join(codes)}, and neutral ones in {', '.join(neutral_rows)}: expected both in "
            "each language"
        )
    for half in (*toxic, *neutral):
        check_lengths(lm, half.prompts, max_new_tokens)
    flags = toxic_tokens(lm, toxic_words)
    most = max(len(codes), len(flags))
    if n_random < (fewest := math.ceil(most / ALPHA) - 1):
        raise ValueError(
            f"n_random is {n_random}: expected at least {fewest}, fewer cannot decide at {ALPHA} in {most} languages"
        )
    keys = KeySide(all_of_layers(lm, named.values()), max_new_tokens=max_new_tokens, progress=progress)
    rows: list[InLanguage] = []
    once: list[AtOnce] = []
    texts: Texts | None = None
    with bar("dual multilinguality", total=1 + 2 * len(models), unit="step", progress=progress) as shown:
        draws = {name: draw_places(neurons, lm, n=n_random, seed=seed) for name, neurons in named.items()}
        firing, chosen = keys.choose(lm, named, draws, toxic[0], neutral[0], seed=seed)
        shown.update()
        for name, model in models.items():
            value_rows, value_once = value_side(name, model, named, draws, flags, k=k, seed=seed)
            shown.update()
            key_rows, key_once, texts = keys.test(
                name, model, chosen, list(named), toxic[1], neutral[1], texts=texts, seed=seed
            )
            shown.update()
            rows += [*value_rows, *key_rows]
            once += [*value_once, *key_once]
    of_one_language, listed = own_tokens(flags), languages.in_order(flags)
    alone = {code: int(of_one_language[code].sum()) if code in of_one_language else 0 for code in listed}
    return DualMultilinguality(
        in_languages=tuple(rows),
        at_once=tuple(once),
        firing=firing,
        listed={code: int(flags[code].sum()) for code in listed},
        shared={code: int(flags[code].sum()) - alone[code] for code in listed},
        without_words=languages.in_order(set(toxic_words) - set(flags)),
        source_language=source_language,
        k=k,
        n_random=n_random,
        n_prompts={code: (len(toxic_rows[code]), len(neutral_rows[code])) for code in codes},
        models=tuple(model.identity() for model in models.values()),
    )


def _check(
    models: Mapping[str, HookedLM],
    sets: Mapping[str, NeuronSet],
    words: Mapping[str, Sequence[str]],
    *,
    k: int,
    max_new_tokens: int,
) -> None:
    """Raise ValueError where models, sets or numbers are of no use."""
    lm, after = models[BEFORE], models.get(AFTER)
    for name, neurons in sets.items():
        if neurons.site != "neurons":
            raise ValueError(f"{name!r} is a set of {neurons.site}: expected MLP neurons, which have value vectors")
        neurons.check(lm)
    if after is lm:
        raise ValueError(f"{lm.name} is given as both models: there is nothing to compare")
    if after is not None:
        lm.check_alike(after)
    for model in models.values():
        model.check_unedited("dual multilinguality does not show")
    if not words or not all(words.values()):
        raise ValueError(f"toxic_words has no words in {next(iter(words), 'any language')}: expected some of each")
    languages.check(list(words))
    # One neuron shows whether value vectors can be read as tokens, and whether there are k of them.
    NeuronSet.of(next(iter(sets.values())).neurons[:1]).promoted_tokens(lm, k=k)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: expected at least 1")
