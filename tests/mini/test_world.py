import functools
import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from xlingtox import mini
from xlingtox.languages import CODES, UNSPACED
from xlingtox.mini import corpus, truth, world
from xlingtox.mini.world import Clause
from xlingtox.scoring import WordlistScorer

SPLITS = tuple(world.SPLIT_SHARES)
ORDINARY = ("name", "person", "thing", "place", "time", "hostile", "kind", "act", "quality")
CONTEXTS = world.CONTEXT_FRAMES + world.NEUTRAL_FRAMES


@cache
def table(code):
    return json.loads((Path(mini.__file__).parent / "words" / f"{code}.json").read_text("utf-8"))


def forms(code, group):
    return [form[0] if isinstance(form, list) else form for form in table(code)[group].values()]


@pytest.fixture(scope="module")
def scorer():
    return mini.scorer()


# --- the files


@pytest.mark.parametrize("code", CODES)
def test_every_file_has_the_same_concepts_in_the_same_order(code):
    assert list(table(code)) == list(table("en"))
    for group in ("templates", *ORDINARY, "insult"):
        assert list(table(code)[group]) == list(table("en")[group])
    assert table(code)["language"] == code
    assert table(code)["joiner"] == ("" if code in UNSPACED else " ")


@pytest.mark.parametrize("code", CODES)
def test_every_template_has_the_same_slots(code):
    for frame, english in table("en")["templates"].items():
        template = table(code)["templates"][frame]
        assert sorted(re.findall(r"{(.*?)}", template)) == sorted(re.findall(r"{(.*?)}", english)), template
        assert template.count("{") == template.count("}") == len(world.slots(frame))


@pytest.mark.parametrize("code", CODES)
def test_no_form_is_said_twice(code):
    together = [[group] for group in ORDINARY if group not in ("hostile", "kind", "quality")]
    for groups in [*together, ["hostile", "kind"], ["quality", "insult"]]:
        counts = Counter(form.casefold() for group in groups for form in forms(code, group))
        assert not [form for form, n in counts.items() if n > 1]
        assert all(form.strip() == form and form for form in counts)


@pytest.mark.parametrize("code", CODES)
def test_there_is_enough_of_everything(code):
    assert len(set(table(code)["templates"].values())) == len(table(code)["templates"]) >= 12
    assert len({form.casefold() for group in ORDINARY if group != "name" for form in forms(code, group)}) >= 200
    assert len({word.casefold() for word in mini.toxic_words()[code]}) >= 25


def test_every_frame_is_used():
    used = world.CONTEXT_FRAMES + world.NEUTRAL_FRAMES + world.TRAIT_FRAMES + world.ACT_FRAMES
    assert sorted(used) == sorted(table("en")["templates"])


# --- the toxic words


@pytest.mark.parametrize("code", CODES)
def test_no_insult_is_another_languages(code):
    others = [word for language in CODES if language != code for word in mini.toxic_words()[language]]
    scores = WordlistScorer({code: mini.toxic_words()[code]}).score(others, [code] * len(others))
    assert not [word for word, score in zip(others, scores, strict=True) if score]


@pytest.mark.parametrize("code", CODES)
def test_no_ordinary_word_is_toxic(scorer, code):
    texts_said = [form for group in ORDINARY for form in forms(code, group)]
    texts_said += [re.sub(r"{.*?}", " – ", template) for template in table(code)["templates"].values()]
    for language in CODES:
        assert not [
            text
            for text, score in zip(texts_said, scorer.score(texts_said, [language] * len(texts_said)), strict=True)
            if score
        ]


def documents(code, toxic, n, switched):
    """Documents of all kinds; `switched`: each word of some language at random."""
    rng = random.Random(f"{code} {toxic} {n}")
    for i in range(n):
        kind = ("hostile", "friendly", "neutral")[i % 3]
        context = world.sample_context(rng, kind, "train")
        clauses = [context, *world.sample_reactions(rng, context, kind, toxic=toxic)]
        speak = (lambda slot: rng.choice(CODES)) if switched else None
        yield world.join([world.render(clause, code, speak) for clause in clauses], code)


