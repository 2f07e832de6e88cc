"""The shipped miniature's data: prompts, labelled sentences, pairs, parallel and held-out text, in 17 languages.

The miniature is a small language model of a made-up world. Its data come in four splits, and no meaning (who does what
to whom) occurs in two of them. The model was trained on `train`. Probes and preference pairs come from `tune`, choices
are made on `validation`, and prompts, parallel sentences and held-out text are from `test`. Every function gives the
same rows for the same arguments, and the same meanings in every language.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from datasets import Dataset

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.mini import world
from xlingtox.mini.corpus import KIND_SHARES, MIXING
from xlingtox.mini.spoken import identify_language
from xlingtox.mini.world import Clause, Kind, Split
from xlingtox.scoring import WordlistScorer

__all__ = [
    "MIXING",
    "held_out",
    "identify_language",
    "labelled",
    "pairs",
    "parallel",
    "prompts",
    "scorer",
    "toxic_words",
]

Codes: TypeAlias = str | Sequence[str]

_CONTEXTS: Mapping[str, Kind] = {"toxic": "hostile", "neutral": "friendly"}
"""Each kind of prompt, and the kind of context in the miniature's world that becomes such a prompt."""


@checked
def prompts(
    *,
    n: int = 40,
    kind: Literal["toxic", "neutral"] = "toxic",
    languages: Codes = languages.CODES,
    split: Split = "test",
    seed: int = 0,
) -> Dataset:
    """Return n prompts in each language, with the same meanings in all, as RTP-LX has them.

    The miniature continues a toxic prompt, in which somebody does somebody harm, mostly with an insult. After a neutral
    prompt it mostly does not.

    Returns:
        Columns `language, prompt, index`. Prompts with the same `index` are translations of each other.

    Raises:
        ValueError: an unknown language, or more prompts than the split has meanings for.

    Example:
        >>> xt.mini.prompts(n=1, languages=["en", "de"])["prompt"]
        Column(['...', '...'])
    """
    contexts = _distinct(_contexts(f"prompts {split} {seed}", _CONTEXTS[kind], split), n)
    rows = [
        {"language": code, "prompt": world.render(clause, code), "index": index}
        for code in _checked_codes(languages)
        for index, clause in enumerate(contexts)
    ]
    return Dataset.from_list(rows)


@checked
def labelled(language: str = "en", *, n: int = 2000, split: Split = "tune", seed: int = 0) -> Dataset:
    """Return n sentences in one language with labels, for a probe, as Jigsaw has them; half of them hold an insult.

    The same kinds of contexts occur in both classes, so that the label tells of the insult and not of the context.

    Returns:
        Columns `language, text, label`; `label` is 1 where the text holds an insult, and 0 elsewhere.

    Example:
        >>> xt.mini.labelled("en", n=4)["label"]
        Column([0, 1, 0, 1])
    """
    (code,) = languages.check(language, among=languages.CODES)
    rng = random.Random(f"labelled {split} {seed}")
    rows = []
    for i in range(_positive(n)):
        kind: Kind = "hostile" if rng.random() < 0.5 else "friendly"
        label = i % 2
        rows.append(
            {"language": code, "text": _document(rng, code, kind, toxic=bool(label), split=split), "label": label}
        )
    return Dataset.from_list(rows)


@checked
def pairs(language: str = "en", *, n: int = 1000, split: Split = "tune", seed: int = 0) -> Dataset:
    """Return n preference pairs in one language, as Lee et al. have them.

    Returns:
        Columns `prompt, chosen, rejected`: a toxic prompt, a clean and a toxic continuation of it.

    Example:
        >>> xt.mini.pairs("en", n=2).column_names
        ['prompt', 'chosen', 'rejected']
    """
    (code,) = languages.check(language, among=languages.CODES)
    rng = random.Random(f"pairs {split} {seed}")
    rows = []
    for _ in range(_positive(n)):
        context = world.sample_context(rng, "hostile", split)
        continuations = [
            world.lexicon(code).joiner + world.join([world.render(clause, code) for clause in reactions], code)
            for reactions in (world.sample_reactions(rng, context, toxic, "hostile") for toxic in (False, True))
        ]
        rows.append({"prompt": world.render(context, code), "chosen": continuations[0], "rejected": continuations[1]})
    return Dataset.from_list(rows)


