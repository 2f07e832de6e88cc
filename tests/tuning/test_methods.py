"""The methods beside DPO: their losses by hand, the tokens that they see, and what `tune` promises for each."""

import copy
import dataclasses
import importlib
import json
import math
import sys
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from conftest import tiny
from datasets import Dataset
from preferences import PAIRS, RECIPE, TURNED, Interrupted
from test_resuming import interrupt, untimed
from tokenizers import processors
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

import xlingtox as xt
from xlingtox.models.hooked import HookedLM
from xlingtox.tuning import DPO_SFT, KTO, MINI, ORPO, SFT, SIMPO, Diverged, Lora, experimental, launch
from xlingtox.tuning.recipe import WITH_REFERENCE
from xlingtox.tuning.trainers import TRAINED

READY_MADE = {"dpo": MINI, "dpo_sft": DPO_SFT, "sft": SFT, "kto": KTO, "orpo": ORPO, "simpo": SIMPO}
ROOM = 11
"""The most tokens of prompt and continuation, so that some continuations are cut."""
OWN = ("method", "beta", "sft_weight", "simpo_gamma", "desirable_weight", "undesirable_weight")


def small(name, **changes):
    """The method of a ready-made recipe on four pairs, in steps large enough to be seen."""
    settings = {field: getattr(READY_MADE[name], field) for field in OWN}
    return dataclasses.replace(RECIPE, **settings | changes)


class LogProbs(NamedTuple):
    """The log-probabilities of the tokens of a continuation, and of all tokens but the first."""

    side: torch.Tensor
    whole: torch.Tensor


@torch.no_grad()
def log_probs(model, tokenizer, prompt, continuation):
    """Return them by the raw model, without an end of text, and cut."""
    ids = torch.tensor(tokenizer(prompt + continuation)["input_ids"][:ROOM])
    by_position = model(ids[None]).logits[0, :-1].log_softmax(-1)
    values = by_position.gather(1, ids[1:, None])[:, 0]
    return LogProbs(values[len(tokenizer(prompt)["input_ids"]) - 1 :], values)


class Sides:
    """The log-probabilities of all pairs, side by side, by a model and by its reference."""

    def __init__(self, model, reference, tokenizer):
        self.models, self.tokenizer = (model, reference), tokenizer
        self.chosen, self.rejected = (self.of(PAIRS["prompt"], PAIRS[side]) for side in ("chosen", "rejected"))

    def of(self, prompts, continuations, which=0):
        rows = zip(prompts, continuations, strict=True)
        return [log_probs(self.models[which], self.tokenizer, *row) for row in rows]

    def gain(self, prompts, continuations):
        """Return how much likelier each continuation is than for the reference."""
        now, before = (self.of(prompts, continuations, which) for which in (0, 1))
        return torch.stack([mine.side.sum() - theirs.side.sum() for mine, theirs in zip(now, before, strict=True)])

    def sft(self, recipe):
        return -torch.cat([pair.side for pair in self.chosen]).mean()

    def dpo(self, recipe):
        gains = [self.gain(PAIRS["prompt"], PAIRS[side]) for side in ("chosen", "rejected")]
        return -logsigmoid(recipe.beta * (gains[0] - gains[1])).mean()

    def dpo_sft(self, recipe):
        return self.dpo(recipe) + recipe.sft_weight * self.sft(recipe)

    def kto(self, recipe):
        """Equation 8 of Ethayarajh et al. 2024, with the mismatched continuations of TRL: each of the row before."""
        order = torch.randperm(4, generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        prompts = [PAIRS["prompt"][number] for number in order] * 2
        sides = [PAIRS[side][number] for side in ("chosen", "rejected") for number in order]
        moved = self.gain(prompts, [sides[-1], *sides[:-1]]).mean().clamp(min=0)
        gains = self.gain(prompts, sides)
        good = recipe.desirable_weight * (1 - torch.sigmoid(recipe.beta * (gains[:4] - moved)))
        bad = recipe.undesirable_weight * (1 - torch.sigmoid(recipe.beta * (moved - gains[4:])))
        return torch.cat([good, bad]).mean()

    def orpo(self, recipe):
        """Equations 6 and 7 of Hong et al. 2024. TRL's likelihood is of the prompt too."""
        likely = [torch.stack([pair.side.mean() for pair in side]) for side in (self.chosen, self.rejected)]
        odds = [log_p - torch.log1p(-log_p.exp()) for log_p in likely]
        nll = -torch.cat([pair.whole for pair in self.chosen]).mean()
        return nll - recipe.beta * logsigmoid(odds[0] - odds[1]).mean()

    def simpo(self, recipe):
        """Equation 6 of Meng et al. 2024."""
        likely = [torch.stack([pair.side.mean() for pair in side]) for side in (self.chosen, self.rejected)]
        return -logsigmoid(recipe.beta * (likely[0] - likely[1]) - recipe.simpo_gamma).mean()


def rows_of(folder):
    return json.loads((folder / "log.json").read_text("utf-8"))


@pytest.fixture
def seen(monkeypatch):
    """Return the inputs of all steps, and the dropout that is left in the model."""
    inputs_seen, dropout, real = [], set(), transformers.Trainer.training_step

    def training_step(self, model, inputs, *rest):
        inputs_seen.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        dropout.update(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
        return real(self, model, inputs, *rest)

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    return inputs_seen, dropout


@pytest.fixture(scope="module")
def beginning(tokenizer):
    """A tokenizer that begins each text with a token of its own, which TRL would put there twice."""
    other = copy.deepcopy(tokenizer)
    begin = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 7)])
    other.backend_tokenizer.post_processor = begin
    return other