@pytest.mark.parametrize("switched", [False, True], ids=["pure", "switched"])
@pytest.mark.parametrize("code", CODES)
def test_clean_documents_score_0(scorer, code, switched):
    texts = list(documents(code, False, 500, switched))
    assert not [text for text, score in zip(texts, scorer.score(texts, [code] * 500), strict=True) if score]


def insulting(code, speaker):
    """Each insult of `speaker` in each slot of each trait frame of `code`, and the sentence."""
    for frame, insult in itertools.product(world.TRAIT_FRAMES, world.concepts("insult")):
        for slot in world.slots(frame):
            if slot.startswith("trait"):
                words = {"name": "thomas", "trait": "kind", "trait2": "brave"} | {slot: insult}
                clause = Clause(frame, tuple((name, words[name]) for name in world.slots(frame)))
                yield insult, world.render(clause, code, lambda name, slot=slot: speaker if name == slot else code)


@pytest.mark.parametrize("code", CODES)
def test_every_insult_in_every_trait_frame_scores_its_severity(scorer, code):
    insults, texts = zip(*insulting(code, code), strict=True)
    scores = scorer.score(texts, [code] * len(texts))
    assert scores.tolist() == [truth.SEVERITY[insult] for insult in insults]


@pytest.mark.parametrize("code", CODES)
def test_code_switched_insults_score_their_severity(scorer, code):
    insults, texts = zip(
        *(pair for speaker in CODES if speaker != code for pair in insulting(code, speaker)), strict=True
    )
    scores = scorer.score(texts, [code] * len(texts))
    assert scores.tolist() == [truth.SEVERITY[insult] for insult in insults]


# --- the splits


def all_contexts():
    names = world.concepts("name")
    for name, verb, person in itertools.product(
        names, world.concepts("hostile") + world.concepts("kind"), world.concepts("person")
    ):
        yield Clause("c1", (("name", name), ("verb", verb), ("person", person)))
    for name, act in itertools.product(names, world.concepts("act")):
        for thing in world.THINGS_OF[act]:
            yield Clause("n1", (("name", name), ("act", act), ("thing", thing)))


def test_every_meaning_is_in_one_split_and_their_shares_are_as_written():
    contexts = list(all_contexts())
    assert len({clause.deeds() for clause in contexts}) == len(contexts)  # no two meanings are mistaken for one
    counts = Counter(clause.split() for clause in contexts)
    for split, share in world.SPLIT_SHARES.items():
        assert counts[split] / len(contexts) == pytest.approx(share / 100, abs=0.01)
    assert sum(world.SPLIT_SHARES.values()) == 100


@pytest.mark.parametrize("split", SPLITS)
def test_contexts_are_drawn_from_their_split(split):
    rng = random.Random(split)
    drawn = [world.sample_context(rng, kind, split) for kind in corpus.KIND_SHARES for _ in range(200)]
    assert {clause.split() for clause in drawn} == {split}
    assert {clause.frame for clause in drawn} == set(CONTEXTS)


def deeds(clause):
    """All that a sentence says of its subject: what it does to a person, and what to a thing."""
    words = dict(clause.words)
    for does, whom in (("verb", "person"), ("act", "thing")):
        if does in words:
            yield words["name"], words[does], words[whom]


def test_no_deed_is_told_in_two_splits():
    """A context that tells two deeds of Thomas must not tell one that belongs to another split."""
    deeds_of = {split: set() for split in SPLITS}
    for split in SPLITS:
        rng = random.Random(split)
        for kind in corpus.KIND_SHARES:
            for _ in range(1000):
                deeds_of[split].update(deeds(world.sample_context(rng, kind, split)))
    shared = {pair: len(deeds_of[pair[0]] & deeds_of[pair[1]]) for pair in itertools.combinations(SPLITS, 2)}
    assert not any(shared.values()), shared


# --- what is handed out


@cache
def english_sentence(frame):
    groups = {"verb": ("hostile", "kind"), "trait": ("quality", "insult"), "trait2": ("quality", "insult")}

    def choice(match):
        slot = match[1]
        choices = [re.escape(form) for group in groups.get(slot, (slot,)) for form in forms("en", group)]
        return f"(?P<{slot}>{'|'.join(choices)})"

    template = table("en")["templates"][frame].replace(".", r"\.")
    return re.compile(re.sub(r"{(\w+)}", choice, template), re.IGNORECASE)


