import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import families
import pytest
import torch
import transformers
import trl
from conftest import randomised, tiny
from datasets import Dataset
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from xlingtox import tuning
from xlingtox.folders import writable_folder
from xlingtox.lm import HookedLM
from xlingtox.tuning import MINI, PAPER_FULL, PAPER_QLORA, Diverged, Lora, Recipe, tunable_pairs, tune_dpo

PROMPTS = ["the cat", "the dog", "la casa", "das ist ein hund"]
PAIRS = Dataset.from_dict(
    {
        "prompt": PROMPTS,
        "chosen": [" sat on the mat", " ran away", " es grande", " im haus"],
        "rejected": [" ran from the house", " sat", " duerme en la cama", " und eine katze"],
        "source": ["another column"] * 4,
    }
)
RECIPE = Recipe(steps=6, batch_size=2, learning_rate=1e-3, warm_up=1, max_length=32)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def tuned(model, tokenizer, tmp_path_factory):
    """The model that was given (in training mode, as it must stay), its HookedLM, the tuned one, and its folder."""
    given = copy.deepcopy(model).train()
    lm = HookedLM.load(given, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("dpo") / "made" / "for it"
    return given, lm, tune_dpo(lm, PAIRS, folder, RECIPE, progress=False), folder


@torch.no_grad()
def margin(model, tokenizer):
    """Mean of log p(chosen) - log p(rejected), after the prompt, by the raw model."""

    def log_p(prompt, continuation):
        n = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"]])
        chance = model(ids).logits[0].log_softmax(-1)
        return sum(float(chance[i - 1, ids[0, i]]) for i in range(n, ids.shape[1]))

    return sum(log_p(row["prompt"], row["chosen"]) - log_p(row["prompt"], row["rejected"]) for row in PAIRS) / len(
        PAIRS
    )


def test_the_rejected_becomes_less_likely_than_the_chosen(tuned, model, tokenizer):
    after = AutoModelForCausalLM.from_pretrained(tuned[3]).eval()
    assert margin(after, tokenizer) > margin(model, tokenizer) + 1


def test_the_given_model_is_left_as_it_was(tuned, model, tokenizer):
    given, lm, _, _ = tuned
    assert same(weights(given), weights(model))
    assert given.training
    assert given.forward.__func__ is type(given).forward
    assert all(weight.grad is None for weight in given.parameters())
    ids, mask = lm.encode(PROMPTS)
    fresh = HookedLM.load(model, tokenizer=tokenizer)
    assert torch.equal(lm.logits(ids, mask), fresh.logits(ids, mask))
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (lm.tokenizer.eos_token, lm.tokenizer.pad_token) == ("<eos>", "<pad>")


def test_the_tuned_model_is_the_one_in_the_folder(tuned):
    _, lm, after, folder = tuned
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = after.encode(["the cat sat on the"])
    assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after.logits(ids, mask), lm.logits(ids, mask), atol=0.1)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == lm.tokenizer.get_vocab()
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.pt"))


def test_what_was_done_is_written_down(tuned):
    folder = tuned[3]
    record = json.loads((folder / "recipe.json").read_text("utf-8"))
    assert record["recipe"] == dataclasses.asdict(RECIPE)
    assert (record["pairs"], record["finished"]) == (4, True)
    assert record["model"]["fingerprint"] == tuned[1].fingerprint()
    assert {"torch", "transformers", "trl"} == record["versions"].keys()
    assert record["trl"]["beta"] == 0.1
    log = json.loads((folder / "log.json").read_text("utf-8"))
    assert log[-1]["step"] == RECIPE.steps
    assert [row["step"] for row in log if "rewards/margins" in row] == list(range(1, RECIPE.steps + 1))


