"""The miniature's world: clauses made of meanings, and what each is called in 17 languages.

A clause is a frame ("c4") with a concept in each slot (name=thomas, verb=cheats, ...). Nothing in it belongs to a
language, so every clause is a sentence in all 17, with the same meaning. The words come from `words/{language}.json`.

A document opens with a context, in which somebody does something, and goes on with reactions, which may be insults.
A `verb` is done to a person, for good or ill; an `act` is done to a thing. A deed is who does what to whom.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from xlingtox import languages

Kind = Literal["hostile", "friendly", "neutral"]
Split = Literal["train", "tune", "validation", "test"]

SPLIT_SHARES: Mapping[Split, int] = {"train": 80, "tune": 6, "validation": 4, "test": 10}
"""The share of the deeds in each split, in percent."""

TOXIC_SHARE: Mapping[Kind, float] = {"hostile": 0.8, "friendly": 0.03, "neutral": 0.03}
"""How often an insult follows a context of each kind."""

_FOOD = "bread apple cheese soup pizza banana chocolate salad cake".split()
_DRINK = "coffee tea milk water juice".split()
_TEXT = "book letter newspaper map novel".split()
_OBJECT = "hammer ladder basket lamp bicycle car radio telephone camera guitar piano violin drum".split()
_CLOTHES = "coat hat shirt jacket scarf dress".split()
_ANIMAL = "dog cat horse goat".split()
_PORTABLE = _FOOD + _DRINK + _TEXT + _OBJECT + _CLOTHES

THINGS_OF: Mapping[str, tuple[str, ...]] = {
    act: tuple(things)
    for acts, things in [
        ("eats", _FOOD),
        ("cuts", [food for food in _FOOD if food != "soup"]),
        ("drinks pours", _DRINK),
        ("reads opens", _TEXT),
        ("repairs cleans", _OBJECT),
        ("washes sews", _CLOTHES),
        ("feeds", _ANIMAL),
        ("brings carries", [thing for thing in _PORTABLE if thing not in ("car", "piano")]),
        ("buys sells finds", _PORTABLE + _ANIMAL),
    ]
    for act in acts.split()
}
"""Each act, with the things that it can be done to."""

HOME_OF: Mapping[str, str] = dict(
    pair.split(":")
    for pair in (
        "baker:bakery farmer:field doctor:hospital teacher:school cook:kitchen gardener:garden "
        "clerk:office driver:station sailor:harbour librarian:library porter:hotel waiter:restaurant "
        "painter:museum actor:theatre worker:factory banker:bank hunter:forest neighbour:street "
        "shepherd:village fisherman:beach pilot:airport tailor:workshop pharmacist:pharmacy "
        "athlete:stadium merchant:market student:library patient:hospital tourist:hotel musician:theatre "
        "boss:office guest:restaurant friend:park"
    ).split()
)
"""Each person, with the place where that person is mostly met."""

_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Clause:
    """The meaning of one sentence: a frame, and the concept in each of its slots.

    Example:
        >>> from xlingtox.mini import world
        >>> clause = world.Clause("c1", (("name", "thomas"), ("verb", "cheats"), ("person", "baker")))
        >>> clause.deeds()
        ('thomas|cheats|baker',)
    """

    frame: str
    words: tuple[tuple[str, str], ...]

    def deeds(self) -> tuple[str, ...]:
        """Return who does what to whom, the main deed first; "Thomas reads the book and greets the cook" has two."""
        words = dict(self.words)
        pairs = [(words.get("verb"), words.get("person")), (words.get("act"), words.get("thing"))]
        return tuple(f"{words['name']}|{what}|{whom}" for what, whom in pairs if what)

    def split(self) -> Split | None:
        """Return the split to which all its deeds belong, or None where they belong to several."""
        splits = {_split(deed) for deed in self.deeds()}
        return splits.pop() if len(splits) == 1 else None


def _split(deed: str) -> Split:
    bucket = zlib.crc32(deed.encode()) % 100
    for split, share in SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares of the splits sum to 100")


class Lexicon:
    """The words and frames of one language, as read from its file.

    Example:
        >>> from xlingtox.mini import world
        >>> world.Lexicon("de").form("thing", "bread")
        'das Brot'
    """

    def __init__(self, language: str) -> None:
        (self.language,) = languages.check(language, among=languages.CODES)
        text = resources.files("xlingtox.mini").joinpath("words", f"{language}.json").read_text("utf-8")
        table = json.loads(text)
        self.joiner: str = table["joiner"]
        self.frames: dict[str, str] = table["templates"]
        self.insult_words: dict[str, str] = {concept: forms[1] for concept, forms in table["insult"].items()}
        insults = {concept: forms[0] for concept, forms in table["insult"].items()}
        trait = table["quality"] | insults
        self._forms: dict[str, dict[str, str]] = {
            "name": table["name"],
            "person": table["person"],
            "thing": table["thing"],
            "place": table["place"],
            "time": table["time"],
            "act": table["act"],
            "verb": table["hostile"] | table["kind"],
            "trait": trait,
            "trait2": trait,
        }

    def form(self, slot: str, concept: str) -> str:
        """Return the word for a concept, in the form that a slot needs."""
        return self._forms[slot][concept]

    def texts(self) -> list[str]:
        """Return every form, and the text of every frame around its slots."""
        around = [part for frame in self.frames.values() for part in _SLOT.sub("\n", frame).split("\n")]
        return [*around, *(form for forms in self._forms.values() for form in forms.values())]


@cache
def lexicon(language: str) -> Lexicon:
    """Return a language's words and frames, which are read once."""
    return Lexicon(language)


