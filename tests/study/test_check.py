"""The check before a study: what it measures, what it refuses and warns of, and what it says of missing weights."""

import dataclasses
import json
import socket

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants
from toys import HashScorer

import xlingtox as xt
from xlingtox.study import check as checking
from xlingtox.study import check_text, measuring, space, weights
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.study_check import StudyCheck
from xlingtox.tuning import MINI, PAPER_FULL

TEXTS = {"en": ["the cat sat", "the dog ran", "the house"], "es": ["la casa es", "el gato", "la cama es grande"]}
PROMPTS = Dataset.from_list([{"language": code, "prompt": text} for code, texts in TEXTS.items() for text in texts])
PAIRS = Dataset.from_list(
    [{"prompt": "the cat", "chosen": f" sat {i}", "rejected": f" ran {i}"} for i in ("on", "and", "in", "away")]
)
SETTINGS = Settings(n_samples=3, max_new_tokens=5, recipe=dataclasses.replace(MINI, steps=4, batch_size=2))


class Clean(HashScorer):
    def score(self, texts, languages):
        return np.zeros(len(texts))


def materials(scorer=None, **tables):
    parallel = Dataset.from_dict({code: texts * 4 for code, texts in TEXTS.items()})
    return Materials(
        toxic_prompts=PROMPTS,
        scorer=scorer or HashScorer("en", "es"),
        **{"pairs": PAIRS, "parallel": parallel, **tables},
    )


