import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from xlingtox import mini
from xlingtox.mini import corpus, train

RECIPE = train.Recipe(
    vocabulary=700,
    n_layers=1,
    n_heads=2,
    d_model=16,
    positions=40,
    window=32,
    batch=2,
    steps=3,
    tokenizer_documents=300,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini") / "made" / "for it"
    train.train(out, seed=0, recipe=RECIPE, progress=False)
    return out


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    """As anyone would load it."""
    return AutoTokenizer.from_pretrained(checkpoint)


def test_the_same_seed_gives_the_same_bytes(checkpoint, tmp_path, capfd):
    torch.rand(7)  # what else is drawn in this process does not matter
    train.train(tmp_path / "again", seed=0, recipe=RECIPE, progress=False)
    train.train(tmp_path / "other", seed=1, recipe=RECIPE, progress=False)
    assert capfd.readouterr().out == ""
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (checkpoint / name).read_bytes()
    other_weights = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert other_weights != (checkpoint / "model.safetensors").read_bytes()


def test_training_changes_the_weights(checkpoint, tmp_path):
    train.train(tmp_path, seed=0, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    one, three = (load_file(folder / "model.safetensors") for folder in (tmp_path, checkpoint))
    assert one.keys() == three.keys()
    assert all(not torch.equal(one[name], three[name]) for name in one)


def test_a_folder_that_holds_something_is_refused_and_kept(checkpoint, tmp_path):
    before = {file: file.read_bytes() for file in checkpoint.iterdir()}
    with pytest.raises(OSError, match="is there already: choose a new or an empty folder"):
        train.train(checkpoint, seed=1, recipe=RECIPE, progress=False)
    assert {file: file.read_bytes() for file in checkpoint.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="is there already"):
        train.train(tmp_path / "file", seed=1, recipe=RECIPE, progress=False)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(train.files, "write_json", full)
    with pytest.raises(OSError, match="no space left"):
        train.train(tmp_path / "new", seed=0, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_is_an_ordinary_one(checkpoint, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.config.vocab_size == len(tokenizer) <= RECIPE.vocabulary
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.padding_side == "left"
    assert {file.suffix for file in checkpoint.iterdir()} == {".json", ".safetensors"}
    assert len({file.stat().st_mode for file in checkpoint.iterdir()}) == 1
    batch = tokenizer(["Thomas cheats the baker.", "トーマスは"], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


def test_what_was_done_is_written_down(checkpoint):
    record = json.loads((checkpoint / "training.json").read_text("utf-8"))
    assert record["seed"] == 0
    assert record["seconds"] > 0
    assert record["recipe"] == dataclasses.asdict(RECIPE)
    assert {"python", "torch", "transformers", "tokenizers"} <= record["versions"].keys()
    assert record["log"][-1]["step"] == RECIPE.steps
    assert record["log"][-1]["loss"] == pytest.approx(math.log(RECIPE.vocabulary), rel=0.1)  # hardly trained
    assert record["parameters"] == sum(
        weight.numel() for weight in load_file(checkpoint / "model.safetensors").values()
    )


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text", ["  two  spaces , and a comma .", "do n't 's\n\tend ", "कि़ ज़ालिम", "é e\u0301", "🐐", "\r\n"]
)
def test_awkward_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_special_token_is_added(tokenizer):
    assert tokenizer("")["input_ids"] == []
    ids = tokenizer("Thomas")["input_ids"]
    assert tokenizer.eos_token_id not in ids


def test_every_hindi_word_is_one_piece(tokenizer):
    """A combining mark belongs to its word."""
    words = json.loads((Path(mini.__file__).parent / "words" / "hi.json").read_text("utf-8"))
    forms = [
        form
        for group, words_of_group in words.items()
        if isinstance(words_of_group, dict) and group != "insult"
        for form in words_of_group.values()
    ]
    forms += mini.toxic_words()["hi"]
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for form in forms:
        for word in form.replace("।", " ").replace(",", " ").replace("-", " ").split():
            if "{" not in word:
                assert len(split(word)) == len(split(" " + word)) == 1, word


def test_windows_begin_with_a_document_and_hold_whole_ones(tokenizer):
    rows = list(itertools.islice(train.windows(tokenizer, RECIPE, seed=3), 20))
    assert {len(row) for row in rows} == {RECIPE.window}
    documents = set(itertools.islice(corpus.documents(3), 1000))
    for row in rows:
        *complete, cut = tokenizer.decode(row).split(tokenizer.eos_token)
        assert set(complete) <= documents
        assert any(text.startswith(cut.rstrip("\ufffd")) for text in documents)