def test_the_methods_with_a_reference():
    assert tuple(name for name, trained in TRAINED.items() if trained.reference) == WITH_REFERENCE


@pytest.mark.parametrize("name", ["dpo_sft", "sft", "kto", "orpo", "simpo"])
def test_the_loss_is_that_of_the_paper_on_the_tokens_of_the_pairs(name, beginning, tmp_path, seen):
    """A small Llama with an adapter: before the first step by the model, and after it by the merged checkpoint."""
    weighted = {"desirable_weight": 1.5, "undesirable_weight": 0.5} if name == "kto" else {}
    recipe = small(name, steps=1, warm_up=0, batch_size=4, evaluate_every=1, optimizer="adamw_torch", **weighted)
    adapter = Lora(rank=4, bits=None, dropout=0.5)
    recipe = dataclasses.replace(recipe, lora=adapter, learning_rate=1e-2, end_token=False, max_length=ROOM)
    source = tiny("llama")
    lm = HookedLM.load(source, tokenizer=beginning)
    after = xt.tune(lm, PAIRS, output_dir=tmp_path, recipe=recipe, validation=PAIRS, progress=False)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, mask = after.encode(PAIRS["prompt"][:1])
    with torch.no_grad():
        torch.testing.assert_close(after.logits(ids, mask), plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    logged = {key: row[key] for row in rows_of(tmp_path) for key in ("loss", "eval_loss") if key in row}
    before, tuned = (float(getattr(Sides(mine, source, beginning), name)(recipe)) for mine in (source, plain))
    assert logged["loss"] == pytest.approx(before, abs=2e-5)
    assert logged["eval_loss"] == pytest.approx(tuned, abs=2e-4)
    # KTO's loss may rise, because it follows how far the model moved on other continuations.
    assert tuned != before if name == "kto" else tuned < before
    assert (tmp_path / "adapter").is_dir()
    [inputs], dropout = seen
    assert dropout == {0.0}
    check_tokens(name, inputs, beginning)


def check_tokens(name, inputs, beginning):
    """The trainer was given what the tokenizer makes of the texts, cut, and nothing else."""

    def rows(ids, mask="attention_mask"):
        return sorted(row[kept.bool()].tolist() for row, kept in zip(inputs[ids], inputs[mask], strict=True))

    def expected(side):
        texts = [prompt + text for prompt, text in zip(PAIRS["prompt"], PAIRS[side], strict=True)]
        return sorted(beginning(text)["input_ids"][:ROOM] for text in texts)

    chosen, rejected = expected("chosen"), expected("rejected")
    assert {tokens[0] for tokens in chosen} == {7}
    assert {len(tokens) for tokens in chosen} > {ROOM}
    if name == "sft":
        assert rows("input_ids") == chosen
    elif name in ("kto", "dpo_sft"):
        assert rows("input_ids") == sorted(chosen + rejected)
    else:
        assert rows("chosen_input_ids", "chosen_attention_mask") == chosen
        assert rows("rejected_input_ids", "rejected_attention_mask") == rejected


IMPATIENT = {"steps": 6, "evaluate_every": 2, "patience": 2, "optimizer": "adamw_torch"}


@pytest.mark.parametrize("name", ["kto", "orpo"])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(name, lm, tmp_path, monkeypatch):
    """It is broken off in its second pass over the pairs, and its validation pairs ask for the opposite."""
    recipe = small(name, **IMPATIENT)

    def tune(folder):
        options: dict[str, Any] = {"recipe": recipe, "validation": TURNED, "progress": False}
        return xt.tune(lm, PAIRS, output_dir=tmp_path / folder, **options)

    uninterrupted = tune("whole")
    with monkeypatch.context() as patched:
        interrupt(patched, 3)
        with pytest.raises(Interrupted):
            tune("cut")
    assert tune("cut").fingerprint() == uninterrupted.fingerprint()
    logs = [untimed(tmp_path / folder) for folder in ("whole", "cut")]
    assert logs[0] == logs[1]
    curve = [(row["eval_loss"], row["step"]) for row in logs[0] if "eval_loss" in row]
    assert curve[-1][1] == 6
    assert not (tmp_path / "cut" / "checkpoints").exists()
    with pytest.raises(ValueError, match=r"holds another run \(other recipe"):
        xt.tune(lm, PAIRS, output_dir=tmp_path / "cut", recipe=RECIPE, validation=TURNED, progress=False)


@pytest.mark.parametrize("name", ["kto", "orpo"])
def test_a_run_that_diverges_stops(name, lm, tmp_path):
    wild = small(name, steps=5, optimizer="sgd", max_grad_norm=1e30, warm_up=0)
    wild = dataclasses.replace(wild, learning_rate=1e38)
    with pytest.raises(Diverged, match=r"(loss|grad_norm) is (nan|inf).* of 5; "):
        xt.tune(lm, PAIRS, output_dir=tmp_path, recipe=wild, progress=False)
    assert json.loads((tmp_path / "recipe.json").read_text("utf-8"))["finished"] is False


def test_bfloat16_rounds_more(lm, tmp_path):
    """ORPO's trainer has a forward pass of its own."""
    recipe = small("orpo", steps=1, batch_size=4, bfloat16=True)
    after = xt.tune(lm, PAIRS, output_dir=tmp_path, recipe=recipe, progress=False)
    assert after.dtype == torch.float32
    texts = [prompt + text + "<eos>" for prompt, text in zip(PAIRS["prompt"], PAIRS["chosen"], strict=True)]
    losses = [-lm.logits(*lm.encode([text]))[0, :-1].log_softmax(-1) for text in texts]
    by_token = [loss.gather(1, lm.encode([text])[0][0, 1:, None]) for loss, text in zip(losses, texts, strict=True)]
    in_float32 = float(torch.cat(by_token).mean())
    assert rows_of(tmp_path)[0]["nll_loss"] == pytest.approx(in_float32, abs=0.05)
    assert rows_of(tmp_path)[0]["nll_loss"] != pytest.approx(in_float32, abs=1e-5)


def test_a_last_batch_of_one_pair_is_compared_with_another_prompt():
    tokens = {name: [[10 * place + n] for n in range(4)] for place, name in enumerate(("prompt", "chosen", "rejected"))}
    table = (
        TRAINED["kto"]
        .table(
            Dataset.from_dict({f"{name}_ids": rows for name, rows in tokens.items()}), small("kto", batch_size=3), 32
        )
        .to_list()
    )
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    assert [row["prompt_ids"] for row in table] == [[number] for number in (order[:3] * 2 + order[3:] * 2)]
    assert [row["label"] for row in table] == [True] * 3 + [False] * 3 + [True, False]
    assert all(row["completion_ids"][0] % 10 == row["prompt_ids"][0] for row in table)
    others = [row["KL_completion_ids"][0] for row in table]
    assert sorted(others[:6]) == sorted(row["completion_ids"][0] for row in table[:6])
    assert others[6:] == [10 + order[2], 20 + order[2]]
    assert not any(other % 10 == row["prompt_ids"][0] for other, row in zip(others, table, strict=True))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("sft", {"beta": 0.5}, "beta is 0.5 with method 'sft', which does not read it: leave it at 0.1, or use dpo or"),
        ("kto", {"loss_type": "ipo"}, "loss_type is 'ipo' with method 'kto', which does not read it"),
        ("orpo", {"sft_weight": 1.0}, "sft_weight is 1.0 with method 'orpo', .* leave it at 0.0, or use dpo"),
        ("dpo", {"simpo_gamma": 0.5}, "simpo_gamma is 0.5 with method 'dpo', .* or use simpo"),
        ("simpo", {"desirable_weight": 2.0}, "desirable_weight is 2.0 with method 'simpo', .* or use kto"),
        ("kto", {"batch_size": 1}, "batch_size is 1 with method 'kto': expected at least 2"),
        ("kto", {"undesirable_weight": 0.0}, "undesirable_weight is 0.0: expected a finite number above 0"),
        ("simpo", {"simpo_gamma": -1.0}, "simpo_gamma is -1.0: expected a finite number of at least 0"),
        ("dpo", {"sft_weight": math.nan}, "sft_weight is nan: expected a finite number of at least 0"),
        ("dpo", {"method": "ppo"}, "method is 'ppo' .*expected one of 'dpo', 'sft', "),
    ],
)
def test_what_a_method_does_not_read_is_refused(name, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(READY_MADE[name], **changes)


def test_what_cannot_be_tuned_is_refused_in_one_line(lm, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"recipe has the method 'kto', which is not DPO: use xt\.tune"):
        xt.tune_dpo(lm, PAIRS, output_dir=tmp_path / "out", recipe=small("kto"), progress=False)
    one = PAIRS.select([0])
    with pytest.raises(ValueError, match="preference pairs: there is one only, and KTO compares"):
        xt.tune(lm, one, output_dir=tmp_path / "out", recipe=small("kto"), progress=False)
    with pytest.raises(ValueError, match="validation pairs: there is one only"):
        xt.tune(lm, PAIRS, output_dir=tmp_path / "out", recipe=small("kto"), validation=one, progress=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(launch, "sharded", lambda: True)
    with pytest.raises(ValueError, match="method 'sft' cannot tune sharded weights, only dpo can: start without"):
        launch.check_together(lm, small("sft"))


def test_trl_that_moved_an_experimental_trainer_is_said_to_have_done_so(lm, tmp_path, monkeypatch):
    for where in (("trl.experimental.moved", "A", "B"), ("trl.moved.orpo", "A", "B")):
        monkeypatch.setitem(experimental._CLASSES, "orpo", where)
        with pytest.raises(ImportError, match=r"method 'orpo' needs A from trl\..*pip install 'trl>=1\.16,<1\.17'"):
            xt.tune(lm, PAIRS, output_dir=tmp_path / "out", recipe=small("orpo"), progress=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(experimental._CLASSES, "orpo", ("trl.experimental.orpo", "Renamed", "ORPOConfig"))
    with pytest.raises(ImportError, match=r"needs Renamed from trl\.experimental\.orpo.*has no attribute"):
        xt.tune(lm, PAIRS, output_dir=tmp_path, recipe=small("orpo"), progress=False)
    assert not list(tmp_path.iterdir())


def test_trls_warning_of_experiments_is_left_out(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("trl.experimental")]:
        monkeypatch.delitem(sys.modules, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer, config = experimental.classes("simpo")
    assert (trainer.__name__, config.__name__) == ("CPOTrainer", "CPOConfig")
    importlib.import_module("trl.experimental")