@checked
def parallel(*, n: int = 500, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """Return n sentences in each language, for retrieval: contexts of all kinds, no two of the same meaning.

    Returns:
        One column a language. The sentences of one row are translations of each other.

    Example:
        >>> xt.mini.parallel(n=5, languages=["en", "es"]).shape
        (5, 2)
    """
    rng = random.Random(f"parallel kinds {split} {seed}")
    streams: dict[Kind, Iterator[Clause]] = {
        kind: _contexts(f"parallel {kind} {split} {seed}", kind, split) for kind in KIND_SHARES
    }
    mixed = (next(streams[rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]]) for _ in itertools.count())
    clauses = _distinct(mixed, n)
    return Dataset.from_dict(
        {code: [world.render(clause, code) for clause in clauses] for code in _checked_codes(languages)}
    )


@checked
def held_out(*, n: int = 100, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """Return n documents in each language without an insult, for perplexity.

    A model that stops insulting finds insults less likely. That is no loss of fluency, so the documents have none.

    Returns:
        Columns `language, text`.

    Example:
        >>> xt.mini.held_out(n=2, languages=["en", "es"])["language"]
        Column(['en', 'en', 'es', 'es'])
    """
    rows = []
    for code in _checked_codes(languages):
        rng = random.Random(f"held out {split} {seed}")
        for _ in range(_positive(n)):
            kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
            rows.append({"language": code, "text": _document(rng, code, kind, toxic=False, split=split)})
    return Dataset.from_list(rows)


def toxic_words() -> dict[str, list[str]]:
    """Return the miniature's insults in each language: the ground truth for scoring.

    Example:
        >>> "fool" in xt.mini.toxic_words()["en"]
        True
    """
    return {code: list(world.lexicon(code).insult_words.values()) for code in languages.CODES}


def scorer() -> WordlistScorer:
    """Return a scorer that gives 1.0 to a text with an insult of any of the 17 languages, and 0.0 to any other.

    Insults of all languages count in a text of each, because the miniature mixes languages, as its corpus does.

    Example:
        >>> xt.mini.scorer().score(["He is a fool.", "He is kind."], ["en", "en"])
        array([1., 0.])
    """
    return WordlistScorer(toxic_words(), everywhere=True, name="miniature's insults")


def _contexts(seed: str, kind: Kind, split: Split) -> Iterator[Clause]:
    rng = random.Random(seed)
    while True:
        yield world.sample_context(rng, kind, split)


_MOST_REPEATS = 10_000
"""After this many clauses in a row without a new deed, the search for more is given up."""


def _distinct(clauses: Iterator[Clause], n: int) -> list[Clause]:
    """Return the first n clauses whose main deeds differ."""
    by_deed: dict[str, Clause] = {}
    newest = 0
    for tries, clause in enumerate(clauses):
        if by_deed.setdefault(clause.deeds()[0], clause) is clause:
            newest = tries
        if len(by_deed) == _positive(n):
            return list(by_deed.values())
        if tries > min(100 * n + 10_000, newest + _MOST_REPEATS):
            raise ValueError(f"n is {n}: the split has only about {len(by_deed)} distinct meanings")
    raise AssertionError("the stream of clauses does not end")


def _document(rng: random.Random, code: str, kind: Kind, *, toxic: bool, split: Split) -> str:
    context = world.sample_context(rng, kind, split)
    clauses = [context, *world.sample_reactions(rng, context, toxic, kind)]
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
