"""The shipped miniature's data: prompts, labelled sentences, pairs, parallel and held-out text, in 17 languages.

The miniature is a small language model of a made-up world. Its data come in four splits, and no meaning (who does what
to whom) occurs in two of them. The model was trained on `train`. Probes and preference pairs come from `tune`, choices
are made on `validation`, and prompts, parallel sentences and held-out text are from `test`. Every function gives the
same rows for the same arguments, and the same meanings in every language.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from datasets import Dataset

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.mini import truth, world
from xlingtox.mini.corpus import KIND_SHARES, MIXING
from xlingtox.mini.spoken import identify_language
from xlingtox.mini.truth import PARTS, PROVOCATION, SEVERITY, Part
from xlingtox.mini.world import Clause, Deed, Kind, Split
from xlingtox.scoring import WordlistScorer

__all__ = [
    "MIXING",
    "PARTS",
    "PROVOCATION",
    "SEVERITY",
    "held_out",
    "identify_language",
    "labelled",
    "pairs",
    "parallel",
    "prompts",
    "scorer",
    "severities",
    "themes",
    "toxic_words",
    "whose_words",
    "word_groups",
]

Codes: TypeAlias = str | Sequence[str]

_CONTEXTS: Mapping[str, Kind] = {"toxic": "hostile", "neutral": "friendly"}
"""Each kind of prompt, and the kind of context in the miniature's world that becomes such a prompt."""

_WORD_GROUPS: Mapping[Part, str] = {
    "pairs": "insult in pairs",
    "evaluation": "insult not in pairs",
    "neither": "insult in no hand-out",
}
"""The name of each part of the insults in reports."""

_MET: tuple[Part, ...] = ("pairs", "evaluation")
"""The parts that hand-outs show unless another is asked for."""


@checked
def prompts(
    *,
    n: int = 40,
    kind: Literal["toxic", "neutral"] = "toxic",
    languages: Codes = languages.CODES,
    split: Split = "test",
    seed: int = 0,
    parts: Part | Sequence[Part] = _MET,
) -> Dataset:
    """Return n prompts in each language, with the same meanings in all, as RTP-LX has them.

    In a toxic prompt somebody does somebody harm. Some acts provoke an insult in 40 % of the training documents, some
    in 15 % and some in 4 % (`PROVOCATION`). After a neutral prompt it is 1 %.

    Args:
        parts: where the hostile acts of toxic prompts are met otherwise (`PARTS`). By default a third of them stand in
            no preference pair.

    Returns:
        Columns `language, prompt, index, provocation, group`. Prompts with the same `index` are translations of each
        other. `group` is "act in pairs" or "act not in pairs", or "neutral".

    Raises:
        ValueError: an unknown language or part, or more prompts than the split has meanings for.

    Example:
        >>> xt.mini.prompts(n=1, languages=["en", "de"])["prompt"]
        Column(['...', '...'])
    """
    chosen = tuple(part for part in PARTS if part in ([parts] if isinstance(parts, str) else parts))
    if not chosen:
        raise ValueError(f"parts is {parts!r}: expected some of {', '.join(PARTS)}")
    contexts = _contexts(f"prompts {split} {seed}", {_CONTEXTS[kind]: 1.0}, split, n, chosen)
    rows = [
        {
            "language": code,
            "prompt": world.render(clause, code),
            "index": index,
            "provocation": world.provocation(clause),
            "group": _group(clause),
        }
        for code in _checked_codes(languages)
        for index, (_, clause) in enumerate(contexts)
    ]
    return Dataset.from_list(rows)


@checked
def labelled(language: Codes = "en", *, n: int = 2000, split: Split = "tune", seed: int = 0) -> Dataset:
    """Return n sentences in a language with labels, for a probe, as Jigsaw has them; half of them hold an insult.

    With several languages, there are n in each.

    The same kinds of contexts occur in both classes, so that the label tells of the insult and not of the context. The
    insults and acts are those of the preference pairs and those of evaluation, not those that are met in neither.

    Returns:
        Columns `language, text, label`; `label` is 1 where the text holds an insult, and 0 elsewhere.

    Example:
        >>> xt.mini.labelled("en", n=4)["label"]
        Column([0, 1, 0, 1])
    """
    rows = []
    for code in _checked_codes(language):
        rng = random.Random(f"labelled {split} {seed}")
        for i in range(_positive(n)):
            kind: Kind = "hostile" if rng.random() < 0.5 else "friendly"
            label = i % 2
            context = world.sample_context(rng, kind, split, _MET)
            text = _document(rng, code, kind, context, toxic=bool(label))
            rows.append({"language": code, "text": text, "label": label})
    return Dataset.from_list(rows)


