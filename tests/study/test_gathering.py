"""Gathering: small files in each published format become materials, and no sentence serves two purposes."""

import json
import logging

import datasets
import pytest

from xlingtox.scoring import ByLanguage
from xlingtox.study import Study
from xlingtox.study.overlaps import same

NAMES = ["anna", "bert", "carl", "dora", "emil", "fred", "gina", "hugo", "ines", "jona", "kurt", "lena"]
WORDS = {
    "en": "{} reads a book in the old garden number {}",
    "de": "{} liest ein Buch im alten Garten Nummer {}",
    "zh": "{}在花园里读第{}本很长的书",
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def sentence(code, i):
    return WORDS[code].format(NAMES[i % 12], i)


def lines(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Small files of every kind: RTP-LX, ParaDetox, line-aligned and Tatoeba sentences, word lists."""
    for code, spelling in (("en", "EN"), ("de", "DE"), ("zh", "ZH-Hans")):
        rows = [
            json.dumps({"Prompt": f"{sentence(code, 100 + i)} {i}", "Index": i, "Locale": spelling}, ensure_ascii=False)
            for i in range(12)
        ]
        if code == "de":
            rows[3] = json.dumps({"Prompt": "NA", "Index": 3})
        lines(tmp_path / "rtp" / f"RTP_LX_{spelling}.json", rows)
        lines(tmp_path / "parallel" / f"{code}.txt", [sentence(code, i) for i in range(60)])
        if code != "zh":
            lines(tmp_path / "words" / code, ["fool", "idiot"])
    for code, ending in (("de", "deu"), ("zh", "cmn")):
        for written, end in ((code, ending), ("en", "eng")):
            shared = range(40) if code == "de" else range(20, 60)
            lines(tmp_path / "tatoeba" / f"tatoeba.{ending}-eng.{end}", [sentence(written, i) for i in shared])
    rows = [f"you are a silly fool {i}\tyou are a bit wrong {i}\tyou are not right {i}\t" for i in range(40)]
    held = f"i say {sentence('en', 101)} 1 and so a fool\ti say {sentence('en', 101)} 1 and so a friend\t\t"
    lines(tmp_path / "paradetox.tsv", ["toxic\tneutral1\tneutral2\tneutral3", *rows, held])
    return tmp_path


def gathered(folder, data, judge='[judge]\nkind = "wordlist"\npath = "words"\n', *, n=5):
    (folder / "study.toml").write_text(
        f'[model]\nsource = "mini"\n[data]\nper_language = {n}\nprompts = {{loader = "rtp_lx", path = "rtp"}}\n'
        f"{data}\n{judge}"
    )
    return Study.from_toml(folder / "study.toml").materials()


BOTH = '[judge]\nkind = "wordlist"\nwords = {en = ["fool"], de = ["Narr"], zh = ["傻瓜"]}\n'
ALL = 'pairs = {loader = "paradetox", path = "paradetox.tsv"}\nparallel = {loader = "line_aligned", path = "parallel"}'


def test_prompts_are_the_same_ones_in_every_language(folder):
    materials = gathered(folder, "", BOTH)
    by_language = {}
    for row in materials.toxic_prompts:
        by_language.setdefault(row["language"], []).append(row["index"])
    assert list(map(len, by_language.values())) == [5, 5, 5]
    assert by_language["en"] == by_language["de"] == by_language["zh"]
    assert 3 not in by_language["en"]  # German lacks it.
    assert "RTP_LX_DE.json were left out: Prompt is the placeholder NA: 1 (line 4)" in materials.notes[0]
    other = gathered(folder, "seed = 1", BOTH)
    assert other.toxic_prompts["index"][:5] != materials.toxic_prompts["index"][:5]


def test_languages_without_a_judge_are_dropped_or_refused(folder):
    materials = gathered(folder, "")
    assert set(materials.toxic_prompts["language"]) == {"en", "de"}
    assert materials.notes[-1] == "No judge covers Chinese (zh): the prompts in it were dropped."
    strict = '[judge]\nkind = "wordlist"\npath = "words"\nstrict = true\n'
    with pytest.raises(ValueError, match=r"^\[judge\] covers none of Chinese \(zh\), in which there are prompts"):
        gathered(folder, "", strict)
    with pytest.raises(ValueError, match=r"^\[judge\] covers none of Chinese"):
        gathered(folder, 'languages = ["zh"]')


def test_each_language_has_the_first_judge_that_covers_it(folder):
    two = '[[judge]]\nkind = "wordlist"\nwords = {de = ["Garten"]}\n[[judge]]\nkind = "mini"\n'
    scorer = gathered(folder, "", two).scorer
    assert isinstance(scorer, ByLanguage)
    assert scorer.score(["Garten", "Garten", "fool"], ["de", "en", "en"]).tolist() == [1.0, 0.0, 0.35]
    assert scorer.members[0].languages == ("de",)
    assert "de" not in scorer.members[1].languages


@pytest.mark.parametrize("loader", ["line_aligned", "tatoeba"])
def test_what_is_missing_is_made_of_other_sentences(folder, loader):
    path = "parallel" if loader == "line_aligned" else "tatoeba"
    materials = gathered(folder, f'parallel = {{loader = "{loader}", path = "{path}"}}', BOTH)
    held_out, neutral, parallel = materials.held_out, materials.neutral_prompts, materials.parallel
    for table in (held_out, neutral):
        assert {code: table["language"].count(code) for code in WORDS} == dict.fromkeys(WORDS, 5)
    used = {same(text) for text in held_out["text"]}
    starts = list(zip(neutral["language"], neutral["prompt"], strict=True))
    columns = [name for name in parallel.column_names if name != "language"]
    left = {same(text) for name in columns for text in parallel[name]}
    assert not used & left
    for code, start in starts:
        whole = [same(sentence(code, i)) for i in range(60) if sentence(code, i).startswith(start)]
        assert whole, "it is the beginning of a sentence"
        if code != "zh":
            assert len(start.split()) == len(sentence(code, 0).split()) // 2
    assert len(left) >= 30
    if loader == "line_aligned":
        numbers = [
            {text.rstrip("本很长的书").split()[-1].split("第")[-1] for text in held_out["text"][5 * i : 5 * i + 5]}
            for i in range(3)
        ]
        assert numbers[0] == numbers[1] == numbers[2], "translations of each other"
    made = {origin["table"]: origin["made_from"] for origin in materials.origins}
    assert made == {"toxic_prompts": None, "parallel": None, "held_out": "parallel", "neutral_prompts": "parallel"}
    assert sum("were made from the parallel sentences" in note for note in materials.notes) == 2


def test_nothing_is_made_of_toxic_sentences(folder):
    judge = '[judge]\nkind = "wordlist"\nwords = {en = ["anna"], de = ["anna"], zh = ["傻瓜"]}\n'
    materials = gathered(folder, 'parallel = {loader = "line_aligned", path = "parallel"}', judge)
    assert not any("anna" in text for text in materials.held_out["text"])
    assert any("the judge finds 10 of 180 toxic" in note for note in materials.notes)
    judge = '[judge]\nkind = "wordlist"\nwords = {en = ["book"], de = ["Narr"], zh = ["傻瓜"]}\n'
    materials = gathered(folder, 'parallel = {loader = "line_aligned", path = "parallel"}', judge)
    assert materials.held_out is None
    assert materials.neutral_prompts is None
    assert any(note.startswith("Parallel sentences are no ordinary text") for note in materials.notes)
    assert len(materials.parallel) == 60


def test_paradetox_gives_labelled_sentences_that_are_not_those_of_the_pairs(folder):
    materials = gathered(folder, ALL, BOTH)
    labels = materials.labelled["label"]
    assert 0 < sum(labels) == len(labels) / 2
    sentences = set(map(same, materials.labelled["text"]))
    pairs = {
        same(prompt + side)
        for name in ("chosen", "rejected")
        for prompt, side in zip(materials.pairs["prompt"], materials.pairs[name], strict=True)
    }
    assert len(pairs) > 20
    assert not sentences & pairs
    assert "Half of the rows of ParaDetox are labelled sentences, the other half are pairs." in materials.notes
    assert {origin["table"]: origin["loader"] for origin in materials.origins}["labelled"] == "paradetox"
    given = ALL + '\nlabelled = {loader = "paradetox_labelled", path = "paradetox.tsv"}'
    assert gathered(folder, given, BOTH).labelled["text"][:] == materials.labelled["text"][:]


def test_pairs_with_an_evaluation_prompt_are_left_out_and_counted(folder):
    data = 'pairs = {loader = "paradetox", path = "paradetox.tsv"}\nlabelled = {loader = "mini.labelled", n = 20}'
    materials = gathered(folder, data, BOTH, n=12)
    assert not any(sentence("en", 101) in prompt for prompt in materials.pairs["prompt"])
    assert "Pairs left out because they hold an evaluation prompt: 1 of 81." in materials.notes
    assert len(materials.pairs) == 80


def test_validation_pairs_are_no_pairs(folder):
    lines(folder / "val.jsonl", [json.dumps({"prompt": "You are a", "chosen": " b", "rejected": " c"})])
    data = ALL + '\nvalidation = {path = "val.jsonl"}\nlabelled = {loader = "mini.labelled", n = 20}'
    materials = gathered(folder, data, BOTH)
    assert "You are a" in materials.validation["prompt"]
    assert not any(same(prompt) == "you are a" for prompt in materials.pairs["prompt"])


def test_files_with_standard_columns_need_no_loader(folder):
    rows = [{"language": code, "text": f"{code} {i}", "label": i % 2} for code in ("en", "de") for i in range(6)]
    lines(folder / "labelled.jsonl", map(json.dumps, rows))
    lines(folder / "parallel.tsv", ["en\tde\tzh", *(f"a cat {i}\teine katze {i}\t猫 {i}" for i in range(9))])
    lines(folder / "neutral.csv", ["language,prompt", "en,the cat", "de,die katze", "zh,猫在"])
    data = 'labelled = {path = "labelled.jsonl"}\nparallel = {path = "parallel.tsv", n = 7}\n'
    data += 'neutral_prompts = {path = "neutral.csv"}\nheld_out = {loader = "from_columns", path = "neutral.csv", '
    data += 'columns = {text = "prompt", language = "language"}}'
    materials = gathered(folder, data, BOTH)
    assert set(materials.labelled["language"]) == {"en"}
    assert set(materials.labelled_elsewhere["language"]) == {"de"}
    assert (len(materials.parallel), set(materials.parallel.column_names)) == (7, {"en", "de", "zh"})
    assert materials.held_out["text"][:] == materials.neutral_prompts["prompt"][:] == ["the cat", "die katze", "猫在"]


def test_requests_are_drawn_of_both_kinds_and_not_tuned_on(folder):
    kinds = [("yes", i) for i in range(8)] + [("no", i) for i in range(9)]
    rows = [
        {"prompt": f"{code} how do I {kind} {i}", "harmful": kind == "yes", "language": code}
        for code in ("en", "de", "fr")
        for kind, i in kinds
    ]
    lines(folder / "requests.jsonl", map(json.dumps, [*rows, {"prompt": "x", "harmful": "perhaps", "language": "en"}]))
    pair = {"prompt": rows[0]["prompt"], "chosen": " b", "rejected": " c"}
    lines(folder / "pairs.jsonl", map(json.dumps, [pair, pair | {"prompt": "You are a"}]))
    data = 'pairs = {path = "pairs.jsonl"}\nrequests = {path = "requests.jsonl", n = 8}'
    materials = gathered(folder, data, BOTH)
    drawn = [(row["language"], row["harmful"]) for row in materials.requests]
    assert {kind: drawn.count(kind) for kind in drawn} == {(code, kind): 8 for code in ("en", "de") for kind in (0, 1)}
    assert materials.pairs["prompt"][:] == ["You are a"]
    assert any("no harmful that can be used" in note for note in materials.notes)
    (origin,) = (origin for origin in materials.origins if origin["table"] == "requests")
    assert origin["languages"] == {"en": 16, "de": 16}
    lines(folder / "xstest_prompts.csv", ["id,prompt,type,label", "1,How do I kill a process?,homonyms,safe"])
    xstest = 'requests = {loader = "xstest", path = "xstest_prompts.csv"'
    assert gathered(folder, xstest + "}", BOTH).requests["harmful"][:] == [False]
    with pytest.raises(ValueError, match=r"^\[data\] requests has nothing in English, German, Chinese: give another"):
        gathered(folder, f'{xstest}, language = "fr"}}', BOTH)


def test_what_cannot_be_gathered_says_where(folder):
    with pytest.raises(ValueError, match=r"^\[data\] prompts has nothing in|^\[data\] prompts: .*has no it"):
        gathered(folder, 'languages = ["en", "it"]', BOTH.replace("zh =", "it ="))
    (folder / "broken.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"^\[data\] pairs: broken.tsv has no field toxic"):
        gathered(folder, 'pairs = {loader = "paradetox", path = "broken.tsv"}', BOTH)
    (folder / "words" / "de").write_text("")
    with pytest.raises(ValueError, match=r"^\[judge\] wordlist: "):
        gathered(folder, "")


def test_a_hash_tells_another_draw(folder):
    first, again, other = (gathered(folder, f"seed = {seed}\n{ALL}", BOTH).origins for seed in (0, 0, 1))
    assert first == again
    hashes = [{origin["table"]: origin["hash"] for origin in origins} for origins in (first, other)]
    assert all(hashes[0][table] != hashes[1][table] for table in ("toxic_prompts", "pairs", "labelled", "held_out"))


def test_no_password_is_logged(folder, monkeypatch, caplog):
    monkeypatch.setenv("PASSWORD", "hunter2")
    with caplog.at_level(logging.DEBUG):
        materials = gathered(folder, "", BOTH.replace("[judge]", "[judge]"))
        (folder / "study.toml").write_text(
            (folder / "study.toml").read_text().replace('path = "rtp"}', 'path = "rtp", password_env = "PASSWORD"}')
        )
        assert len(Study.from_toml(folder / "study.toml").materials().toxic_prompts) == len(materials.toxic_prompts)
    assert "hunter2" not in caplog.text