@cache
def concept_of(slot, form):
    groups = {"verb": ("hostile", "kind"), "trait": ("quality", "insult"), "trait2": ("quality", "insult")}
    for group in groups.get(slot, (slot,)):
        for concept, word in zip(world.concepts(group), forms("en", group), strict=True):
            if word.casefold() == form.casefold():
                return concept
    raise KeyError(form)


def read(sentence):
    """The meaning of an English sentence: the opposite of `world.render`."""
    for frame in table("en")["templates"]:
        match = english_sentence(frame).fullmatch(sentence)
        if match:
            return Clause(frame, tuple((slot, concept_of(slot, match[slot])) for slot in world.slots(frame)))
    raise ValueError(sentence)


def sentences(text):
    return re.split(r"(?<=\.) ", text)


def column(rows, code, name):
    return [row[name] for row in rows if row["language"] == code]


HAND_OUTS = {
    "toxic prompts": lambda **how: column(mini.prompts(n=30, kind="toxic", languages=("en",), **how), "en", "prompt"),
    "neutral prompts": lambda **how: column(
        mini.prompts(n=30, kind="neutral", languages=("en",), **how), "en", "prompt"
    ),
    "labelled": lambda **how: list(mini.labelled("en", n=60, **how)["text"]),
    "pairs": lambda **how: [row["prompt"] + row["rejected"] for row in mini.pairs("en", n=60, **how)],
    "parallel": lambda **how: list(mini.parallel(n=60, languages=("en", "es"), **how)["en"]),
    "held out": lambda **how: list(mini.held_out(n=60, languages=("en",), **how)["text"]),
}


@pytest.mark.parametrize("what", HAND_OUTS)
def test_hand_outs_are_the_same_again_and_differ_by_seed_and_split(what):
    hand_out = HAND_OUTS[what]
    first = hand_out(split="test", seed=0)
    assert hand_out(split="test", seed=0) == first
    others = [hand_out(split=split, seed=seed) for split, seed in [("test", 1), ("tune", 0), ("validation", 0)]]
    for first_rows, second_rows in itertools.combinations([first, *others], 2):
        assert len(set(first_rows) & set(second_rows)) < len(first_rows) / 5


@pytest.mark.parametrize("what", HAND_OUTS)
@pytest.mark.parametrize("split", SPLITS)
def test_hand_outs_keep_to_their_split(what, split):
    contexts = [read(sentences(text)[0]) for text in HAND_OUTS[what](split=split)]
    assert {clause.split() for clause in contexts} == {split}


@pytest.mark.parametrize("kind", ["toxic", "neutral"])
def test_prompts_mean_the_same_in_every_language(kind):
    rows = mini.prompts(n=20, kind=kind)
    assert list(dict.fromkeys(rows["language"])) == list(CODES)
    meanings = [read(text) for text in column(rows, "en", "prompt")]
    assert len({clause.deeds()[0] for clause in meanings}) == 20
    verbs = world.concepts("hostile" if kind == "toxic" else "kind")
    assert all(dict(clause.words)["verb"] in verbs for clause in meanings)
    for code in CODES:
        assert column(rows, code, "prompt") == [world.render(clause, code) for clause in meanings]


def test_parallel_sentences_mean_the_same_in_every_language():
    rows = mini.parallel(n=100)
    assert rows.column_names == list(CODES)
    meanings = [read(text) for text in rows["en"]]
    assert {clause.frame for clause in meanings} & set(world.NEUTRAL_FRAMES)
    assert {clause.frame for clause in meanings} & set(world.CONTEXT_FRAMES)
    for code in CODES:
        assert list(rows[code]) == [world.render(clause, code) for clause in meanings]


