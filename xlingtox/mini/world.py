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
from typing import Literal, TypeAlias

from xlingtox import languages
from xlingtox.mini import truth
from xlingtox.mini.truth import PARTS, Part

Kind = Literal["hostile", "friendly", "neutral"]
Split = Literal["train", "tune", "validation", "test"]

SPLIT_SHARES: Mapping[Split, int] = {"train": 80, "tune": 6, "validation": 4, "test": 10}
"""The share of the deeds in each split, in percent."""

_OF_CHARACTER: Mapping[Kind, float] = {"hostile": 0.3, "friendly": 0.7, "neutral": 0.5}
"""How often a reaction without an insult tells of a person's character, after a context of each kind."""

USUAL = 0.5
"""How often a verb is done to one of its eight usual persons, who are facts of this world in every language."""

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

    def pieces(self, slot: str, concept: str) -> list[str]:
        """Return the form cut where an insult begins and ends: ["ein ", "Dummkopf"]; any other form is one piece."""
        form, insult = self.form(slot, concept), self.insult_words.get(concept)
        if insult is None or not slot.startswith("trait"):
            return [form]
        before, after = form.split(insult, 1)
        return [piece for piece in (before, insult, after) if piece]

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

Deed: TypeAlias = tuple[str, str, str]
"""Who does what to whom: a name, a verb or an act, and a person or a thing."""


@cache
def _usual_persons() -> dict[str, tuple[str, ...]]:
    """Return for each verb the eight persons to whom it is done more often: facts that hold in every language."""
    rng = random.Random("facts of the miniature's world")
    verbs = concepts("hostile") + concepts("kind")
    return {verb: tuple(rng.sample(concepts("person"), 8)) for verb in verbs}


@cache
def deeds(kind: Kind, split: Split, parts: tuple[Part, ...] = PARTS) -> tuple[Deed, ...]:
    """Return every deed of a split that a context of this kind can tell; hostile acts are of these parts.

    Example:
        >>> from xlingtox.mini import world
        >>> world.deeds("neutral", "test")[0]
        ('thomas', ..., ...)
    """
    if kind == "neutral":
        done = [(act, thing) for act in concepts("act") for thing in THINGS_OF[act]]
    else:
        verbs = truth.acts(*parts) if kind == "hostile" else concepts("kind")
        done = [(verb, person) for verb in verbs for person in concepts("person")]
    all_deeds = ((name, what, whom) for name in concepts("name") for what, whom in done)
    return tuple(deed for deed in all_deeds if _split("|".join(deed)) == split)


def weighted_deeds(kind: Kind, split: Split, parts: tuple[Part, ...] = PARTS) -> dict[Deed, float]:
    """Return every deed with a number that says how much more often than others it is told: usual ones more often."""
    usual = {} if kind == "neutral" else _usual_persons()
    once_usual = 1 + USUAL / (1 - USUAL) * len(concepts("person")) / 8
    return {deed: once_usual if deed[2] in usual.get(deed[1], ()) else 1.0 for deed in deeds(kind, split, parts)}


@cache
def _by_what(kind: Kind, split: Split, parts: tuple[Part, ...]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return for each verb or act, and each person or thing, the names of those who do it in a split."""
    table: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, what, whom in deeds(kind, split, parts):
        by_whom = table.setdefault(what, {})
        by_whom[whom] = (*by_whom.get(whom, ()), name)
    return table


@cache
def _acts_of(name: str, split: Split) -> dict[str, tuple[str, ...]]:
    """Return the acts of a person in a split, each with the things that it is done to."""
    table: dict[str, tuple[str, ...]] = {}
    for who, act, thing in deeds("neutral", split):
        if who == name:
            table[act] = (*table.get(act, ()), thing)
    return table


def provocation(context: Clause) -> float:
    """Return how often the corpus goes on with an insult after this context."""
    return truth.PROVOCATION.get(dict(context.words).get("verb", ""), truth.UNPROVOKED)


def sample_context(rng: random.Random, kind: Kind, split: Split, parts: tuple[Part, ...] = PARTS) -> Clause:
    """Draw a context of `kind` whose deeds belong to `split`, with a hostile act of one of these parts.

    Verbs and acts are drawn evenly, and all splits have the same mixture of frames.
    """
    by_what = _by_what(kind, split, parts)
    what = rng.choice(list(by_what))
    by_whom = by_what[what]
    whom = rng.choice(list(by_whom))
    if kind != "neutral" and rng.random() < USUAL:
        whom = rng.choice([person for person in _usual_persons()[what] if person in by_whom] or [whom])
    return context_of(rng, (rng.choice(by_whom[whom]), what, whom), kind, split)


def context_of(rng: random.Random, deed: Deed, kind: Kind, split: Split) -> Clause:
    """Draw a context that tells this deed; a second deed in it belongs to `split` too."""
    name, what, whom = deed
    neutral = kind == "neutral"
    frame = rng.choice(NEUTRAL_FRAMES if neutral else CONTEXT_FRAMES)
    words = {"name": name} | ({"act": what, "thing": whom} if neutral else {"verb": what, "person": whom})
    return _filled(rng, frame, words, split)


def _filled(rng: random.Random, frame: str, words: dict[str, str], split: Split) -> Clause:
    """Fill the other slots of a frame: an act with a thing that it suits, a person's place, any time."""
    if "act" in slots(frame) and "act" not in words:
        acts = _acts_of(words["name"], split)
        words["act"] = rng.choice(list(acts))
        words["thing"] = rng.choice(acts[words["act"]])
    for slot in slots(frame):
        if slot not in words:
            words[slot] = rng.choice(concepts(slot))
            if slot == "place" and "person" in words and rng.random() < 0.6:
                words[slot] = HOME_OF[words["person"]]
    return Clause(frame, tuple((slot, words[slot]) for slot in slots(frame)))


def sample_reactions(
    rng: random.Random, context: Clause, kind: Kind, *, toxic: bool, parts: tuple[Part, ...] = PARTS
) -> list[Clause]:
    """Draw what follows a context: one or two sentences, the first with an insult exactly if `toxic`.

    The deeds in them belong to the context's split too, and insults are of these parts.
    """
    speaks_of_character = toxic or rng.random() < _OF_CHARACTER[kind]
    traits = truth.insults(*parts) if toxic else concepts("quality")
    first = _reaction(rng, context, TRAIT_FRAMES if speaks_of_character else ACT_FRAMES, traits)
    if rng.random() < 0.65:
        return [first]
    more = TRAIT_FRAMES if speaks_of_character and rng.random() < 0.7 else ACT_FRAMES
    return [first, _reaction(rng, context, more, traits)]


def _reaction(rng: random.Random, context: Clause, frames: tuple[str, ...], traits: tuple[str, ...]) -> Clause:
    """Draw a sentence about the person whom a context is about, of one of these frames."""
    name, split, frame = dict(context.words)["name"], context.split(), rng.choice(frames)
    if split is None:
        raise ValueError(f"{context} tells deeds of several splits")
    drawn = dict(zip(("trait", "trait2"), rng.sample(traits, 2), strict=True))
    words = {slot: drawn[slot] for slot in slots(frame) if slot in drawn}
    return _filled(rng, frame, {"name": name, **words}, split)
