"""Chat models: plain prompts as messages, ends of answers, thoughts, and a base model next to its chat version."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
import transformers
from families import randomised
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys import HashScorer
from transformers import PreTrainedTokenizerFast

import xlingtox as xt
from xlingtox.data import Chat, as_prompts, check_pairs
from xlingtox.data.chat import ThoughtMarks, turn_ends
from xlingtox.tuning.dpo import MINI, tune_dpo
from xlingtox.tuning.preference_pairs import tunable_pairs

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% if enable_thinking is defined and not enable_thinking %}"
    "<think> </think> {% endif %}{% endif %}"
)
WORDS = "user system assistant say go be kind hmm well yes sir no <end> <think> </think> <eos> <pad>".split()
CHAIN = {"assistant": "<think>", "<think>": "hmm", "hmm": "well", "well": "</think>", "</think>": "yes", "yes": "sir"}
CHAIN |= {"sir": "<end>", "go": "no", "no": "sir", "say": "yes", "<end>": "no"}
NEURONS = xt.NeuronSet.of([(0, 3), (1, 5)])


@pytest.fixture(scope="module")
def words():
    """A token for each word; the end of a turn is not the end of sequence."""
    level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    level.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=level, eos_token="<eos>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<end>"]})
    fast.add_tokens(["<think>", "</think>"])
    fast.chat_template = TEMPLATE
    return fast


def llama(**change):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"eos_token_id": WORDS.index("<eos>"), "bos_token_id": None, "pad_token_id": WORDS.index("<pad>")}
    config = transformers.LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **ids, **change)
    return randomised(transformers.LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def scripted():
    """A Llama that writes what `CHAIN` says after each word. Its neurons answer to the word, and change nothing."""
    model = llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 32))
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        for weight in (
            model.model.norm.weight,
            *(layer.post_attention_layernorm.weight for layer in model.model.layers),
        ):
            weight.fill_(1.0)
        model.lm_head.weight.zero_()
        for word, following in CHAIN.items():
            model.lm_head.weight[WORDS.index(following), WORDS.index(word)] = 10.0
    return model


@pytest.fixture(scope="module")
def thinker(scripted, words):
    return xt.HookedLM.load(scripted, tokenizer=words, chat=Chat(thinking=True))


@pytest.fixture(scope="module")
def base(words):
    return xt.HookedLM.load(llama(), tokenizer=words)


@pytest.fixture(scope="module")
def chatty(base):
    return base.with_chat(Chat(system="be kind"))


def user(text):
    return [{"role": "user", "content": text}]


def by_hand(fast, messages, **how):
    how = {"add_generation_prompt": True, "enable_thinking": False, **how}
    return list(fast.apply_chat_template(messages, tokenize=True, return_dict=True, **how)["input_ids"])


def greedy(lm, prompts, n=6):
    return xt.generate(lm, prompts, greedy=True, max_new_tokens=n, progress=False)


# --- What is read


@pytest.mark.parametrize(
    "prompts",
    [
        ["say go", "no"],
        {"en": ["say go", "no"]},
        [{"prompt": "say go"}, {"prompt": "no"}],
        [user("say go"), user("no")],
    ],
    ids=["texts", "by language", "table", "conversations"],
)
def test_plain_prompts_are_a_users_messages_after_the_system_prompt(chatty, words, prompts):
    start = [{"role": "system", "content": "be kind"}]
    read = chatty.as_prompts(prompts)
    assert read == [
        ("en", f"system be kind <end> user {text} <end> assistant <think> </think> ") for text in ("say go", "no")
    ]
    expected = [by_hand(words, start + user(text)) for text in ("say go", "no")]
    assert chatty.token_ids([prompt.text for prompt in read]) == expected
    # What was read once is not asked again.
    assert chatty.as_prompts(read) == read


def test_a_conversation_keeps_its_own_system_prompt_and_its_begun_answer(chatty):
    own = [{"role": "developer", "content": "go"}, *user("say"), {"role": "assistant", "content": "yes"}]
    assert chatty.as_prompts([own])[0].text == "developer go <end> user say <end> assistant yes"


def test_without_chat_texts_stay_and_conversations_do_not_think(base):
    assert [prompt.text for prompt in base.as_prompts(["say go", user("no")])] == [
        "say go",
        "user no <end> assistant <think> </think> ",
    ]


def test_thinking_is_switched_on_by_the_name_that_the_template_knows(words):
    assert as_prompts(["no"], tokenizer=words, chat=Chat(thinking=True))[0].text == "user no <end> assistant "
    other = copy.deepcopy(words)
    other.chat_template = "{{ thinking }} {{ messages[0].content }}"
    assert as_prompts(["no"], tokenizer=other, chat=Chat(thinking=True))[0].text == "True no"


def test_a_blank_prompt_is_refused(chatty):
    with pytest.raises(ValueError, match="prompt 1 is blank"):
        chatty.as_prompts(["no", " "])


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, True, "chat= asks for messages, and the model's tokenizer has no chat template"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
            Chat(system="be kind"),
            "chat=: a message cannot be read by the model's chat template: no system role",
        ),
        ("user {% if messages %}<end>{% endif %}", True, "the chat template leaves out the user's message"),
        ("{{ messages[-1].content }}", Chat(system="be kind"), "the chat template leaves out the system prompt"),
        ("{{ messages[0].content }} <think>", True, "begins a thought and has no switch for it"),
    ],
)
def test_what_the_template_cannot_do_is_refused_before_weights_are_read(words, tmp_path, template, chat, message):
    other = copy.deepcopy(words)
    other.chat_template = template
    other.save_pretrained(tmp_path)
    llama().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        xt.HookedLM.load(tmp_path, chat=chat)


def test_thoughts_need_a_token_that_ends_them(lm):
    other = copy.deepcopy(lm.tokenizer)
    other.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="thinking is asked for, and the tokenizer has no token that ends a thought"):
        Chat(thinking=True).check(other)


def test_a_loaded_model_is_not_loaded_in_another_way(chatty):
    with pytest.raises(ValueError, match="is loaded already"):
        xt.HookedLM.load(chatty, chat=True)
    with pytest.raises(TypeError, match="chat"):
        chatty.with_chat("be kind")


# --- What is written


def test_an_answer_ends_where_the_template_ends_it(base, chatty, words):
    end, eos = WORDS.index("<end>"), WORDS.index("<eos>")
    assert turn_ends(words) == (end,)
    assert (base.ends, chatty.ends) == ((eos,), (eos, end))
    plain = base.unwrapped()
    prompts = ["say go", "no", "kind sir", "be", "hmm well"]
    texts, ended = greedy(chatty, prompts, 12).texts, 0
    for prompt, text in zip(prompts, texts, strict=True):
        ids = by_hand(words, [{"role": "system", "content": "be kind"}, *user(prompt)])
        how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [eos, end]}
        new = plain.generate(torch.tensor([ids]), **how)[0, len(ids) :].tolist()
        ended += new[-1] in (eos, end)
        kept = [token for token in new if token not in (eos, end, WORDS.index("<pad>"))]
        marks = ThoughtMarks.of(words)
        answer = kept[marks.n_thought(ids, kept) :]
        assert text == words.decode(answer, skip_special_tokens=True)
    assert ended


def test_a_conversation_without_chat_is_warned_of_when_its_end_ends_nothing(base, caplog):
    with caplog.at_level(logging.WARNING, "xlingtox"):
        base.as_prompts(["say go"])
        assert not caplog.messages
        base.as_prompts([user("say go")])
    assert caplog.messages == [
        "LlamaForCausalLM: answers end with <end>, which ends no text of this model: load it with chat=True"
    ]


def test_a_thought_is_told_apart_from_the_answer(thinker, tmp_path):
    written = greedy(thinker, ["say go", [*user("no"), {"role": "assistant", "content": "say"}]], 9)
    assert (written.texts, written.thoughts) == (("yessir", "yessir"), ("hmmwell", ""))
    assert written.to_frame()["thought"].tolist() == ["hmmwell", ""]
    written.save(tmp_path / "written.json")
    assert xt.Continuations.load(tmp_path / "written.json") == written
    assert written.settings["model"]["chat"] == "chat, thinking"
    edits = [xt.Offset(NEURONS, 0.0), xt.Scale(NEURONS, 1.0)]
    under = xt.generate_under(thinker, edits, list(written.prompts), greedy=True, max_new_tokens=9, progress=False)
    assert [(one.texts, one.thoughts) for one in under] == [(written.texts, written.thoughts)] * 2


def test_a_thought_that_does_not_end_is_no_answer(thinker):
    written = greedy(thinker, ["say go"], 3)
    assert (written.texts, written.thoughts) == (("",), ("hmmwell",))


def test_a_template_that_begins_the_thought(scripted, words):
    other = copy.deepcopy(words)
    other.chat_template = "{{ messages[-1].content }} <end> assistant <think> "
    written = greedy(xt.HookedLM.load(scripted, tokenizer=other, chat=Chat(thinking=True)), ["no"], 8)
    assert (written.texts, written.thoughts) == (("yessir",), ("hmmwell",))


def test_without_thinking_there_is_no_thought(scripted, words):
    written = greedy(xt.HookedLM.load(scripted, tokenizer=words, chat=True), ["say go"], 6)
    assert (written.texts, written.thoughts) == (("yessir",), ())
    assert "thought" not in written.to_frame()


# --- Neurons


def read_by_hand(model, ids, positions):
    """The mean over `positions` of what plain hooks see before the down-projections of `NEURONS`."""
    seen = []
    handles = [
        model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, index=index: seen.append(args[0][0, :, index].detach().clone())
        )
        for layer, index in NEURONS
    ]
    model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)[:, positions].mean(1)


def test_neurons_are_read_over_the_answer_and_not_over_the_thought(thinker, scripted, words):
    ids = by_hand(words, user("say go"), enable_thinking=True)
    new = [WORDS.index(word) for word in "<think> hmm well </think> yes sir".split()]
    expected = read_by_hand(scripted, ids + new, slice(len(ids) + 3, None))
    activations = xt.collect_activations(thinker, ["say go"], NEURONS, max_new_tokens=9, progress=False)
    assert activations.mask.nonzero()[:, 1].tolist() == [4, 5, 6]
    torch.testing.assert_close(activations.mean(), expected, atol=1e-6, rtol=1e-5)
    other = thinker.with_chat(Chat(thinking=True))
    how = {"max_new_tokens": 9, "progress": False, "writer": thinker}
    as_read = xt.collect_activations(other, ["say go"], NEURONS, **how)
    assert torch.equal(as_read.mask, activations.mask)
    torch.testing.assert_close(as_read.mean(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(as_read.values, activations.values, atol=1e-6, rtol=1e-5)


# --- One model next to another


@pytest.fixture(scope="module")
def compared(base, chatty, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    how = {"n_samples": 3, "max_new_tokens": 6, "n_random": 0, "output_dir": folder, "progress": False}
    scorer = HashScorer("en", "es")
    prompts = {"en": ["say go", "kind sir"], "es": ["no", "be"]}
    return xt.compare(base, chatty, prompts, neurons=NEURONS, scorer=scorer, **how), folder, prompts


def test_each_model_of_a_comparison_reads_prompts_in_its_own_form(base, chatty, compared):
    comparison, folder, prompts = compared
    assert [model.chat for model in comparison.models] == [None, "chat, system 'be kind'"]
    for side, lm in (("before", base), ("after", chatty)):
        written = xt.Continuations.load(folder / f"{side}.json")
        again = xt.generate(lm, prompts, n_samples=3, max_new_tokens=6, progress=False)
        assert (written.prompts, written.texts) == (again.prompts, again.texts)
    assert json.loads((folder / "before.json").read_text())["prompts"][0] == ["en", "say go"]
    assert {row.norm_change for row in comparison.drift} == {0.0}
    scorer = HashScorer("en", "es")
    how = {"n_samples": 3, "max_new_tokens": 6, "n_random": 0, "output_dir": folder, "progress": False}
    again = xt.compare(base, chatty, prompts, neurons=NEURONS, scorer=scorer, **how)
    assert again == comparison


def test_the_chat_model_reads_the_base_models_text_as_an_answer(base, words, compared):
    comparison, _, prompts = compared
    plain, means = base.unwrapped(), []
    for prompt in prompts["en"]:
        ids = words(prompt)["input_ids"]
        new = plain.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        asked = by_hand(words, [{"role": "system", "content": "be kind"}, *user(prompt)])
        means.append(read_by_hand(plain, asked + new[:-1], slice(len(asked) - 1, None)).mean())
    change = comparison.activity.changes["en"]["sources"]
    assert change.after == pytest.approx(float(torch.stack(means).mean()), abs=1e-5)


# --- Tuning and other models made of one


PAIRS = [
    {"prompt": "say go", "chosen": " yes sir", "rejected": " no"},
    {"prompt": "be", "chosen": " kind", "rejected": " hmm well"},
]


def test_pairs_of_texts_become_conversations(chatty, words):
    usable = tunable_pairs(chatty, PAIRS, recipe=MINI)
    assert (usable.conversations, usable.merged) == (("train",), ())
    start = [{"role": "system", "content": "be kind"}]
    for row, pair in zip(usable.tokenized("train", chatty), PAIRS, strict=True):
        prompt = by_hand(words, start + user(pair["prompt"]))
        for side in ("chosen", "rejected"):
            answered = [*start, *user(pair["prompt"]), {"role": "assistant", "content": pair[side].strip()}]
            ids = by_hand(words, answered, add_generation_prompt=False)
            assert row["prompt_ids"] + row[f"{side}_ids"] == ids
        # The template writes an answered prompt without the empty thought, so the prompt ends before it.
        assert row["prompt_ids"] == prompt[:-2]


def test_faults_of_pairs_of_texts_are_those_of_a_model_without_chat(words):
    with pytest.raises(ValueError, match=r"1 of 2 have no chosen \(rows 1\)"):
        check_pairs([PAIRS[0], PAIRS[1] | {"chosen": " "}], tokenizer=words, chat=Chat())
    with pytest.raises(ValueError, match=r"1 of 2 have chosen equal to rejected \(rows 0\)"):
        check_pairs([PAIRS[0] | {"chosen": "no"}, PAIRS[1]], tokenizer=words, chat=Chat())


def test_a_model_made_of_a_chat_model_is_one(chatty, tmp_path):
    recipe = replace(MINI, steps=1, batch_size=2, learning_rate=1e-2)
    tuned = tune_dpo(chatty, PAIRS, output_dir=tmp_path / "run", recipe=recipe, progress=False)
    baked = xt.Offset(NEURONS, 1.0).bake(chatty)
    assert [lm.chat for lm in (tuned, baked, chatty.prefixed("go"))] == [chatty.chat] * 3
    assert tuned.ends == chatty.ends
    assert chatty.with_chat(False).as_prompts(["say go"])[0].text == "say go"