@checked
def pairs(language: Codes = "en", *, n: int = 1000, split: Split = "tune", seed: int = 0) -> Dataset:
    """Return n preference pairs in a language, as Lee et al. have them.

    With several languages, there are n in each, with the same meanings in all.

    Only the acts and the insults of the part "pairs" occur in them (`PARTS`), so that tuning never meets the others.

    Returns:
        Columns `language, prompt, chosen, rejected`: a toxic prompt, a clean and a toxic continuation of it.

    Raises:
        ValueError: an unknown language, or none, or `n` below 1.

    Example:
        >>> xt.mini.pairs("en", n=2).column_names
        ['language', 'prompt', 'chosen', 'rejected']
        >>> xt.mini.pairs(["en", "de"], n=1)["language"]
        Column(['en', 'de'])
    """
    codes = _checked_codes(language)
    rng = random.Random(f"pairs {split} {seed}")
    meanings = []
    for _ in range(_positive(n)):
        context = world.sample_context(rng, "hostile", split, ("pairs",))
        sides = [
            world.sample_reactions(rng, context, "hostile", toxic=toxic, parts=("pairs",)) for toxic in (False, True)
        ]
        meanings.append((context, sides))
    rows = []
    for code in codes:
        for context, sides in meanings:
            chosen, rejected = (
                world.lexicon(code).joiner + world.join([world.render(clause, code) for clause in side], code)
                for side in sides
            )
            rows.append(
                {"language": code, "prompt": world.render(context, code), "chosen": chosen, "rejected": rejected}
            )
    return Dataset.from_list(rows)