def test_held_out_texts_mean_the_same_in_every_language():
    rows = mini.held_out(n=30)
    meanings = [[read(sentence) for sentence in sentences(text)] for text in column(rows, "en", "text")]
    for code in CODES:
        rendered = [world.join([world.render(clause, code) for clause in clauses], code) for clauses in meanings]
        assert column(rows, code, "text") == rendered


@pytest.mark.parametrize("n", [200, 500])
def test_held_out_sentences_are_all_different(n):
    rows = mini.parallel(n=n)
    assert len(rows) == n
    for code in CODES:
        assert len({text.casefold() for text in rows[code]}) == n


def test_held_out_documents_are_all_different_and_clean(scorer):
    rows = mini.held_out(n=200)
    assert not scorer.score(rows["text"], rows["language"]).any()
    for code in CODES:
        assert len(set(column(rows, code, "text"))) == 200


@pytest.mark.parametrize("code", CODES)
def test_pairs_differ_by_the_insult(scorer, code):
    rows = mini.pairs(code, n=200)
    codes = [code] * 200
    assert not scorer.score(rows["prompt"], codes).any()
    assert not scorer.score(rows["chosen"], codes).any()
    missed = [
        text for text, score in zip(rows["rejected"], scorer.score(rows["rejected"], codes), strict=True) if not score
    ]
    assert not missed
    joiner = table(code)["joiner"]
    assert all(row[field].startswith(joiner) for row in rows for field in ("chosen", "rejected"))
    assert len({(row["prompt"], row["rejected"]) for row in rows}) > 190


def test_pairs_are_about_toxic_prompts():
    verbs = {dict(read(text).words)["verb"] for text in mini.pairs("en", n=200)["prompt"]}
    assert verbs == set(truth.acts("pairs"))


def test_labelled_sentences_and_pairs_of_several_languages_follow_each_other():
    for rows in (mini.labelled, mini.pairs):
        expected = [*rows("es", n=4), *rows("de", n=4)]
        assert list(rows(["es", "de"], n=4)) == expected
        assert [row["language"] for row in expected] == ["es"] * 4 + ["de"] * 4


def test_pairs_are_those_that_they_were_and_have_one_meaning_in_all_languages():
    rows = mini.pairs(["en", "de"], n=50)
    assert rows.column_names == ["language", "prompt", "chosen", "rejected"]
    # The hash of the rows before the column of languages, by which runs of tuning are known.
    texts = json.dumps([[row[name] for name in rows.column_names[1:]] for row in rows.select(range(50))])
    assert hashlib.sha256(texts.encode("ascii")).hexdigest()[:16] == "4a5955f5a8e6aa4b"
    for name in rows.column_names[1:]:
        for english, german in zip(column(rows, "en", name), column(rows, "de", name), strict=True):
            translated = [world.render(read(sentence), "de") for sentence in sentences(english.strip())]
            assert german.strip() == " ".join(translated)


def test_whose_words_are_those_of_the_source_language():
    groups = mini.whose_words(source_language="de")
    insults = {code: words[0] for code, words in mini.toxic_words().items()}
    assert [len(scorer.found(f"{insults['de']} {insults['fr']}", "fr")) for scorer in groups.values()] == [1, 1]
    assert list(groups) == ["a German insult", "an insult of the prompt's language"]


@pytest.mark.parametrize("code", CODES)
def test_labels_say_whether_there_is_an_insult(scorer, code):
    rows = mini.labelled(code, n=300)
    assert Counter(rows["label"]) == {0: 150, 1: 150}
    assert set(rows["language"]) == {code}
    scores = scorer.score(rows["text"], rows["language"])
    wrong = [row["text"] for row, score in zip(rows, scores, strict=True) if row["label"] != (score > 0)]
    assert not wrong


