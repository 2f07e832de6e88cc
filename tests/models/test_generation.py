import copy
import random

import families
import numpy as np
import pytest
import raw
import torch
import transformers
from scipy.stats import chisquare, kstest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xlingtox.data import Prompt
from xlingtox.models.generation import Continuations, decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sampling import Sampler
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = ["the cat", "la casa es grande y el gato", "a", "кот сидит на", "das ist", "the dog ran away from"]


def wrote(lm, prompts=PROMPTS, **options):
    options = {"n_samples": 4, "max_new_tokens": 8, "progress": False} | options
    return generate(lm, prompts, **options)


def test_a_table_of_what_was_written(lm):
    written = wrote(lm, {"es": ["hola"], "en": ["cat", "dog"]}, n_samples=2)
    table = written.to_frame()
    assert list(table.columns) == ["language", "prompt_id", "prompt", "sample", "continuation"]
    assert table["language"].tolist() == written.row_languages == ["es"] * 2 + ["en"] * 4
    assert table["prompt_id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["prompt"].tolist() == ["hola"] * 2 + ["cat"] * 2 + ["dog"] * 2
    assert table["sample"].tolist() == [0, 1] * 3
    assert table["continuation"].tolist() == list(written.texts)
    assert written.prompts == (Prompt("es", "hola"), Prompt("en", "cat"), Prompt("en", "dog"))
    assert written.languages == ("en", "es")
    assert len(written) == 6
    assert repr(written) == "Continuations(6: 2 of each of 3 prompts, in en, es)"


def test_greedy_is_one_continuation_a_prompt_without_the_prompt(family, tokenizer):
    written = wrote(family.lm, greedy=True, n_samples=25)
    for prompt, text in zip(PROMPTS, written.texts, strict=True):
        new, _ = raw.greedy(family.model, tokenizer(prompt)["input_ids"], 8, tokenizer.eos_token_id)
        assert text == tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("special", [True, False])
def test_a_row_stops_at_its_end(ending, model, tokenizer, special):
    """Tokens after the end are fill, not text, also where the tokenizer would show the end as text."""
    end = raw.greedy(model, tokenizer(PROMPTS[0])["input_ids"], 8)[0][3]
    texts = wrote(ending(end, special), greedy=True).texts
    for prompt, text in zip(PROMPTS, texts, strict=True):
        new, _ = raw.greedy(model, tokenizer(prompt)["input_ids"], 8, end)
        assert text == tokenizer.decode([token for token in new if token != end])


@pytest.mark.parametrize("batch_size", [1, 4, 9, 24])
def test_batch_size_changes_no_row(family, batch_size):
    assert wrote(family.lm, batch_size=batch_size).texts == wrote(family.lm).texts


def test_rows_that_ended_change_no_other_row(ending, model, tokenizer):
    end = raw.greedy(model, tokenizer(PROMPTS[0])["input_ids"], 8)[0][3]
    lm = ending(end)
    apart = [wrote(lm, [prompt], temperature=0.5, n_samples=10).texts for prompt in PROMPTS]
    assert len({len(tokenizer(text)["input_ids"]) for texts in apart for text in texts}) > 2
    assert wrote(lm, temperature=0.5, n_samples=10).texts == tuple(text for texts in apart for text in texts)


def test_the_order_of_prompts_changes_no_row(family):
    order = random.Random(0).sample(range(len(PROMPTS)), len(PROMPTS))
    straight = wrote(family.lm).to_frame().set_index(["prompt", "sample"])["continuation"]
    mixed = wrote(family.lm, [PROMPTS[i] for i in order]).to_frame().set_index(["prompt", "sample"])["continuation"]
    assert mixed.to_dict() == straight.to_dict()


def test_more_samples_keep_the_first(lm):
    two, many = wrote(lm, n_samples=2), wrote(lm, n_samples=5)
    assert two.texts == tuple(t for i, t in enumerate(many.texts) if i % 5 < 2)
    assert len(set(many.texts)) > len(PROMPTS)


def test_a_seed_is_any_whole_number(lm, tmp_path):
    written = wrote(lm, seed=np.int64(3))
    assert written.texts == wrote(lm, seed=3).texts
    written.save(tmp_path / "texts")
    assert Continuations.load(tmp_path / "texts") == written


def test_prompts_of_like_length_are_written_together(lm, monkeypatch):
    prompts, encode, seen = ["a", "the dog ran away from the", "b", "la casa es grande y el"], lm.encode, []
    monkeypatch.setattr(lm, "encode", lambda texts: (seen.append(list(texts)), encode(texts))[1])
    wrote(lm, prompts, n_samples=2, batch_size=4)
    assert sorted(map(sorted, seen)) == [["a", "b"], sorted(prompts[1::2])]


def test_prompts_are_sampled_apart(two_word_model):
    _, lm = two_word_model(torch.zeros(2, 600))
    texts = wrote(lm, ["w0", "w1"], n_samples=20, max_new_tokens=1).texts
    assert len(set(texts)) > 30
    assert texts[:20] != texts[20:]


def frequencies_fit(model, lm, word, *, temperature, top_p, n):
    """Compare counts of the next token with exact nucleus probabilities by hand. Return the nucleus's size."""
    logits = raw.forward(model, torch.tensor([[lm.tokenizer.convert_tokens_to_ids(word)]])).logits[0, -1]
    chance = raw.nucleus(logits, temperature, top_p)
    written = wrote(lm, [word], n_samples=n, max_new_tokens=1, temperature=temperature, top_p=top_p, seed=5)
    tokens = lm.tokenizer.convert_tokens_to_ids([text.strip() for text in written.texts])
    counts = np.bincount(tokens, minlength=len(chance))
    inside = chance > 0
    assert counts[~inside].sum() == 0
    if inside.sum() > 1:
        assert chisquare(counts[inside], n * chance[inside]).pvalue > 0.001
    return int(inside.sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(0.9, 0.8), (0.5, 0.95), (1.0, 1.0), (1.0, 0.01)])
