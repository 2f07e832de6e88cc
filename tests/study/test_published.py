"""The authors' own choices, against plain PyTorch."""

import copy

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.models.hooked import HookedLM
from xlingtox.models.states import mean_states
from xlingtox.neurons.probe import split
from xlingtox.study import published

TEXTS = ["the cat", "la casa es grande y el gato duerme en la cama", "a", "кот сидит"]
PROMPTS = ["the cat", "the dog ran", "la casa"]


def normed(model, ids):
    """States after the final norm, as Hugging Face gives them."""
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]


@pytest.fixture(scope="module")
def starting(model, tokenizer):
    """The model with a beginning of text that its tokenizer knows and does not add."""
    with_start = copy.deepcopy(tokenizer)
    with_start.bos_token = "<eos>"
    return HookedLM.load(model, tokenizer=with_start)


def test_states_after_the_final_norm_equal_the_last_hidden_states(family, tokenizer):
    layers = [family.lm.n_layers + 1, family.lm.n_layers]
    ours = mean_states(family.lm, TEXTS, layers, progress=False)
    alone = mean_states(family.lm, TEXTS, layers[:1], progress=False)
    assert torch.equal(alone[0], ours[0])
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        assert_close(ours[0, row], normed(family.model, ids).mean(0), atol=1e-5, rtol=1e-5)
        assert_close(ours[1, row], raw.states(family.model, torch.tensor([ids]))[-1][0].mean(0), atol=1e-5, rtol=1e-5)


def test_their_probe_is_plain_logistic_regression_on_states_after_the_norm(lm, model, tokenizer):
    rows = [(f"the {what} sat on the {place}", int(what == "dog")) for what in ("cat", "dog") for place in "abcdefgh"]
    texts, labels = [list(side) for side in zip(*rows, strict=True)]
    table = Dataset.from_dict({"text": texts, "label": labels})
    how = {"learning_rate": 1e-2, "epochs": 3, "held_out_share": 0.25, "progress": False}
    probe = published.fit_probe(lm, table, **how)
    train, test = split(labels, held_out_share=0.25)
    states = torch.stack([normed(model, tokenizer(text)["input_ids"]).mean(0) for text in texts]).double().numpy()
    torch.manual_seed(0)
    weight = torch.nn.Linear(lm.d_model, 1, bias=False).weight.detach()[0].double().numpy()
    rng, y = torch.Generator().manual_seed(0), np.array(labels)
    first, second, step, losses = np.zeros_like(weight), np.zeros_like(weight), 0, []
    for _ in range(3):
        for batch in np.array(train)[torch.randperm(len(train), generator=rng).numpy()][:, None].T[0:1]:
            for rows_ in (batch[:10], batch[10:]):
                error = 1 / (1 + np.exp(-states[rows_] @ weight)) - y[rows_]
                gradient, step = states[rows_].T @ error / len(rows_), step + 1
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                weight = weight - 1e-2 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        logits = states[test] @ weight
        losses.append((np.mean(np.logaddexp(0, logits) - y[test] * logits), weight))
    assert_close(probe.direction.double().numpy(), min(losses, key=lambda each: each[0])[1], atol=1e-4, rtol=1e-3)
    assert (probe.bias, probe.n_train, probe.n_held_out, probe.baseline) == (0.0, 12, 4, 0.5)


def test_activations_of_all_steps_after_a_beginning(starting, model, tokenizer):
    neurons = xt.NeuronSet.of([(0, 3), (1, 5)])
    activations = published.collect_activations(starting, PROMPTS, neurons, max_new_tokens=4, progress=False)
    assert bool(activations.mask.all())
    expected = []
    for prompt in PROMPTS:
        ids = [0, *tokenizer(prompt)["input_ids"]]
        for _ in range(4):
            seen = []
            hooks = [
                block.mlp.c_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0, -1]))
                for block in model.transformer.h
            ]
            ids.append(int(raw.forward(model, torch.tensor([ids])).logits[0, -1].argmax()))
            for hook in hooks:
                hook.remove()
            expected.append(torch.stack([seen[0][3], seen[1][5]]))
    assert_close(activations.mean(), torch.stack(expected).mean(0).detach(), atol=1e-5, rtol=1e-4)


