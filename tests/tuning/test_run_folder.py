"""The folder of a run: whose it is, what is written into it, and what is never deleted."""

import copy
import dataclasses
import json

import preferences
import pytest
import torch
import trl
from preferences import PAIRS, RECIPE, Begun
from tokenizers import processors

from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import callback, tune_dpo

tuned, untrained = preferences.tuned, preferences.untrained


@pytest.mark.parametrize("below", [".", "out", "out/deeper"])
def test_a_folder_that_cannot_be_written(tuned, untrained, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        tune_dpo(tuned.lm, PAIRS, output_dir=file / below, recipe=RECIPE, progress=False)
    assert file.read_text() == "mine"


def test_a_run_that_came_to_nothing_leaves_the_folder(tuned, tmp_path, monkeypatch):
    def on_train_begin(self, args, state, control, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(callback.TrainingMonitor, "on_train_begin", on_train_begin)
        with pytest.raises(MemoryError, match=r"while tuning: set the recipe's gradient_checkpointing, or"):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert not list(tmp_path.iterdir())
    shorter = dataclasses.replace(RECIPE, steps=1)
    tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=shorter, progress=False)
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"]


def test_a_run_that_got_somewhere_keeps_the_folder_when_it_breaks_off(tuned, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, save_every=2)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(callback.TrainingMonitor, "on_step_begin", on_step_begin)
        with pytest.raises(ZeroDivisionError):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    with pytest.raises(ValueError, match="holds another run"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_what_is_written_has_ordinary_permissions(tuned):
    """Those of safetensors would be the user's alone."""
    files = [path for path in tuned.folder.rglob("*") if path.is_file()]
    assert (tuned.folder / "model.safetensors") in files
    assert {path.stat().st_mode for path in files} == {(tuned.folder / "config.json").stat().st_mode}


def test_a_finished_run_is_only_loaded(tuned, monkeypatch):
    monkeypatch.setattr("trl.DPOTrainer", None)
    _, lm, after, folder = tuned
    assert tune_dpo(lm, PAIRS, output_dir=folder, recipe=RECIPE, progress=False).fingerprint() == after.fingerprint()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipe": dataclasses.replace(RECIPE, beta=0.2)}, r"another run \(other recipe\)"),
        ({"pairs": PAIRS.select([0, 1, 2])}, r"another run \(other pairs, pairs_hash\)"),
        ({"validation": PAIRS}, r"another run \(other validation, validation_hash\)"),
    ],
)
def test_a_folder_of_another_run_is_refused(tuned, untrained, changed, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned.lm, output_dir=tuned.folder, progress=False, **{"pairs": PAIRS, "recipe": RECIPE} | changed)


def test_another_model_is_another_run_and_a_strange_checkpoint_is_none(tuned, untrained, model, tmp_path):
    with pytest.raises(ValueError, match=r"another run \(other model\)"):
        tune_dpo(tuned.after, PAIRS, output_dir=tuned.folder, recipe=RECIPE, progress=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint that is not of this run"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


@pytest.mark.parametrize(
    "name",
    "checkpoints/checkpoint-1/trainer_state.json base/config.json adapter/mine log.json training_args.bin "
    "model.safetensors tokenizer.json".split(),
)
def test_what_others_left_in_the_folder_is_neither_used_nor_deleted(tuned, untrained, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    with pytest.raises(ValueError, match=rf"holds {name.split('/')[0]}, which .* not its own: give a new folder"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_only_what_the_run_made_is_deleted(tuned, tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("other/training_args.bin", "notes.txt"):
        (tmp_path / name).write_text("mine")
    tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=dataclasses.replace(RECIPE, steps=1), progress=False)
    assert (tmp_path / "other" / "training_args.bin").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "training_args.bin").exists()


@pytest.mark.parametrize(("text", "words"), [('{"recipe": {', "cannot be read"), ("[]", "holds no object")])
def test_a_record_that_cannot_be_read_is_said_to_be_so(tuned, untrained, tmp_path, text, words):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=f"recipe.json {words}.*: which run the folder holds is not known, give a new"):
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)


def test_a_model_is_known_again_by_another_path_and_a_tokenizer_by_its_tokens(
    tuned, untrained, tokenizer, tmp_path, monkeypatch
):
    tuned.source.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("model", tmp_path / "model"):
        with pytest.raises(Begun):
            tune_dpo(name, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)
    other_tokenizer = copy.deepcopy(tokenizer)
    other_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    lm = HookedLM.load(tuned.source, tokenizer=other_tokenizer)
    with pytest.raises(ValueError, match=r"another run \(other tokenizer\)"):
        tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=RECIPE, progress=False)


def test_nothing_saved_is_not_finished(tuned, tmp_path, monkeypatch):
    """Transformers saves nothing of weights that FSDP has sharded."""
    real = trl.DPOTrainer.save_model

    def save_model(self, folder, *args, **options):
        if "checkpoint-" in str(folder):
            real(self, folder, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(trl.DPOTrainer, "save_model", save_model)
        with pytest.raises(RuntimeError, match=r"no weights were saved .*: its checkpoints are kept"):
            tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False)
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"] is False
    assert (
        tune_dpo(tuned.lm, PAIRS, output_dir=tmp_path, recipe=RECIPE, progress=False).fingerprint()
        == tuned.after.fingerprint()
    )