def test_sampling_follows_the_exact_nucleus(two_word_model, temperature, top_p):
    logits = torch.randn(2, 14, generator=torch.Generator().manual_seed(1))
    logits[:, -2:] = -40.0
    model, lm = two_word_model(logits)
    assert (frequencies_fit(model, lm, "w0", temperature=temperature, top_p=top_p, n=4000) == 1) == (top_p == 0.01)


def test_a_nucleus_of_more_than_256_tokens_is_exact(two_word_model):
    logits = 0.5 * torch.randn(2, 600, generator=torch.Generator().manual_seed(2))
    model, lm = two_word_model(logits)
    assert frequencies_fit(model, lm, "w0", temperature=0.9, top_p=0.8, n=8000) > 256


def test_a_flat_neighbour_changes_no_row_even_where_logits_tie(two_word_model):
    """Ties are common in half precision; which of the tied tokens come first must not depend on the batch."""
    logits = torch.zeros(2, 600)
    logits[0, ::7] = 9.0  # 86 tied tokens hold the mass after w0; after w1 all 598 tie
    _, lm = two_word_model(logits)
    alone = wrote(lm, ["w0"], n_samples=50, max_new_tokens=1).texts
    in_a_batch = wrote(lm, ["w0", "w1"], n_samples=50, max_new_tokens=1, batch_size=100).texts[:50]
    assert alone == in_a_batch


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "no prompts"),
        ([""], "prompt 0 is blank"),
        (["cat", " \n"], "prompt 1 is blank"),
        ({"xx": ["cat"]}, "unknown language"),
    ],
)
def test_bad_prompts(lm, prompts, words):
    with pytest.raises(ValueError, match=words):
        wrote(lm, prompts)


