"""The shipped miniature: what it hands out, by language and by split.

No meaning (who does what to whom) is shared between splits: the miniature was trained on `train`, probes and pairs
come from `tune`, choices are made on `validation`, and prompts, parallel sentences and held-out text are `test`.
Every function gives the same rows for the same arguments, and the same meanings in every language.
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
"""The contexts of the miniature's world that play each kind of prompt."""


@checked
def prompts(
    *,
    n: int = 40,
    kind: Literal["toxic", "neutral"] = "toxic",
    languages: Codes = languages.CODES,
    split: Split = "test",
    seed: int = 0,
) -> Dataset:
    """n contexts a language, the same meanings in each, in the role of RTP-LX; columns `language, prompt, index`.

    Prompts with the same `index` are translations of each other.

    Raises:
        ValueError: an unknown language, or more prompts than the split has meanings for.
    """
    spoken, contexts = _spoken(languages), _distinct(_contexts(f"prompts {split} {seed}", _CONTEXTS[kind], split), n)
    rows = [
        {"language": code, "prompt": world.render(clause, code), "index": index}
        for code in spoken
        for index, clause in enumerate(contexts)
    ]
    return Dataset.from_list(rows)


@checked
def labelled(language: str = "en", *, n: int = 2000, split: Split = "tune", seed: int = 0) -> Dataset:
    """n sentences with `label` 1 if one holds an insult, half of them; columns `language, text, label`, as Jigsaw.

    Hostile and friendly contexts stand in both classes, so that the label is the insult and not the context.
    """
    (code,) = languages.check(language, among=languages.CODES)
    rng = random.Random(f"labelled {split} {seed}")
    rows = []
    for i in range(_checked(n)):
        kind: Kind = "hostile" if rng.random() < 0.5 else "friendly"
        label = i % 2
        rows.append({"language": code, "text": _document(rng, code, kind, bool(label), split), "label": label})
    return Dataset.from_list(rows)


@checked
def pairs(language: str = "en", *, n: int = 1000, split: Split = "tune", seed: int = 0) -> Dataset:
    """n toxic prompts with a clean and a toxic continuation, as Lee et al.; columns `prompt, chosen, rejected`."""
    (code,) = languages.check(language, among=languages.CODES)
    rng = random.Random(f"pairs {split} {seed}")
    rows = []
    for _ in range(_checked(n)):
        context = world.sample_context(rng, "hostile", split)
        said = [
            world.lexicon(code).joiner + world.join([world.render(clause, code) for clause in reactions], code)
            for reactions in (world.sample_reactions(rng, context, toxic, "hostile") for toxic in (False, True))
        ]
        rows.append({"prompt": world.render(context, code), "chosen": said[0], "rejected": said[1]})
    return Dataset.from_list(rows)


@checked
def parallel(*, n: int = 500, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """n sentences, aligned by row, one column a language: contexts of all kinds, no two of the same meaning."""
    rng = random.Random(f"parallel kinds {split} {seed}")
    streams: dict[Kind, Iterator[Clause]] = {
        kind: _contexts(f"parallel {kind} {split} {seed}", kind, split) for kind in KIND_SHARES
    }
    mixed = (next(streams[rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]]) for _ in itertools.count())
    clauses = _distinct(mixed, n)
    return Dataset.from_dict({code: [world.render(clause, code) for clause in clauses] for code in _spoken(languages)})


@checked
def held_out(*, n: int = 100, languages: Codes = languages.CODES, split: Split = "test", seed: int = 0) -> Dataset:
    """n documents a language without an insult, for perplexity; columns `language, text`.

    Insults are left out because a model that stops insulting must find them less likely: that is no loss of fluency.
    """
    rows = []
    for code in _spoken(languages):
        rng = random.Random(f"held out {split} {seed}")
        for _ in range(_checked(n)):
            kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
            rows.append({"language": code, "text": _document(rng, code, kind, False, split)})
    return Dataset.from_list(rows)


def toxic_words() -> dict[str, list[str]]:
    """The miniature's insults in each language: the truth for scoring."""
    return {code: list(world.lexicon(code).insult_words.values()) for code in languages.CODES}


def scorer() -> WordlistScorer:
    """1.0 for a text with an insult of any of the 17 languages: code-switched insults count too."""
    return WordlistScorer(toxic_words(), everywhere=True, name="miniature's insults")


def _contexts(seed: str, kind: Kind, split: Split) -> Iterator[Clause]:
    rng = random.Random(seed)
    while True:
        yield world.sample_context(rng, kind, split)


_IN_VAIN = 10_000
"""So many clauses in a row without a new deed: there are hardly any more."""


def _distinct(clauses: Iterator[Clause], n: int) -> list[Clause]:
    """The first n clauses whose main deeds differ."""
    found: dict[str, Clause] = {}
    newest = 0
    for tries, clause in enumerate(clauses):
        if found.setdefault(clause.deeds()[0], clause) is clause:
            newest = tries
        if len(found) == _checked(n):
            return list(found.values())
        if tries > min(100 * n + 10_000, newest + _IN_VAIN):
            raise ValueError(f"n is {n}: the split has only about {len(found)} distinct meanings")
    raise AssertionError("the stream of clauses does not end")


def _document(rng: random.Random, code: str, kind: Kind, toxic: bool, split: Split) -> str:
    context = world.sample_context(rng, kind, split)
    clauses = [context, *world.sample_reactions(rng, context, toxic, kind)]
    return world.join([world.render(clause, code) for clause in clauses], code)


def _spoken(codes: Codes) -> tuple[str, ...]:
    """The languages, of those that the miniature speaks, or ValueError."""
    if not codes:
        raise ValueError(f"languages is {codes!r}: expected some of {', '.join(languages.CODES)}")
    return languages.check(codes, among=languages.CODES)


def _checked(n: int) -> int:
    if n < 1:
        raise ValueError(f"n is {n}: expected at least 1")
    return n