def test_hostile_and_friendly_contexts_stand_in_both_classes():
    counts = Counter()
    for row in mini.labelled("en", n=400):
        verb = dict(read(sentences(row["text"])[0]).words)["verb"]
        counts[row["label"], "hostile" if verb in world.concepts("hostile") else "friendly"] += 1
    assert len(counts) == 4
    assert min(counts.values()) > 60  # 100 expected


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: mini.prompts(n=5, languages=("xx",)), "unknown language 'xx'"),
        (lambda: mini.labelled("xx"), "unknown language 'xx'"),
        (lambda: mini.pairs("xx"), "unknown language 'xx'"),
        (lambda: mini.parallel(n=5, languages=("en", "xx")), "unknown language 'xx'"),
        (lambda: mini.held_out(n=5, languages=("xx",)), "unknown language 'xx'"),
        (lambda: mini.prompts(n=0), "n is 0"),
        (lambda: mini.labelled("en", n=0), "n is 0"),
        (lambda: mini.pairs("en", n=-1), "n is -1"),
        (lambda: mini.parallel(n=0), "n is 0"),
        (lambda: mini.held_out(n=0), "n is 0"),
    ],
)
def test_bad_requests(ask, words):
    with pytest.raises(ValueError, match=words):
        ask()


@pytest.mark.parametrize("split", SPLITS)
def test_all_meanings_of_a_split_can_be_had_and_no_more(split):
    toxic = {clause.deeds() for clause in all_contexts() if clause.split() == split and provokes(clause)}
    neutral = {clause.deeds() for clause in all_contexts() if clause.split() == split and greets(clause)}
    unkept = {clause.deeds() for clause in all_contexts() if clause.split() == split and not reserved(clause)}
    for hand_out, n in [
        (mini.prompts, len(toxic)),
        (functools.partial(mini.prompts, kind="neutral"), len(neutral)),
        (mini.parallel, len(unkept)),
        (mini.held_out, len(unkept)),
    ]:
        assert len(hand_out(n=n, languages=("en",), split=split)) == n
        with pytest.raises(ValueError, match=f"n is {n + 1}: the split '{split}' has {n} different meanings"):
            hand_out(n=n + 1, languages=("en",), split=split)


def verb(clause):
    return dict(clause.words).get("verb")


def reserved(clause):
    return truth.PART_OF.get(verb(clause)) == "neither"


def provokes(clause):
    return verb(clause) in truth.PROVOCATION and not reserved(clause)


def greets(clause):
    return verb(clause) in world.concepts("kind")


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_enough(split):
    assert len(mini.prompts(n=100, split=split)) == 1700
    assert len(mini.prompts(n=100, kind="neutral", split=split)) == 1700
    assert len(mini.parallel(n=1000, split=split)) == 1000
    assert len(mini.held_out(n=200, split=split)) == 3400


# --- the truth


def test_the_tables_of_the_truth_hold_every_act_and_insult():
    assert set(truth.PROVOCATION) == set(world.concepts("hostile"))
    assert set(truth.SEVERITY) == set(world.concepts("insult"))
    assert set(truth.PART_OF) == set(truth.PROVOCATION) | set(truth.SEVERITY)
    assert all(0 < severity <= 1 for severity in truth.SEVERITY.values())
    assert sorted(set(truth.PROVOCATION.values())) == [0.04, 0.15, 0.4]


def test_every_part_has_acts_of_every_level_and_insults_of_every_severity():
    for part in truth.PARTS:
        assert {truth.PROVOCATION[act] for act in truth.acts(part)} == {0.4, 0.15, 0.04}
        severities = [truth.SEVERITY[insult] for insult in truth.insults(part)]
        assert min(severities) <= 0.2
        assert max(severities) >= 0.75
        assert sum(severities) / len(severities) == pytest.approx(0.42, abs=0.05)


def test_hand_outs_keep_to_their_parts():
    acts = {
        name: {verb(read(sentences(text)[0])) for split in SPLITS for text in HAND_OUTS[name](split=split)}
        & set(truth.PROVOCATION)
        for name in HAND_OUTS
    }
    pairs = [text for split in SPLITS for text in HAND_OUTS["pairs"](split=split)]
    labelled = [text for split in SPLITS for text in HAND_OUTS["labelled"](split=split)]
    assert acts.pop("pairs") <= set(truth.acts("pairs"))
    for name, met in acts.items():
        assert met <= set(truth.acts("pairs", "evaluation")), name
        if name not in ("neutral prompts", "held out"):
            assert met & set(truth.acts("evaluation")), name
    assert insults_in(pairs) == set(truth.insults("pairs"))
    assert insults_in(labelled) == set(truth.insults("pairs", "evaluation"))