def test_a_prompt_fills_the_context_but_for_the_new_tokens(lm, tokenizer):
    long = "a" * 56
    assert len(tokenizer(long)["input_ids"]) == 56
    assert len(wrote(lm, [long])) == 4
    with pytest.raises(ValueError, match=r"prompt 1 has 57 tokens.*room for 56 \(64 positions minus 8 new tokens\)"):
        wrote(lm, ["cat", long + "a"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_samples": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_bad_sampling(lm, options, words):
    with pytest.raises(ValueError, match=words):
        wrote(lm, **options)


@pytest.mark.parametrize("spread", [0.01, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("top_p", [0.1, 0.8, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_the_nucleus_of_a_large_vocabulary_by_sorting_all_of_it(spread, top_p, tied):
    rng = np.random.default_rng(0)
    logits = (spread * rng.normal(size=5000)).astype(np.float32)
    if tied:
        logits = np.round(logits, 1)
    n = 3000
    sampler = Sampler(torch.tensor(rng.random((n, 1, 5))), 0.9, top_p)
    drawn = sampler(torch.tensor(logits).expand(n, -1), torch.arange(n), 0).numpy()
    # Tokens inside the nucleus alone (rounding may move its edge by one); where each lies in its mass is uniform.
    exact = raw.nucleus(torch.tensor(logits), 0.9, top_p)
    assert len(np.unique(drawn[exact[drawn] == 0])) <= 1
    order = np.argsort(-exact, kind="stable")
    before = np.empty_like(exact)
    before[order] = np.cumsum(exact[order]) - exact[order]
    places = before[drawn] + rng.random(n) * exact[drawn]
    assert kstest(places, "uniform").pvalue > 1e-3


# --- where a text ends, and how it begins


def test_every_end_that_the_settings_name_ends_a_row(model, tokenizer):
    """Instruct checkpoints name several ends. Hugging Face stops at any of them, too."""
    lm = HookedLM.load(model, tokenizer=tokenizer)
    ids, mask = lm.encode(PROMPTS)
    free = decode(lm, ids, mask, 12, pick=pick_greedily)[0]
    model_with_ends = copy.deepcopy(model)
    model_with_ends.generation_config.eos_token_id = [tokenizer.eos_token_id, int(free[0, 3]), 10**6]
    both = HookedLM.load(model_with_ends, tokenizer=tokenizer)
    assert both.ends == (tokenizer.eos_token_id, int(free[0, 3]))
    tokens, counts = decode(both, ids, mask, 12, pick=pick_greedily)
    model_with_ends.generation_config.eos_token_id = list(both.ends)
    for row, kept, new, count in zip(ids, mask, tokens, counts, strict=True):
        theirs = model_with_ends.generate(input_ids=row[kept][None], do_sample=False, max_new_tokens=12)[
            0, int(kept.sum()) :
        ]
        assert new[count].tolist() == theirs.tolist()
    assert int(counts[0].sum()) <= 4
    written = wrote(both, PROMPTS[:1], greedy=True, max_new_tokens=12).texts[0]
    assert (
        written
        == lm.decode([new[: int(count.sum()) - 1].tolist() for new, count in zip(tokens, counts, strict=True)])[0]
    )


def test_the_first_space_is_kept():
    """Llama 2's tokenizer leaves out the first space of what it decodes, and prompt and text would run together."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<eos>", "<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(parts)
    spaced = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    lm = HookedLM.load(families.build("llama"), tokenizer=spaced)
    prompt, text = spaced("the cat")["input_ids"], spaced("the cat sat")["input_ids"]
    new = text[len(prompt) :]
    assert lm.decode([new]) == ["sat"]
    assert lm.decode_after([prompt], [new]) == [" sat"]
    texts = wrote(lm, ["the cat"], n_samples=30, max_new_tokens=4, temperature=3.0, top_p=1.0).texts
    assert any(text.startswith(" ") for text in texts)
    # A prompt that ends within a character.
    assert lm.decode_after([prompt[:1]], [[]]) == [""]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 1e-40}, "at least 1e-06"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_that_sampling_cannot_use(lm, options, words):
    with pytest.raises(ValueError, match=words):
        wrote(lm, PROMPTS[:1], **options)


@pytest.mark.parametrize("shown", [True, False])
def test_long_work_shows_how_far_it_is(lm, capsys, shown):
    generate(lm, PROMPTS, n_samples=2, max_new_tokens=2, progress=shown)
    bar = capsys.readouterr().err
    assert (f"/{2 * len(PROMPTS)}" in bar) == shown
    if not shown:
        assert bar == ""


@pytest.fixture(scope="module")
def padded(tokenizer):
    """A model with 40 rows beyond the tokenizer's tokens, and a hole among those; the rows have the largest logits."""
    pieces = tokenizer.get_vocab()
    words = {word: place for word, place in pieces.items() if place < 290} | {"<late>": 295}
    level = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    holed = PreTrainedTokenizerFast(tokenizer_object=level, eos_token="<eos>", pad_token="<pad>")
    config = families.build("llama").config
    config.vocab_size = 340
    model = families.randomised(transformers.LlamaForCausalLM(config))
    with torch.no_grad():
        model.lm_head.weight[290:] *= 30
    return model, HookedLM.load(model, tokenizer=holed)


def test_rows_without_a_token_are_known(padded, lm):
    assert padded[1].without_text.tolist() == [*range(290, 295), *range(296, 340)]
    assert lm.without_text is None


def test_what_is_no_token_is_never_written(padded):
    model, lm = padded
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    none = set(lm.without_text.tolist())
    greedy, _ = decode(lm, ids, mask, 6, pick=pick_greedily)
    for row, written in zip(ids.tolist(), greedy.tolist(), strict=True):
        for i, token in enumerate(written):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row + written[:i]])).logits[0, -1]
            assert int(logits.argmax()) in none
            assert token == max(set(range(340)) - none, key=lambda each: float(logits[each]))
    chance = torch.rand(40, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for top_p in (0.8, 1.0):
        tokens, _ = decode(lm, ids, mask, 6, pick=Sampler(chance, 5.0, top_p), n_samples=20)
        assert not set(tokens.flatten().tolist()) & none
    read = lm.logits(ids, mask)
    assert bool(read.isfinite().all())


def test_an_end_that_the_tokenizer_does_not_name_is_written(tokenizer):
    config = families.build("llama").config
    config.vocab_size = 310
    model = families.randomised(transformers.LlamaForCausalLM(config))
    model.generation_config.eos_token_id = [0, 305]
    lm = HookedLM.load(model, tokenizer=tokenizer)
    assert lm.without_text.tolist() == [*range(300, 305), *range(306, 310)]


def test_what_is_no_token_is_not_promoted(padded):
    model, lm = padded
    table = NeuronSet.of([(1, 4)]).promoted_tokens(lm, k=291)
    logits = model.lm_head.weight.detach() @ families.values(model, "llama", 1)[4]
    assert int(logits.argmax()) in lm.without_text.tolist()
    kept = sorted({*range(290), 295}, key=lambda each: -float(logits[each]))
    assert table["token_id"].tolist() == kept
    with pytest.raises(ValueError, match="k is 292: expected 1 to 291 tokens"):
        NeuronSet.of([(1, 4)]).promoted_tokens(lm, k=292)