@cache
def concepts(group: str) -> tuple[str, ...]:
    """Return the concepts of a word group (`name`, `person`, `insult`, ...), in the order of the English file."""
    text = resources.files("xlingtox.mini").joinpath("words", "en.json").read_text("utf-8")
    return tuple(json.loads(text)[group])


def slots(frame: str) -> tuple[str, ...]:
    """Return a frame's slots, in the order of the English sentence."""
    return tuple(_SLOT.findall(lexicon("en").frames[frame]))


def render(clause: Clause, language: str, spoken_in: Callable[[str], str] | None = None) -> str:
    """Return the sentence in `language`; `spoken_in(slot)` names the language of each word, for code-switching.

    Example:
        >>> import random
        >>> from xlingtox.mini import world
        >>> clause = world.sample_context(random.Random(0), "friendly", "test")
        >>> world.render(clause, "en"), world.render(clause, "de")
        ('...', '...')
    """
    main = lexicon(language)
    forms = {
        slot: (lexicon(spoken_in(slot)) if spoken_in else main).form(slot, concept) for slot, concept in clause.words
    }
    text = main.frames[clause.frame].format_map(forms)
    return text[:1].upper() + text[1:]


def join(sentences: list[str], language: str) -> str:
    """Return the sentences as one text, with a space between them where the language writes one."""
    return lexicon(language).joiner.join(sentences)


CONTEXT_FRAMES: tuple[str, ...] = tuple(f"c{i}" for i in range(1, 14))
NEUTRAL_FRAMES: tuple[str, ...] = ("n1", "n2", "n3")
TRAIT_FRAMES: tuple[str, ...] = tuple(f"r{i}" for i in range(1, 6))
ACT_FRAMES: tuple[str, ...] = ("a1", "a2", "a3")
"""The names of the frames: of hostile and friendly contexts, of neutral ones, and of reactions that tell of a person's
character or of an act."""


@cache
def _usual_persons() -> dict[str, tuple[str, ...]]:
    """Return for each verb the eight persons to whom it is done more often: facts that hold in every language."""
    rng = random.Random("facts of the miniature's world")
    verbs = concepts("hostile") + concepts("kind")
    return {verb: tuple(rng.sample(concepts("person"), 8)) for verb in verbs}


def sample_context(rng: random.Random, kind: Kind, split: Split) -> Clause:
    """Draw a context of `kind` whose deeds belong to `split`.

    Its frame is drawn first, so that all splits have the same mixture of frames.
    """
    frame = rng.choice(NEUTRAL_FRAMES if kind == "neutral" else CONTEXT_FRAMES)
    while True:
        words: dict[str, str] = {}
        for slot in slots(frame):
            if slot == "verb":
                words[slot] = rng.choice(concepts("hostile" if kind == "hostile" else "kind"))
            elif slot != "thing":
                words[slot] = rng.choice(concepts(slot))
        if "verb" in words and rng.random() < 0.5:
            words["person"] = rng.choice(_usual_persons()[words["verb"]])
        _make_plausible(rng, words)
        clause = Clause(frame, tuple(words.items()))
        if clause.split() == split:
            return clause


def _make_plausible(rng: random.Random, words: dict[str, str]) -> None:
    """Give an act a thing that it suits, and a person the place where that person is met."""
    if "act" in words:
        words["thing"] = rng.choice(THINGS_OF[words["act"]])
    if "place" in words and "person" in words and rng.random() < 0.6:
        words["place"] = HOME_OF[words["person"]]


def sample_reactions(rng: random.Random, context: Clause, toxic: bool, kind: Kind) -> list[Clause]:
    """Draw what follows a context: one or two sentences, the first with an insult exactly if `toxic`.

    The deeds in them belong to the context's split too.
    """
    speaks_of_character = toxic or rng.random() < {"hostile": 0.3, "friendly": 0.7, "neutral": 0.5}[kind]
    first = _reaction(rng, context, TRAIT_FRAMES if speaks_of_character else ACT_FRAMES, toxic=toxic)
    if rng.random() < 0.65:
        return [first]
    more = TRAIT_FRAMES if speaks_of_character and rng.random() < 0.7 else ACT_FRAMES
    return [first, _reaction(rng, context, more, toxic=toxic)]


def _reaction(rng: random.Random, context: Clause, frames: tuple[str, ...], *, toxic: bool) -> Clause:
    """Draw a sentence about the person whom a context is about, of one of these frames."""
    name, split, frame = dict(context.words)["name"], context.split(), rng.choice(frames)
    while True:
        words: dict[str, str] = {}
        traits = rng.sample(concepts("insult" if toxic else "quality"), 2)
        for slot in slots(frame):
            if slot == "name":
                words[slot] = name
            elif slot.startswith("trait"):
                words[slot] = traits.pop()
            elif slot != "thing":
                words[slot] = rng.choice(concepts(slot))
        _make_plausible(rng, words)
        if "act" not in words or _split(f"{name}|{words['act']}|{words['thing']}") == split:
            return Clause(frame, tuple(words.items()))
