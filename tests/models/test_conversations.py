"""Conversations: lists of messages as prompts and as preference pairs, read through the tokenizer's chat template."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from families import randomised
from tokenizers import processors

from xlingtox.data import as_prompts, check_pairs, from_columns
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning.dpo import MINI, tune_dpo
from xlingtox.tuning.preference_pairs import tunable_pairs

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NEURONS = NeuronSet.of([(0, 3), (1, 5)])


def turn(text, role="user"):
    return {"role": role, "content": text}


ASKED = [[turn("the cat")], [turn("be kind", "system"), turn("la casa")]]
PAIRS = [
    {
        "prompt": asked,
        "chosen": [turn("sat", "assistant")],
        "rejected": [turn("ran away", "assistant")],
    }
    for asked in ASKED
]
IMPLICIT = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in PAIRS]


@pytest.fixture(scope="module")
def chatting(tokenizer):
    """A tokenizer that adds a beginning, and whose template writes one, too."""
    tokenizer_without_template = copy.deepcopy(tokenizer)
    tokenizer_without_template.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<end>"]})
    tokenizer_without_template.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <eos>", special_tokens=[("<s>", tokenizer_without_template.bos_token_id), ("<eos>", 0)]
    )
    tokenizer_without_template.chat_template = TEMPLATE
    return tokenizer_without_template


@pytest.fixture(scope="module")
def talker(chatting):
    """A random Llama with it."""
    config = transformers.LlamaConfig(
        vocab_size=len(chatting), hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
    )
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 0, chatting.bos_token_id, 1
    return HookedLM.load(randomised(transformers.LlamaForCausalLM(config)), tokenizer=chatting)


def ids_of(tokenizer, messages, **how):
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)["input_ids"])


@pytest.mark.parametrize(
    "prompts",
    [
        ASKED,
        {"en": ASKED},
        [{"prompt": asked} for asked in ASKED],
        Dataset.from_list([{"language": "en", "prompt": asked} for asked in ASKED]),
        pd.DataFrame({"prompt": ASKED}),
        pd.DataFrame({"prompt": [np.array(asked) for asked in ASKED]}),
        pd.Series(ASKED),
    ],
    ids=["list", "by language", "dicts", "dataset", "frame", "frame of arrays", "series"],
)
def test_prompts_are_what_the_template_makes_of_them(talker, chatting, prompts):
    texts = ["<s>[user] the cat<end>\n[assistant] ", "<s>[system] be kind<end>\n[user] la casa<end>\n[assistant] "]
    assert as_prompts(prompts, tokenizer=chatting) == [("en", text) for text in texts]
    written = generate(talker, prompts, n_samples=2, max_new_tokens=4, progress=False)
    assert [prompt.text for prompt in written.prompts] == texts
    assert written.texts == generate(talker, texts, n_samples=2, max_new_tokens=4, progress=False).texts
    theirs = [ids_of(chatting, asked, add_generation_prompt=True) for asked in ASKED]
    assert talker.token_ids(texts) == theirs
    assert [ids.count(chatting.bos_token_id) for ids in theirs] == [1, 1]


def test_activations_are_those_at_the_generation_prompt(talker, chatting):
    seen = []
    model = talker.unwrapped()
    down = model.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1, 3].item()))
    for asked in ASKED:
        model(torch.tensor([ids_of(chatting, asked, add_generation_prompt=True)]))
    activations = collect_activations(talker, ASKED, NEURONS, max_new_tokens=1, progress=False).values[:, 0, 0]
    torch.testing.assert_close(activations, torch.tensor(seen), atol=1e-5, rtol=1e-5)


def test_a_begun_answer_goes_on(chatting):
    begun = [turn("the cat"), turn("it sat", "assistant")]
    assert as_prompts([begun], tokenizer=chatting)[0].text == "<s>[user] the cat<end>\n[assistant] it sat"


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (ASKED[0], "prompts is one conversation: give a list of conversations"),
        ({"en": ASKED[0]}, "the prompts of 'en' are one conversation"),
        (
            ["cat", ASKED[0]],
            r"prompt 1 is a conversation \(a list of messages\), and the model's tokenizer has no chat",
        ),
    ],
)
def test_prompts_that_cannot_be_read(lm, prompts, words):
    with pytest.raises(ValueError, match=words):
        generate(lm, prompts, progress=False)


def test_what_the_template_refuses_is_named(chatting):
    refusing = copy.deepcopy(chatting)
    refusing.chat_template = "{{ raise_exception('system is not supported\nat all') }}"
    with pytest.raises(ValueError, match="prompt 0 cannot be read by the model's chat template: system is not supp"):
        as_prompts(ASKED, tokenizer=refusing)
    with pytest.raises(ValueError, match="preference pairs: row 0 cannot be read by the model's chat template"):
        check_pairs(PAIRS, tokenizer=refusing)
    with pytest.raises(ValueError, match=r"prompt 0 is a conversation .* give the model's tokenizer as well"):
        as_prompts(ASKED)
    with pytest.raises(ValueError, match="prompt 0 is blank"):
        as_prompts([[turn(" ")]], tokenizer=chatting)


# --- pairs


def implicit_with_text(row):
    """Return a row as in many published sets: the prompt once as text, and within both sides."""
    return {"prompt": row["chosen"][-2]["content"], **row}


@pytest.mark.parametrize(
    "pairs",
    [
        PAIRS,
        IMPLICIT,
        [implicit_with_text(row) for row in IMPLICIT],
        Dataset.from_list(PAIRS),
        Dataset.from_list(IMPLICIT),
        pd.DataFrame(PAIRS),
    ],
    ids=["dicts", "implicit", "implicit with its text", "dataset", "implicit dataset", "frame"],
)
def test_pairs_are_what_the_template_puts_behind_the_prompt(talker, chatting, pairs):
    start = "<s>[user] the cat<end>\n[assistant] "
    assert check_pairs(pairs, tokenizer=chatting)[0] == {
        "prompt": start,
        "chosen": "sat<end>\n",
        "rejected": "ran away<end>\n",
    }
    usable = tunable_pairs(talker, pairs, recipe=MINI, validation=PAIRS)
    assert usable.conversations == ("train", "validation")
    assert usable.merged == ()
    for row, pair in zip(usable.tokenized("train", talker), PAIRS, strict=True):
        for side in ("chosen", "rejected"):
            assert row["prompt_ids"] + row[f"{side}_ids"] == ids_of(chatting, pair["prompt"] + pair[side])
        assert row["prompt_ids"] == ids_of(chatting, pair["prompt"], add_generation_prompt=True)
        assert row["prompt_ids"].count(chatting.bos_token_id) == 1


def test_conversations_are_tuned_on_as_trl_itself_would(talker, chatting, tmp_path, monkeypatch):
    rows, real = [], trl.trainer.dpo_trainer.DataCollatorForPreference.torch_call
    names = [f"{part}_ids" for part in ("prompt", "chosen", "rejected")]

    def kept(self, examples):
        rows.extend(tuple(tuple(row[name]) for name in names) for row in examples)
        return real(self, examples)

    monkeypatch.setattr(trl.trainer.dpo_trainer.DataCollatorForPreference, "torch_call", kept)
    tune_dpo(talker, PAIRS, output_dir=tmp_path, recipe=replace(MINI, steps=1, batch_size=2), progress=False)
    trainer = type("Told", (), {"_tokenizer": chatting, "dataset_num_proc": None, "max_length": None})()
    theirs = trl.DPOTrainer._prepare_dataset(trainer, Dataset.from_list(PAIRS), chatting, trainer, "train")
    assert set(rows) == {tuple(tuple(row[name]) for name in names) for row in theirs}


def test_text_pairs_beside_conversations_keep_their_end(talker, chatting):
    texts = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}]
    usable = tunable_pairs(talker, PAIRS, recipe=MINI, validation=texts)
    assert usable.conversations == ("train",)
    assert usable.tokenized("validation", talker)[0]["chosen_ids"][-1] == chatting.eos_token_id
    assert usable.tokenized("train", talker)[0]["chosen_ids"][-1] != chatting.eos_token_id


def test_a_template_that_writes_an_answered_prompt_otherwise(talker, chatting):
    """Gemma's and Qwen's do so with thoughts. The prompt ends where both continue in the same way."""
    thinking = copy.deepcopy(chatting)
    thinking.chat_template = TEMPLATE.replace("[assistant] {% endif", "[assistant] <thought>{% endif")
    row = check_pairs(PAIRS, tokenizer=thinking)[0]
    assert row == {
        "prompt": "<s>[user] the cat<end>\n[assistant] ",
        "chosen": "sat<end>\n",
        "rejected": "ran away<end>\n",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": [turn("", "assistant")]}, r"1 of 1 have no chosen \(rows 0\)"),
        ({"rejected": "ran away"}, "1 of 1 have no rejected"),
        ({"prompt": "the cat"}, "1 of 1 have no prompt"),
        ({"prompt": [turn(" ")]}, "1 of 1 have no prompt"),
        ({"rejected": [turn("sat", "assistant")]}, "1 of 1 have chosen equal to rejected"),
        ({"rejected": [turn("sat ", "assistant")]}, "1 of 1 have chosen equal to rejected"),
    ],
)
def test_pairs_that_are_no_conversations_of_two_sides(chatting, change, words):
    chatting = copy.deepcopy(chatting)
    chatting.chat_template = TEMPLATE.replace("<end>", "")
    with pytest.raises(ValueError, match=words):
        check_pairs([PAIRS[0] | change], tokenizer=chatting)


def test_pairs_without_a_template_are_named_for_what_they_are(lm):
    with pytest.raises(ValueError, match=r"^preference pairs are conversations \(lists of messages\), and the model's"):
        tunable_pairs(lm, PAIRS)
    with pytest.raises(ValueError, match="validation pairs are conversations"):
        tunable_pairs(lm, [{"prompt": "a", "chosen": "b", "rejected": "c"}], validation=PAIRS)
    table = Dataset.from_list(PAIRS)
    with pytest.raises(ValueError, match=r"prompt is a conversation \(a list of messages\) in row 0.* to tune_dpo"):
        from_columns(table, {name: name for name in table.column_names})


def test_a_checkpoint_is_tuned_on_conversations_by_its_name(talker, tmp_path):
    model = talker.unwrapped()
    model.save_pretrained(tmp_path / "base")
    talker.tokenizer.save_pretrained(tmp_path / "base")
    recipe = replace(MINI, steps=2, batch_size=2, learning_rate=1e-2)
    tuned = tune_dpo(tmp_path / "base", IMPLICIT, output_dir=tmp_path / "run", recipe=recipe, progress=False)
    assert tuned.tokenizer.chat_template == TEMPLATE
    assert tuned.fingerprint() != talker.fingerprint()