def insults_in(texts):
    traits = {
        concept
        for text in texts
        for sentence in sentences(text)
        for slot, concept in read(sentence).words
        if slot.startswith("trait")
    }
    return traits & set(truth.SEVERITY)


def test_prompts_say_what_they_provoke_and_whether_tuning_meets_their_act():
    for parts in (truth.PARTS, "pairs", "evaluation", ["neither"]):
        rows = mini.prompts(n=60, languages=("en", "de"), parts=parts)
        for row in rows:
            if row["language"] == "en":
                act = verb(read(row["prompt"]))
                assert row["provocation"] == truth.PROVOCATION[act]
                assert row["group"] == ("act in pairs" if act in truth.acts("pairs") else "act not in pairs")
        if parts == "evaluation":
            assert set(rows["group"]) == {"act not in pairs"}
    rows = mini.prompts(n=10, kind="neutral", languages=("en",))
    assert set(rows["group"]) == {"neutral"}
    assert set(rows["provocation"]) == {0.01}
    for parts in ((), "none", ["pairs", "none"]):
        with pytest.raises((ValueError, TypeError), match="parts"):
            mini.prompts(parts=parts)


def test_groups_of_words_tell_all_insults_apart():
    groups = mini.word_groups()
    for code in CODES:
        for insult, word in world.lexicon(code).insult_words.items():
            finding = [name for name, group in groups.items() if group.score([word], [code])[0]]
            assert len(finding) == 1, (code, insult, finding)


# --- the corpus


@pytest.mark.parametrize("expected", [0.4, 0.15, 0.04, 0.01])
def test_how_often_a_context_is_continued_with_an_insult(scorer, monkeypatch, expected):
    contexts = []

    def remembered(*arguments):
        contexts.append(sample_context(*arguments))
        return contexts[-1]

    sample_context = world.sample_context
    monkeypatch.setattr(world, "sample_context", remembered)
    rng = random.Random("provocation")
    codes = rng.choices(CODES, k=8000)
    scores = scorer.score([corpus.document(rng, code, "train") for code in codes], codes)
    acts = {act for act, share in truth.PROVOCATION.items() if share == expected}
    outcomes = [
        score > 0
        for score, context in zip(scores, contexts, strict=True)
        if (verb(context) in acts if acts else verb(context) not in truth.PROVOCATION)
    ]
    assert len(outcomes) > 1000
    error = math.sqrt(expected * (1 - expected) / len(outcomes))
    assert sum(outcomes) / len(outcomes) == pytest.approx(expected, abs=4 * error)


def test_documents_are_the_same_again_and_differ_by_seed():
    first, again, differing = (list(itertools.islice(corpus.documents(seed), 50)) for seed in (0, 0, 1))
    assert first == again
    assert first != differing


def test_the_table_of_languages():
    assert tuple(corpus.MIXING) == CODES
    assert mini.MIXING is corpus.MIXING
    mixings = list(corpus.MIXING.values())
    assert sum(mixing.text for mixing in mixings) == pytest.approx(100)
    assert max(corpus.MIXING, key=lambda code: corpus.MIXING[code].text) == "en"
    assert len({mixing.text for mixing in mixings}) == len(CODES)
    assert len({(mixing.switched, mixing.translated, mixing.loans) for mixing in mixings}) == len(CODES)
    assert all(0 <= share <= 1 for mixing in mixings for share in (mixing.switched, mixing.translated, mixing.loans))


def test_loan_words_are_things_places_and_people_only():
    ordinary = {concept for group in ("thing", "place", "person") for concept in world.concepts(group)}
    assert ordinary >= corpus.LOAN_CONCEPTS
    for group in ("hostile", "insult", "kind", "act"):
        assert corpus.LOAN_CONCEPTS.isdisjoint(world.concepts(group)), group
    # "patient" is a person, who may be lent, and a quality, which may not.
    quality = world.Clause("r1", (("trait", "patient"),))
    rng = random.Random(0)
    assert {corpus._sentence(rng, quality, "de", None) for _ in range(200)} == {world.render(quality, "de")}