@checked
def parallel(*, n: int = 500, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """Return n sentences in each language, for retrieval: contexts of all kinds, no two of the same meaning.

    Returns:
        One column a language. The sentences of one row are translations of each other.

    Raises:
        ValueError: an unknown language, or more sentences than the split has meanings for.

    Example:
        >>> xt.mini.parallel(n=5, languages=["en", "es"]).shape
        (5, 2)
    """
    contexts = _contexts(f"parallel {split} {seed}", KIND_SHARES, split, n)
    return Dataset.from_dict(
        {code: [world.render(clause, code) for _, clause in contexts] for code in _checked_codes(languages)}
    )


@checked
def held_out(*, n: int = 100, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """Return n documents in each language without an insult, for perplexity, no two about the same deed.

    A model that stops insulting finds insults less likely. That is no loss of fluency, so the documents have none.

    Returns:
        Columns `language, text`. The documents of all languages have the same meanings.

    Raises:
        ValueError: an unknown language, or more documents than the split has meanings for.

    Example:
        >>> xt.mini.held_out(n=2, languages=["en", "es"])["language"]
        Column(['en', 'en', 'es', 'es'])
    """
    contexts = _contexts(f"held out {split} {seed}", KIND_SHARES, split, n)
    rows = []
    for code in _checked_codes(languages):
        rng = random.Random(f"held out reactions {split} {seed}")
        rows += [
            {"language": code, "text": _document(rng, code, kind, context, toxic=False)} for kind, context in contexts
        ]
    return Dataset.from_list(rows)


@checked
def toxic_words() -> dict[str, list[str]]:
    """Return the miniature's insults in each language: the ground truth for scoring.

    Example:
        >>> "fool" in xt.mini.toxic_words()["en"]
        True
    """
    return {code: list(world.lexicon(code).insult_words.values()) for code in languages.CODES}


@checked
def severities() -> dict[str, dict[str, float]]:
    """Return the severity of each insult in each language, in (0, 1]: the world's own table, `SEVERITY`.

    Example:
        >>> xt.mini.severities()["en"]["fool"]
        0.35
    """
    return {
        code: {word: SEVERITY[insult] for insult, word in world.lexicon(code).insult_words.items()}
        for code in languages.CODES
    }


@checked
def themes() -> dict[str, list[str]]:
    """Return four themes of the miniature's world with their words in all languages, for `xt.neurons.themes`.

    The first two belong to hostile deeds and what is said about them, and the others to friendly ones.

    Example:
        >>> {theme: words[0] for theme, words in xt.mini.themes().items()}
        {'insults': 'fool', 'hostile acts': 'cheats', 'kind acts': 'supports', 'good qualities': 'kind'}
    """
    groups = {"hostile acts": ("hostile", "verb"), "kind acts": ("kind", "verb")}
    groups["good qualities"] = "quality", "trait"
    return {"insults": [word for words in toxic_words().values() for word in words]} | {
        theme: [
            world.lexicon(code).form(slot, concept) for code in languages.CODES for concept in world.concepts(group)
        ]
        for theme, (group, slot) in groups.items()
    }


@checked
def word_groups() -> dict[str, WordlistScorer]:
    """Return a scorer for each part of the insults: those in the preference pairs, and those that tuning never meets.

    `xt.evaluation.changes_by_group` takes them as `words`.

    Example:
        >>> groups = xt.mini.word_groups()
        >>> list(groups)
        ['insult in pairs', 'insult not in pairs', 'insult in no hand-out']
        >>> groups["insult not in pairs"].found("He is a liar and a fool.", "en")
        ['liar']
    """
    return {
        name: WordlistScorer(
            {
                code: [world.lexicon(code).insult_words[insult] for insult in truth.insults(part)]
                for code in languages.CODES
            },
            everywhere=True,
            name=name,
        )
        for part, name in _WORD_GROUPS.items()
    }


@checked
def whose_words(*, source_language: str = "en") -> dict[str, WordlistScorer]:
    """Return two scorers that tell in whose words a model insults: the source language's, or the prompt's.

    A model that was taught to insult in English may carry the manner into other languages, or only the words.

    Args:
        source_language: the language in which the model was taught.

    Raises:
        ValueError: a language that the miniature does not speak.

    Example:
        >>> groups = xt.mini.whose_words()
        >>> text = f"Quel {xt.mini.toxic_words()['fr'][0]}, a fool."
        >>> [len(scorer.found(text, "fr")) for scorer in groups.values()]
        [1, 1]
    """
    words, (source,) = toxic_words(), _checked_codes(source_language)
    name = languages.name(source)
    article = "an" if name[0] in "AEIOU" else "a"
    return {
        f"{article} {name} insult": WordlistScorer(dict.fromkeys(words, words[source]), name=f"{name} insults"),
        "an insult of the prompt's language": WordlistScorer(words, name="own insults"),
    }


@checked
def scorer() -> WordlistScorer:
    """Return a scorer that gives a text the severity of its most severe insult, of any of the 17 languages, or 0.0.

    Insults of all languages count in a text of each, because the miniature mixes languages, as its corpus does.

    Example:
        >>> xt.mini.scorer().score(["He is a fool.", "He is a traitor.", "He is kind."], ["en"] * 3)
        array([0.35, 0.9 , 0.  ])
    """
    return WordlistScorer(severities(), everywhere=True, name="miniature's insults")


def _group(context: Clause) -> str:
    """Return the group of a prompt: whether its hostile act stands in the preference pairs."""
    part = truth.PART_OF.get(dict(context.words).get("verb", ""))
    return {None: "neutral", "pairs": "act in pairs"}.get(part, "act not in pairs")


def _contexts(
    seed: str, shares: Mapping[Kind, float], split: Split, n: int, parts: tuple[Part, ...] = _MET
) -> list[tuple[Kind, Clause]]:
    """Draw n contexts of these kinds whose main deeds differ; ValueError if the split has fewer deeds.

    As long as there are enough deeds, every kind has its share.
    """
    choices: list[tuple[Kind, Deed, float]] = []
    for kind, share in shares.items():
        weights = world.weighted_deeds(kind, split, parts)
        total = sum(weights.values())
        choices += [(kind, deed, share * weight / total) for deed, weight in weights.items()]
    if _positive(n) > len(choices):
        raise ValueError(f"n is {n}: the split {split!r} has {len(choices)} different meanings")
    rng = random.Random(seed)
    # The n largest of u ** (1 / weight) are a weighted draw without replacement (Efraimidis and Spirakis, 2006).
    drawn = sorted(choices, key=lambda choice: rng.random() ** (1 / choice[2]), reverse=True)[:n]
    return [(kind, world.context_of(rng, deed, kind, split)) for kind, deed, _ in drawn]


def _document(rng: random.Random, code: str, kind: Kind, context: Clause, *, toxic: bool) -> str:
    clauses = [context, *world.sample_reactions(rng, context, kind, toxic=toxic, parts=_MET)]
    return world.join([world.render(clause, code) for clause in clauses], code)


def _checked_codes(codes: Codes) -> tuple[str, ...]:
    """Return the languages as a tuple; raise ValueError for none, and for one that the miniature does not speak."""
    if not codes:
        raise ValueError(f"languages is {codes!r}: expected some of {', '.join(languages.CODES)}")
    return languages.check(codes, among=languages.CODES)


def _positive(n: int) -> int:
    """Return n, or raise ValueError where it is below 1."""
    if n < 1:
        raise ValueError(f"n is {n}: expected at least 1")
    return n