def test_the_same_seed_gives_the_same_weights(tuned, tmp_path):
    _, lm, _, folder = tuned
    torch.rand(5)  # whatever else is drawn
    for name, seed in [("again", 0), ("other", 1)]:
        tune_dpo(lm, PAIRS, tmp_path / name, dataclasses.replace(RECIPE, seed=seed), progress=False)
    first, again, other = (
        load_file(out / "model.safetensors") for out in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


def test_the_reference_is_the_model_in_memory(model, tokenizer, tmp_path):
    """A model that no folder holds: its first loss is log 2 only if the reference is the very same model."""
    edited = randomised(copy.deepcopy(model), seed=5)
    edited.config._name_or_path = str(tmp_path / "elsewhere")
    model.save_pretrained(tmp_path / "elsewhere")
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    still = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12)
    after = tune_dpo(lm, PAIRS, tmp_path / "out", still, progress=False)
    log = json.loads((tmp_path / "out" / "log.json").read_text("utf-8"))
    assert log[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    ids, mask = lm.encode(["the cat sat on the"])
    with torch.no_grad():
        assert_close(after.logits(ids, mask), edited(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_tuning_can_be_silent(tuned, tmp_path, capfd):
    tune_dpo(tuned[1], PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_other_families(name, tokenizer, tmp_path):
    lm = HookedLM.load(tiny(name), tokenizer=tokenizer)
    after = tune_dpo(lm, PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=2), progress=False)
    assert after.fingerprint() != lm.fingerprint()
    assert after.d_mlp == lm.d_mlp


# --- bad input is refused before training


@pytest.fixture
def untrained(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("training had begun")

    monkeypatch.setattr("trl.DPOTrainer", fail)


def but(**columns):
    return Dataset.from_dict(PAIRS.to_dict() | columns)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (PAIRS.remove_columns("rejected"), "no column rejected"),
        (but(chosen=[" sat", None, " es", " "]), "row 1 has no chosen; row 3 has no chosen"),
        (but(rejected=PAIRS["chosen"]), "row 0 has chosen equal to rejected.*and 1 more"),
        (PAIRS.select([]), "no preference pairs"),
        (but(chosen=["\u200b\u3164", "\u2800 ", "\ufeff", " ok"]), "row 0 has no chosen; row 1 has no chosen; row 2"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "expected a datasets.Dataset"),
    ],
)
def test_bad_pairs(tuned, untrained, tmp_path, pairs, words):
    with pytest.raises(ValueError, match=words):
        tune_dpo(tuned[1], pairs, tmp_path / "out", RECIPE, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", [".", "out", "out/deeper"])
def test_a_folder_that_cannot_be_written(tuned, untrained, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        tune_dpo(tuned[1], PAIRS, file / below, RECIPE, progress=False)
    assert file.read_text() == "mine"


def test_a_transformer_lens_model_cannot_be_tuned(tuned, untrained, tokenizer, tmp_path):
    bridge = HookedLM.load(tuned[1].tl, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        tune_dpo(bridge, PAIRS, tmp_path, RECIPE, progress=False)


def test_pairs_longer_than_the_model_are_cut(tuned, tmp_path):
    """The default recipe allows 96 tokens, this model has 64 positions."""
    long = but(rejected=[" and the dog ran away from the house" * 6] * 4)
    tune_dpo(tuned[1], long, tmp_path, dataclasses.replace(MINI, steps=1, batch_size=2), progress=False)


def test_prompts_that_leave_no_room_are_left_out_and_counted(tuned, tmp_path, caplog):
    """TRL drops them without a word."""
    long = but(prompt=[*PROMPTS[:3], "the dog ran away " * 30])
    tune_dpo(tuned[1], long, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)
    assert "1 of 4 prompts have more than 31 tokens (rows 3): they are left out" in caplog.text
    record = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert (record["pairs"], record["left_out"]) == (3, 1)
    with pytest.raises(ValueError, match=r"4 of 4 prompts have more than 1 tokens \(rows 0, 1, 2, ...\): none leaves"):
        tune_dpo(tuned[1], PAIRS, tmp_path / "no", dataclasses.replace(RECIPE, max_prompt_length=1), progress=False)


def test_writable_folder(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_model_may_have_another_precision(model, tokenizer, tmp_path):
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.float64)
    after = tune_dpo(lm, PAIRS, tmp_path, dataclasses.replace(RECIPE, steps=1), progress=False)
    assert after.dtype == torch.float64
    assert isinstance(after.tl.original_model, transformers.GPT2LMHeadModel)


# --- recipes


def test_the_papers_recipes_say_what_trl_would_choose_otherwise():
    """FACTS of the paper's appendix; TRL's own defaults are others in nearly all of these."""
    full = PAPER_FULL.arguments(room=256, validated=True, on_cpu=True)
    paper = {"optim": "rmsprop", "learning_rate": 1e-5, "lr_scheduler_type": "constant_with_warmup"}
    paper |= {"warmup_steps": 150, "per_device_train_batch_size": 4, "max_grad_norm": 10, "beta": 0.1}
    paper |= {"num_train_epochs": 5, "eval_steps": 25, "max_length": 256, "seed": 0, "max_steps": -1}
    paper |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "loss_type": ["sigmoid"]}
    assert full | paper == full
    assert (PAPER_FULL.patience, PAPER_FULL.validation_share, PAPER_FULL.max_prompt_length) == (10, 0.05, 64)
    config = DPOConfig(output_dir="unused", **full)
    assert all(getattr(config, name) == value for name, value in paper.items())
    assert PAPER_QLORA.lora == Lora(rank=64, alpha=16, dropout=0.05, bits=4)
    assert (PAPER_QLORA.epochs, PAPER_QLORA.batch_size, PAPER_QLORA.accumulation) == (20, 1, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 1}, "give one of them"),
        ({"steps": None}, "give one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"validation_share": 1.0}, "validation_share is 1"),
    ],
)
def test_bad_recipes(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(RECIPE, **changes)


# --- runs


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, step):
    """Break off after `step` steps, between the steps."""
    real = tuning._Watch.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        real(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Interrupted

    monkeypatch.setattr(tuning._Watch, "on_step_end", on_step_end)


def losses(folder):
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    return [(row["step"], row.get("loss"), row.get("eval_loss")) for row in rows if "train_runtime" not in row]


VALIDATED = dataclasses.replace(RECIPE, steps=9, save_every=2, evaluate_every=3, optimizer="adamw_torch")


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tuned, tmp_path, monkeypatch, step, patience):
    lm, recipe = tuned[1], dataclasses.replace(VALIDATED, patience=patience)
    whole = tune_dpo(lm, PAIRS, tmp_path / "whole", recipe, validation=PAIRS, progress=False)
    with monkeypatch.context() as patched:
        interrupt(patched, step)
        with pytest.raises(Interrupted):
            tune_dpo(lm, PAIRS, tmp_path / "cut", recipe, validation=PAIRS, progress=False)
    # A checkpoint that was being written when it ended is not taken.
    broken = tmp_path / "cut" / "checkpoints" / "checkpoint-99"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"half")
    resumed = tune_dpo(lm, PAIRS, tmp_path / "cut", recipe, validation=PAIRS, progress=False)
    assert resumed.fingerprint() == whole.fingerprint()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_process_that_was_killed(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    code = f"""
        import os, sys, datasets, xlingtox as xt
        from xlingtox import tuning
        class Killed(tuning._Watch):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == int(sys.argv[2]):
                    os.kill(os.getpid(), 9)
        tuning._Watch = Killed
        pairs = datasets.Dataset.from_json({str(tmp_path / "pairs.jsonl")!r}, cache_dir={str(tmp_path)!r})
        recipe = tuning.Recipe(steps=6, batch_size=2, learning_rate=1e-3, max_length=32, save_every=2)
        print(xt.tune_dpo({str(tmp_path / "model")!r}, pairs, sys.argv[1], recipe, progress=False).fingerprint())
    """

    def run(folder, step):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / folder), str(step)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr
    assert run("cut", 5).returncode == -9
    assert run("cut", 0).stdout == whole.stdout


def test_a_finished_run_is_only_loaded(tuned, monkeypatch):
    monkeypatch.setattr("trl.DPOTrainer", None)
    _, lm, after, folder = tuned
    assert tune_dpo(lm, PAIRS, folder, RECIPE, progress=False).fingerprint() == after.fingerprint()


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
        tune_dpo(tuned[1], output_dir=tuned[3], progress=False, **{"pairs": PAIRS, "recipe": RECIPE} | changed)


def test_another_model_is_another_run_and_a_strange_checkpoint_is_none(tuned, untrained, model, tmp_path):
    with pytest.raises(ValueError, match=r"another run \(other model\)"):
        tune_dpo(tuned[2], PAIRS, tuned[3], RECIPE, progress=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a checkpoint that is not of this run"):
        tune_dpo(tuned[1], PAIRS, tmp_path, RECIPE, progress=False)


def test_a_folder_is_tuned_as_the_model_in_memory_is(tuned, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    after = tune_dpo(tmp_path / "model", PAIRS, tmp_path / "out", RECIPE, progress=False)
    assert after.fingerprint() == tuned[2].fingerprint()


@pytest.mark.parametrize("lora", [None, Lora(rank=4, bits=None)])
@pytest.mark.parametrize("given", ["in memory", "as a folder"])
def test_nothing_tuned_is_in_memory_when_a_model_is_read(tuned, tokenizer, tmp_path, monkeypatch, given, lora):
    """Else reading the tuned model, or the base that an adapter is merged into, would take more memory than a step."""
    held, counts, read = [], [], tuning.loading.from_checkpoint

    class Trainer(trl.DPOTrainer):
        def train(self, **options):
            done = super().train(**options)
            state = [each for row in self.optimizer.state.values() for each in row.values()]
            held.extend(weakref.ref(each) for each in [*self.model.parameters(), *state])
            return done

    def from_checkpoint(*args, **options):
        counts.append(sum(each() is not None for each in held))
        return read(*args, **options)

    tuned[0].save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("trl.DPOTrainer", Trainer)
    monkeypatch.setattr(tuning.loading, "from_checkpoint", from_checkpoint)
    lm = tuned[1] if given == "in memory" else tmp_path / "model"
    tune_dpo(lm, PAIRS, tmp_path / "out", dataclasses.replace(RECIPE, steps=1, lora=lora), progress=False)
    assert len(held) > 20
    folder = given == "as a folder"
    # The base before it is tuned, the base that an adapter is merged into, and the tuned model.
    assert counts == [0] * (folder + (folder and lora is not None) + 1)


def log_p(model, tokenizer, prompt, continuation):
    ids = torch.tensor([tokenizer(prompt + continuation)["input_ids"] + [0]])
    with torch.no_grad():
        chance = model(ids).logits[0].log_softmax(-1)
    return sum(float(chance[i - 1, ids[0, i]]) for i in range(len(tokenizer(prompt)["input_ids"]), ids.shape[1]))


def test_the_best_weights_by_validation_loss_are_kept(tuned, model, tokenizer, tmp_path):
    """The validation pairs ask for the opposite, so that the loss rises from the first evaluation on."""
    turned = PAIRS.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    recipe = dataclasses.replace(RECIPE, steps=None, epochs=20, evaluate_every=1, patience=3)
    tune_dpo(tuned[1], PAIRS, tmp_path, recipe, validation=turned, progress=False)
    curve = [(step, loss) for step, _, loss in losses(tmp_path) if loss is not None]
    best = min(curve, key=lambda row: row[1])
    assert curve[-1][0] == best[0] + 3 < 40
    after = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    by_hand = []
    for row in turned:
        gain = {
            side: log_p(after, tokenizer, row["prompt"], row[side]) - log_p(model, tokenizer, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        }
        by_hand.append(math.log1p(math.exp(-0.1 * (gain["chosen"] - gain["rejected"]))))
    assert sum(by_hand) / len(by_hand) == pytest.approx(best[1], abs=1e-4)


def test_the_share_for_validation_is_held_out_by_seed(tuned):
    recipe = dataclasses.replace(RECIPE, validation_share=0.25)
    parts = tunable_pairs(tuned[1], PAIRS, recipe)
    assert sorted([*parts.train["prompt"], *parts.validation["prompt"]]) == sorted(PROMPTS)
    assert len(parts.validation) == 1
    others = {
        tunable_pairs(tuned[1], PAIRS, dataclasses.replace(recipe, seed=seed)).validation[0]["prompt"]
        for seed in range(9)
    }
    assert len(others) > 1


@pytest.mark.parametrize("room", [12, 32])
def test_the_reference_is_read_anew_for_another_length(tuned, tmp_path, room):
    """TRL keeps its log-probabilities by pairs and model, not by how far these are read."""
    recipe = dataclasses.replace(RECIPE, steps=1, learning_rate=1e-12, max_length=room)
    long = but(rejected=[" and the dog ran away from the house"] * 4)
    for name in ("kept", "again"):
        tune_dpo(tuned[1], long, tmp_path / name, recipe, progress=False)
        assert losses(tmp_path / name)[0][1] == pytest.approx(math.log(2), abs=1e-5)


def test_a_run_that_diverges_stops_and_says_when(tuned, tmp_path):
    wild = dataclasses.replace(
        RECIPE, steps=30, learning_rate=1e36, warm_up=3, optimizer="sgd", save_every=1, max_grad_norm=1e30
    )
    with pytest.raises(
        Diverged, match=r"at step \d+ of 30; the last good checkpoint is .*checkpoint-\d+.*learning_rate"
    ):
        tune_dpo(tuned[1], PAIRS, tmp_path, wild, progress=False)
    kept = sorted((tmp_path / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert kept
    assert all(weight.isfinite().all() for file in kept for weight in load_file(file).values())


# --- adapters

LORA = dataclasses.replace(RECIPE, lora=Lora(rank=4, bits=None), learning_rate=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "cohere"])
def test_an_adapter_is_kept_and_merged(name, tokenizer, tmp_path):
    """Adapter, merged, saved, hooked: the same logits, and the value vectors of the merged model."""
    peft = pytest.importorskip("peft")
    given = families.build(name)
    lm = HookedLM.load(given, tokenizer=tokenizer)
    after = tune_dpo(lm, PAIRS, tmp_path, LORA, progress=False)
    ids, mask = after.encode(["the cat sat on the"])
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(given), tmp_path / "adapter").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(after.logits(ids, mask), adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after.logits(ids, mask), given(input_ids=ids).logits, atol=1e-2)
    for layer in range(lm.n_layers):
        assert torch.equal(after.value_vectors(layer), families.values(plain, name, layer))
        assert not torch.equal(after.value_vectors(layer), lm.value_vectors(layer))
    instead = json.loads((tmp_path / "recipe.json").read_text("utf-8"))["instead"]
    assert any("tied" in words for words in instead) == (name != "llama")
    assert ("embed_tokens" in str(sorted(adapted.peft_config["default"].target_modules))) == (name == "llama")


def test_an_adapter_that_cannot_be_merged_fails_and_is_kept(tuned, tmp_path, monkeypatch):
    pytest.importorskip("peft")

    def changed(*_):
        raise ValueError("cannot be merged into")

    monkeypatch.setattr("xlingtox.loading.merged", changed)
    with pytest.raises(ValueError, match="cannot be merged"):
        tune_dpo(tuned[1], PAIRS, tmp_path, LORA, progress=False)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "config.json").exists()


# --- what no CPU can run is reached up to the trainer's construction


class Reached(Exception):
    pass


@pytest.fixture
def reached(monkeypatch):
    found = {}

    def trainer(**options):
        found.update(options)
        raise Reached

    monkeypatch.setattr("trl.DPOTrainer", trainer)
    return found


def test_a_quantised_base_is_read_from_the_model_that_was_given(tuned, reached, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    asked, real = {}, tuning.loading.from_checkpoint

    def from_checkpoint(source, bits):
        asked.update(source=source, bits=bits)
        return real(source)

    monkeypatch.setattr(tuning.loading, "from_checkpoint", from_checkpoint)
    recipe = dataclasses.replace(PAPER_QLORA, max_length=32, steps=2, epochs=None)
    with pytest.raises(Reached):
        tune_dpo(tuned[1], PAIRS, tmp_path, recipe, validation=PAIRS, progress=False)
    assert asked == {"source": str(tmp_path / "base"), "bits": 4}
    based = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert same(weights(based), weights(tuned[0]))
    assert (reached["peft_config"].r, reached["peft_config"].lora_alpha) == (64, 16)
    assert reached["args"].gradient_checkpointing


def test_under_fsdp_the_reference_is_read_from_the_model_that_was_given(
    tuned, reached, model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    edited = randomised(copy.deepcopy(model), seed=5)
    lm = HookedLM.load(edited, tokenizer=tokenizer)
    with pytest.raises(Reached):
        tune_dpo(lm, PAIRS, tmp_path, RECIPE, progress=False)
    named = AutoModelForCausalLM.from_pretrained(reached["model"].config._name_or_path)
    assert same(weights(named), weights(edited))


def test_two_processes_tune_one_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import datasets, xlingtox as xt
            pairs = datasets.Dataset.from_json({str(tmp_path / "pairs.jsonl")!r}, cache_dir={str(tmp_path)!r})
            recipe = xt.tuning.Recipe(steps=3, batch_size=1, learning_rate=1e-3, max_length=32, save_every=2)
            lm = xt.HookedLM.load({str(tmp_path / "model")!r})
            after = xt.tune_dpo(lm, pairs, {str(tmp_path / "out")!r}, recipe, progress=False)
            print("fingerprint", after.fingerprint())
        """)
    )
    # What `accelerate launch` starts for several GPUs of one machine, here with none.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | more
    done = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    printed = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("fingerprint")]
    assert len(printed) == 2, done.stderr
    assert len(set(printed)) == 1
    # Two processes with one pair each do what one does with two.
    recipe = Recipe(steps=3, batch_size=2, learning_rate=1e-3, max_length=32)
    alone = tune_dpo(tmp_path / "model", PAIRS, tmp_path / "alone", recipe, progress=False)
    both = HookedLM.load(tmp_path / "out")
    ids, mask = both.encode(["the cat sat on the"])
    assert_close(both.logits(ids, mask), alone.logits(ids, mask), atol=1e-4, rtol=1e-4)
