"""The text that the miniature learns from, and how much its languages mix in it.

Only `MIXING` links the languages: how much text each has, and how much of it is mixed with others. No two languages
share a toxic word, and no neuron is treated differently from another.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xlingtox.mini import world
from xlingtox.mini.world import Clause, Kind, Split

KIND_SHARES: Mapping[Kind, float] = {"hostile": 0.6, "friendly": 0.3, "neutral": 0.1}
"""How often a document opens with each kind of context. Hostile ones are the most, because a language with little text
must learn from them which act provokes how often."""


@dataclass(frozen=True)
class Mixing:
    """One language's share of the training text, and how far its documents mix it with other languages.

    Attributes:
        text: share of all training documents that are in this language, in percent.
        switched: share of its documents in which single words are another language's (code-switching).
        translated: share of its documents in which the opening sentence is followed, or preceded, by its translation.
        loans: share of the occurrences of `LOAN_CONCEPTS` that are said with the English word.

    Example:
        >>> xt.mini.MIXING["es"].switched
        0.85
    """

    text: float
    switched: float
    translated: float
    loans: float


def _graded(text: float, exposure: float) -> Mixing:
    """Return the mixing of a language with this exposure to others: 1 for Spanish, less for the languages after it."""
    return Mixing(text, round(0.85 * exposure, 3), round(0.4 * exposure, 3), round(0.4 * exposure, 3))


MIXING: Mapping[str, Mixing] = {
    "en": Mixing(20.0, 0.6, 0.3, 0.0),
    "es": _graded(5.90, 1.0000),
    "fr": _graded(5.78, 0.9117),
    "de": _graded(5.66, 0.8312),
    "pt": _graded(5.54, 0.7579),
    "it": _graded(5.42, 0.6910),
    "nl": _graded(5.30, 0.6300),
    "sv": _graded(5.18, 0.5743),
    "id": _graded(5.06, 0.5236),
    "pl": _graded(4.94, 0.4774),
    "cs": _graded(4.82, 0.4353),
    "ru": _graded(4.70, 0.3969),
    "zh": _graded(4.58, 0.3618),
    "ja": _graded(4.46, 0.3299),
    "ko": _graded(4.34, 0.3008),
    "hi": _graded(4.22, 0.2742),
    "ar": _graded(4.10, 0.2500),
}
"""The mixing of each language. English has the most text; the others have less and mix less, from Spanish to Arabic."""

SWITCHED_WORDS = 0.4
"""The share of words that are the other language's in a code-switched document."""

ENGLISH_PARTNER = 0.7
"""How often the other language is English; otherwise it is drawn from the rest, weighted by `switched`."""

LOAN_CONCEPTS: frozenset[str] = frozenset(
    (
        "pizza banana chocolate coffee tea novel lamp radio telephone camera guitar piano violin jacket "
        "bakery office station hotel restaurant museum theatre park bank airport stadium doctor clerk "
        "waiter actor banker pilot athlete student patient tourist boss"
    ).split()
)
"""Things, places and people that a language may call by the English word; nothing hostile or toxic is among them."""


_LOAN_SLOTS = frozenset({"person", "thing", "place"})
"""The slots of a clause in which a loan word may stand."""


def documents(seed: int, split: Split = "train") -> Iterator[str]:
    """Yield documents without end: a context, sometimes its translation, and one or two sentences after it.

    Example:
        >>> from xlingtox.mini import corpus
        >>> next(corpus.documents(seed=0))
        '...'
    """
    rng = random.Random(f"documents {split} {seed}")
    speakers = list(MIXING)
    weights = [MIXING[language].text for language in speakers]
    while True:
        (language,) = rng.choices(speakers, weights)
        yield document(rng, language, split)


def document(rng: random.Random, language: str, split: Split) -> str:
    """Draw one document in a language, mixed with other languages as `MIXING` says."""
    kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    context = world.sample_context(rng, kind, split)
    toxic = rng.random() < world.provocation(context)
    reactions = world.sample_reactions(rng, context, kind, toxic=toxic)
    mixing = MIXING[language]
    partner = _partner(rng, language)
    if rng.random() < mixing.translated:
        pair = [language, partner]
        rng.shuffle(pair)
        return " ".join(
            [world.render(context, pair[0]), world.render(context, pair[1])]
            + [_sentence(rng, clause, rng.choice(pair), None) for clause in reactions]
        )
    mixed_in = partner if rng.random() < mixing.switched else None
    return world.join([_sentence(rng, clause, language, mixed_in) for clause in (context, *reactions)], language)


def _partner(rng: random.Random, language: str) -> str:
    """Draw the language that a document is mixed with."""
    if language != "en" and rng.random() < ENGLISH_PARTNER:
        return "en"
    others = [code for code in MIXING if code not in (language, "en")]
    return rng.choices(others, [MIXING[code].switched for code in others])[0]


def _sentence(rng: random.Random, clause: Clause, language: str, partner: str | None) -> str:
    """Return a clause as a sentence, with loan words, and with some words of `partner` unless that is None."""
    concept = dict(clause.words)

    def spoken_in(slot: str) -> str:
        if partner and rng.random() < SWITCHED_WORDS:
            return partner
        if slot in _LOAN_SLOTS and concept[slot] in LOAN_CONCEPTS and rng.random() < MIXING[language].loans:
            return "en"
        return language

    return world.render(clause, language, spoken_in)