def test_without_a_stop_all_steps_count(ending, lm, tokenizer):
    """With the model's favourite token as an end, stopping ends at once."""
    prompt, neurons = "the cat", xt.NeuronSet.of([(0, 3)])
    ids, mask = lm.encode([prompt])
    token = int(lm.logits(ids, mask)[0, -1].argmax())
    stopped = xt.collect_activations(ending(token), [prompt], neurons, max_new_tokens=4, progress=False)
    going = xt.collect_activations(
        ending(token), [prompt], neurons, max_new_tokens=4, progress=False, stop_at_end=False
    )
    assert (stopped.mask.sum(), going.mask.sum()) == (1, 4)
    assert_close(going.values, xt.collect_activations(lm, [prompt], neurons, max_new_tokens=4, progress=False).values)


def test_one_beginning_and_no_second(starting):
    rows = published.with_start(starting, {"en": ["the cat", "<eos>the dog"], "es": ["la casa"]})
    assert list(rows["prompt"]) == ["<eos>the cat", "<eos>the dog", "<eos>la casa"]
    assert list(rows["language"]) == ["en", "en", "es"]


def test_conversations_are_rendered_by_the_model_s_template(starting):
    turns = [{"role": "user", "content": "the cat"}]
    with_template = copy.copy(starting)
    tokenizer = copy.deepcopy(starting.tokenizer)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} sat{% endfor %}"
    with_template.tokenizer = tokenizer
    assert list(published.with_start(with_template, {"en": [turns]})["prompt"]) == ["<eos>the cat sat"]


def test_a_tokenizer_without_a_beginning(lm):
    with pytest.raises(ValueError, match="no beginning of text"):
        published.with_start(lm, PROMPTS)


def test_their_retrieval_figure_by_hand(family, tokenizer, monkeypatch):
    english, spanish = ["the cat", "the house", "x" * 257, "a dog"], ["el gato", "la casa", "x", "y" * 257]
    figures = published.aligned_cosines(family.lm, {"en": english, "es": spanish}, progress=False)
    cosines = []
    for pair in zip(english[:2], spanish[:2], strict=True):
        sides = []
        for text in pair:
            ids = tokenizer(text)["input_ids"]
            states = raw.states(family.model, torch.tensor([ids]))
            sides.append([*(state[0].mean(0) for state in states), normed(family.model, ids).mean(0)])
        cosines += [float(torch.cosine_similarity(*both, dim=0)) for both in zip(*sides, strict=True)]
    assert len(cosines) == 2 * (family.lm.n_layers + 2)
    assert figures == {"es": pytest.approx(np.mean(cosines), abs=1e-5)}
    several = {"en": english, "es": spanish, "de": ["die katze", "y" * 257, "das haus", "ein hund"], "ru": english}
    read, texts_read = published.mean_states, []
    monkeypatch.setattr(
        published, "mean_states", lambda lm, texts, **more: texts_read.append(texts) or read(lm, texts, **more)
    )
    together = published.aligned_cosines(family.lm, several, progress=False)
    assert [len(texts) for texts in texts_read] == [3, 2, 2, 3], "English is read once"
    for code in ("es", "de", "ru"):
        alone = published.aligned_cosines(family.lm, {"en": english, code: several[code]}, progress=False)
        assert together[code] == pytest.approx(alone[code], abs=1e-6)
    with pytest.raises(ValueError, match="every pair in es"):
        published.aligned_cosines(family.lm, {"en": ["x" * 300, "y" * 300], "es": ["a b", "c"]}, progress=False)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: expected a finite number above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_impossible_fits_are_refused(lm, how, words):
    with pytest.raises(ValueError, match=words):
        published.fit_probe(lm, [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS * 10)], **how)


def test_what_their_choices_do_not_fit_is_refused(lm, tmp_path):
    labelled = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS * 10)]
    published.fit_probe(lm, labelled, epochs=1, progress=False).save(tmp_path / "probe")
    with pytest.raises(ValueError, match="reads states after the final norm"):
        xt.scoring.ProbeScorer(lm, xt.Probe.load(tmp_path / "probe"), languages=["en"])
    parallel = Dataset.from_dict({"en": ["the cat"], "es": ["la casa"]})
    with xt.Offset(xt.NeuronSet.of([(0, 1)]), 1.0).on(lm):
        lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="which these figures do not show"):
            published.aligned_cosines(lm, parallel, progress=False)