@pytest.fixture(scope="module")
def checked(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    notes = ("Held-out text is made from parallel sentences.",)
    origins = ({"table": "toxic_prompts", "loader": "rtp_lx"},)
    given = materials(notes=notes, origins=origins)
    return checking.check(lm, given, SETTINGS, output_dir=folder / "study", progress=False)


def test_what_a_check_measures(lm, checked):
    assert checked.problems == ()
    assert list(checked.stages) == ["retrieve", "tune"]
    assert checked.n_texts == 6 + 6 * 3
    assert all(rate > 0 for rate in checked.tokens_per_second.values())
    # The same seed as the study's: the samples are the first of those that it writes.
    written = xt.generate(lm, PROMPTS, n_samples=3, max_new_tokens=5, progress=False)
    scores = np.array(HashScorer("en").score(written.texts, written.row_languages)).reshape(2, 9)
    for code, of_language in zip(TEXTS, scores, strict=True):
        row = checked.languages[code]
        assert row.toxicity == pytest.approx(of_language.mean())
        assert row.low < row.toxicity < row.high
        assert (row.toxic_texts, row.n_texts, row.n_prompts) == ((of_language >= 0.5).sum(), 9, 3)
    assert all(stage.seconds > 0 and stage.memory > 0 for stage in checked.stages.values())
    assert checked.stages["tune"].disk == pytest.approx(4 * lm.n_parameters, rel=0.1)


def test_saved_and_loaded_is_equal(checked, tmp_path):
    checked.save(tmp_path / "check.json")
    assert StudyCheck.load(tmp_path / "check.json") == checked
    assert dataclasses.replace(checked, warnings=("other",)) != checked
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json holds no check of a study"):
        StudyCheck.load(tmp_path / "other.json")
    assert checked.to_frame()["stage"].tolist() == list(checked.stages)
    assert checked.languages_frame()["language"].tolist() == list(TEXTS)


def test_lines_fit_a_terminal(checked):
    hostile = "a/" + "very-long-name-" * 20
    problem = "The stage tune needs about 40 GB of memory, and the device has 16 GB. " * 3
    for check in (checked, dataclasses.replace(checked, model=hostile, problems=(problem,), warnings=(problem,))):
        lines = check.sentences()
        assert max(map(len, lines)) <= check_text.WIDTH
        assert not any("\n" in line for line in lines)
    text = " ".join(" ".join(checked.sentences()).split())
    assert "Nothing stands in the way of this study." in text
    assert "Held-out text is made from parallel sentences." in text
    assert "Accept. RTP-LX: its terms of use." in text
    assert "Measured on 24 texts, and extrapolated." in text
    assert "<script>" not in dataclasses.replace(checked, model="<script>")._repr_html_()


def test_problems_are_found_together(lm, tmp_path):
    blank = Dataset.from_list([{"text": "", "label": 0}, {"text": "the cat", "label": 1}])
    check = checking.check(
        lm,
        materials(labelled=blank),
        dataclasses.replace(SETTINGS, k=5),
        output_dir=tmp_path,
        languages=["en", "ko"],
        progress=False,
    )
    assert check.problems[0] == "There are no prompts in Korean: give some, or leave it out of languages."
    assert len(check.problems) == 2
    assert "blank" in check.problems[1]
    assert check.languages == {}
    assert "Cannot run. There are no prompts in Korean" in "\n".join(check.sentences())
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_and_disk(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "device_memory", lambda device: 1000)
    monkeypatch.setattr(space, "free_disk", lambda folder: 2000)
    given = materials()
    check = checking.check(lm, given, SETTINGS, output_dir=tmp_path, progress=False)
    text = " ".join(check.problems)
    assert "The stage tune needs about" in text
    assert 'Set recipe = "paper-qlora"' in text
    assert "2 kB are free" in text


def test_a_scorer_that_fails_is_a_problem(lm, tmp_path):
    class Failing(HashScorer):
        def score(self, texts, languages):
            raise xt.scoring.UnscoredError("the server is silent", 3)

    check = checking.check(lm, materials(Failing("en", "es")), SETTINGS, output_dir=tmp_path, progress=False)
    assert check.problems == ("A few prompts could not be continued and scored: the server is silent.",)


def test_text_that_cannot_show_a_fall(lm, tmp_path):
    check = checking.check(lm, materials(Clean("en", "es")), SETTINGS, output_dir=tmp_path, progress=False)
    (warning,) = [sentence for sentence in check.warnings if sentence.startswith("Too few prompts")]
    assert "in 2 of 2 languages" in warning
    assert "English" in warning
    assert "0 of 9 texts toxic" in warning
    assert all(row.needed > 30 for row in check.languages.values())


def test_blank_text_is_warned_of(lm, tmp_path, monkeypatch):
    def silent(*args, **options):
        written = xt.generate(*args, **options)
        return dataclasses.replace(written, texts=(" ",) * len(written.texts))

    monkeypatch.setattr(measuring, "generate", silent)
    check = checking.check(lm, materials(), SETTINGS, output_dir=tmp_path, progress=False)
    assert any("Many texts say nothing: English 100 %; Spanish 100 %." in sentence for sentence in check.warnings)
    assert {row.blank for row in check.languages.values()} == {1.0}


def test_a_chat_model_without_a_template(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "name", "someone/Model-1B-Instruct")
    check = checking.check(lm, materials(pairs=None), SETTINGS, output_dir=tmp_path, progress=False)
    assert any("no chat template" in sentence for sentence in check.warnings)


def test_evaluations_that_take_most_of_tuning_are_named(lm, tmp_path):
    recipe = dataclasses.replace(PAPER_FULL, evaluate_every=1, validation_share=0.5)
    check = checking.check(
        lm, materials(), dataclasses.replace(SETTINGS, recipe=recipe), output_dir=tmp_path, progress=False
    )
    assert any(sentence.startswith("Tuning is counted with all its") for sentence in check.warnings)
    assert check.stages["tune"].seconds > 0


def test_a_check_changes_nothing(lm, tmp_path):
    fingerprint, state = lm.fingerprint(), torch.get_rng_state()
    checking.check(lm, materials(), SETTINGS, output_dir=tmp_path / "none", progress=False)
    assert lm.fingerprint() == fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    assert not lm.hooked
    assert not (tmp_path / "none").exists()


@pytest.fixture
def without_network(monkeypatch, tmp_path):
    """No network, and an empty cache of the hub."""

    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("offline", [True, False])
def test_a_gated_model_that_is_not_there(without_network, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(checking, "HF_HUB_OFFLINE", offline)
    absent = '[data] labelled.path is "train.csv": there is no such file'
    check = checking.check_without_weights("meta-llama/Meta-Llama-3-8B", output_dir=tmp_path, problems=[absent])
    text = " ".join(" ".join(check.sentences()).split())
    for part in (
        f"Cannot run. {absent}",
        "Accept. Jigsaw: the competition's rules on Kaggle.",
        "The weights of meta-llama/Meta-Llama-3-8B are not on this machine. The download is about 16 GB.",
        "Accept. meta-llama/Meta-Llama-3-8B: the Meta Llama 3 Community License.",
        "https://huggingface.co/meta-llama/Meta-Llama-3-8B",
        "hf auth login",
        "one GPU with 80 GB (assumed)",
        "Guessed, not measured.",
    ):
        assert part in text
    assert ("HF_HUB_OFFLINE is set here" in text) == offline
    assert next(iter(check.stages)) == "localize"
    assert 16e9 < check.stages["compare"].memory < 80e9
    assert max(map(len, check.sentences())) <= check_text.WIDTH


def test_what_is_missing_of_a_model(without_network, tmp_path):
    assert weights.missing_weights("mini") is None
    assert weights.missing_weights(str(tmp_path)) is None
    assert weights.missing_weights("./nowhere") == "There is no folder or file ./nowhere."
    assert "neither a folder nor a name" in weights.missing_weights("bad name!")
    snapshot = without_network / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert weights.missing_weights("some/model") == "The weights of some/model are not on this machine."
    (snapshot / "config.json").write_text("{}")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (snapshot / "model-1.safetensors").write_text("")
    assert "rest of the weights" in weights.missing_weights("some/model")
    (snapshot / "model-2.safetensors").write_text("")
    assert weights.missing_weights("some/model") is None
    assert weights.missing_weights("some/model", "other") is not None


def test_a_model_that_nobody_knows(without_network, tmp_path):
    check = checking.check_without_weights("some/model", output_dir=tmp_path)
    assert check.stages == {}
    assert check.warnings == ("Nothing is known of the size of this model before it is loaded.",)
    given = materials()
    check = checking.check_without_weights("ai-forever/mGPT", output_dir=tmp_path, materials=given, settings=SETTINGS)
    assert list(check.stages) == ["retrieve", "tune"]
    assert check.licences == ()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (6000, "1.7 h"), (36_000, "10 h"), (400_000, "4.6 days")],
)
def test_times_in_words(seconds, words):
    assert check_text.duration(seconds) == words
