import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import raw
import torch
from conftest import randomised, tiny
from datasets import Dataset
from scipy import stats
from toys import strict_json

from xlingtox import mini
from xlingtox.data import Prompt
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import degenerate, soundness
from xlingtox.evaluation.fluency import Fluency, conditional_perplexity, text_perplexities
from xlingtox.evaluation.soundness import Reference
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.neuron_set import NeuronSet

BASE = Identity("base", None, "float32", "0123456789ab")
REFERENCE = Reference(BASE, {"en": 4, "ru": 0}, {"en": 50.0, "ru": 900.0}, {"en": {}, "ru": {}}, max_new_tokens=20)
HELD_OUT = Dataset.from_dict(
    {
        "language": ["en", "ru", "en", "en"],
        "text": ["the cat sat", "кот сидит на коврике", "the house and the mat ran away", "x"],
    }
)


def judged(*rows, code="en", budget=20, model=BASE):
    """Texts, each with its perplexity and its number of tokens."""
    texts, values, lengths = zip(*rows, strict=True)
    own = Continuations((Prompt(code, "so"),), len(texts), texts, {"max_new_tokens": budget})
    return own, Fluency("base", np.array(values), {}, {}, model=model, n_tokens=np.array(lengths))


def kinds(*rows, **how):
    return soundness.kinds(*judged(*rows, **how), REFERENCE)


def test_each_kind_has_its_name():
    assert kinds(
        (" the cat sat on the mat", 12.0, 7),
        ("", math.nan, 0),
        ("...", 3.0, 1),
        (" the cat.", 12.0, 3),
        (" no no no no no no", 12.0, 6),
        (" кот сидит на коврике", 12.0, 9),
        (" sea of the mat by", 50.1, 5),
    ) == ["sound", "empty", "empty", "ended early", "repeated", "wrong script", "gibberish"]


def test_gibberish_begins_above_the_limit_and_includes_what_has_no_number():
    limits = [50.0, np.nextafter(50.0, 51), 1e4, 1e9, math.inf]
    assert kinds(*((" the cat sat on", value, 9) for value in limits)) == ["sound"] + ["gibberish"] * 4
    assert kinds((" the cat sat on", math.nan, 9)) == ["gibberish"], "judged, and no number came out"
    assert kinds((" the cat sat on", math.nan, 0)) == ["sound"], "too long to be judged"
    assert kinds((" кот сидит", 900.0, 9), (" кот сидит", 901.0, 9), code="ru") == ["sound", "gibberish"]


def test_out_of_range_is_gibberish_also_where_the_model_itself_writes_so():
    wild = dataclasses.replace(REFERENCE, highest_perplexity={"en": 1e4, "ru": 1e4})
    assert soundness.kinds(*judged((" the cat", 9999.0, 9), (" the cat", 1e4, 9)), wild) == ["sound", "gibberish"]


def test_a_text_that_filled_its_budget_did_not_end_early():
    short = dataclasses.replace(REFERENCE, max_new_tokens=3)
    rows = (" the cat.", 12.0, 3), (" the.", 12.0, 2)
    assert soundness.kinds(*judged(*rows, budget=3), short) == ["sound", "ended early"]
    assert kinds((" кот.", 12.0, 1), code="ru") == ["sound"], "this model's texts may end at once there"


def test_an_identifier_is_asked_about_what_is_sound_so_far():
    asked = []

    def identify(texts):
        asked.extend(texts)
        return ["es", None]

    rows = (" el gato duerme", 60.0, 9), (" the.", 2.0, 2), (" bla bli blo", 60.0, 9), ("", math.nan, 0)
    found = soundness.kinds(*judged(*rows), REFERENCE, identify_language=identify)
    assert found == ["wrong language", "ended early", "gibberish", "empty"]
    assert asked == [rows[0][0], rows[2][0]]


# --- the reference


@pytest.mark.parametrize("family_name", ["gpt2", "llama"])
def test_the_reference_by_hand(family_name, tokenizer):
    """Lengths and perplexities from plain Hugging Face, text by text."""
    model = tiny(family_name)
    lm = HookedLM.load(model, tokenizer=tokenizer)
    prompts = {"en": ["the cat", "a"], "ru": ["кот"]}
    own = generate(lm, prompts, n_samples=6, max_new_tokens=8, seed=3, progress=False)
    reference = Reference.measure(lm, own, HELD_OUT, progress=False)
    values, lengths = {"en": [], "ru": []}, {"en": [], "ru": []}
    for code, prompt, text in own.to_frame()[["language", "prompt", "continuation"]].itertuples(index=False):
        if (value := raw.conditional_perplexity(model, tokenizer, prompt, text)) is not None:
            values[code].append(value)
            alone, both = (tokenizer(words)["input_ids"] for words in (prompt, prompt + text))
            n_same = next((i for i, ids in enumerate(zip(alone, both, strict=False)) if ids[0] != ids[1]), len(alone))
            lengths[code].append(len(both) - n_same)
    held = {"en": [], "ru": []}
    for row in HELD_OUT:
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
        if ids.shape[1] > 1:
            with torch.no_grad():
                held[row["language"]].append(math.exp(float(model(ids, labels=ids).loss)))
    found = text_perplexities(lm, HELD_OUT, progress=False)
    for code in ("en", "ru"):
        assert found[code] == pytest.approx(held[code], rel=1e-4)
        # Few held-out texts: both kinds make one distribution.
        logs = np.log(values[code] + held[code])
        n = len(logs)
        limit = math.exp(logs.mean() + stats.t(n - 1).ppf(0.99) * np.std(logs, ddof=1) * math.sqrt(1 + 1 / n))
        assert reference.highest_perplexity[code] == pytest.approx(max(limit, *values[code], *held[code]), rel=1e-3)
        assert reference.counts[code] == {"continuations": len(values[code]), "held_out": len(held[code])}
    assert reference.fewest_tokens["en"] == math.ceil(min(lengths["en"]) / 2), "fewer than a hundred texts"
    assert reference.fewest_tokens["ru"] == 0, "six texts do not show how short one may be"
    assert reference.max_new_tokens == 8
    assert reference.model == lm.identity()


def measured(lm, rows, held_out=None, **how):
    own, fluency = judged(*rows, model=lm.identity(), **how)
    return Reference.measure(lm, own, held_out, fluency=fluency)


def test_a_broken_text_among_many_does_not_move_the_limit(lm):
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(2, 0.5, 500))
    rows = [(" the cat sat", value, 20) for value in values]
    clean = measured(lm, rows).highest_perplexity["en"]
    assert 0.9 < clean / math.exp(2 + 2.326 * 0.5) < 1.2
    broken = measured(lm, [*rows, *[(" the cat sat", 9e9, 20)] * 3]).highest_perplexity["en"]
    assert clean <= broken < 1.4 * clean
    assert measured(lm, [(" the cat", math.inf, 20)] * 20).highest_perplexity["en"] == 1e4
    assert measured(lm, [(" the cat", 7.0, 20)]).highest_perplexity["en"] == 1e4, "one text shows no spread"


@pytest.mark.parametrize("n", [3, 12, 40, 200, 1000])
def test_at_most_one_in_a_hundred_of_its_own_texts_is_flagged(lm, n):
    """By construction; and of new texts of the same kind about as many, however few were measured."""
    rng = np.random.default_rng(n)
    own_share, new_share = [], []
    for _ in range(20):
        # Perplexities with a heavier tail than the normal distribution, and lengths as of a model that ends its texts.
        values = np.exp(2 + 0.6 * rng.standard_t(5, (2, 1000)))
        lengths = rng.geometric(0.12, (2, 1000)).clip(max=20)
        rows = [[(" the cat sat", *row) for row in zip(values[side], lengths[side], strict=True)] for side in (0, 1)]
        reference = measured(lm, rows[0][:n])
        own, new = (soundness.kinds(*judged(*side, model=lm.identity()), reference) for side in (rows[0][:n], rows[1]))
        own_share.append([own.count("ended early") / n, own.count("gibberish") / n])
        new_share.append([new.count("ended early") / 1000, new.count("gibberish") / 1000])
    assert np.max(own_share) <= 0.01
    ended_early, gibberish = np.mean(new_share, 0)
    assert gibberish < 0.025
    assert ended_early < 0.02


def test_nothing_is_early_where_the_models_own_texts_end_at_once(lm):
    reference = measured(lm, [(" the", 7.0, 1 + i % 2) for i in range(200)])
    assert reference.fewest_tokens["en"] == 1
    # Nearly all of the budget is no silence, even if the model itself always fills it.
    assert measured(lm, [(" the", 7.0, 20)] * 200).fewest_tokens["en"] == 10
    some = [(" the", 7.0, length) for length in [3, 4, *range(10, 20)] * 20]
    assert measured(lm, some).fewest_tokens["en"] == 3
    assert measured(lm, some[2:70]).fewest_tokens["en"] == 2, "half of the shortest"


def test_an_edit_that_breaks_text_is_seen_by_perplexity_where_the_texts_alone_look_sound():
    lm = HookedLM.load("mini")
    prompts, held_out = mini.prompts(n=8, languages=["en", "es"]), mini.held_out(n=20, languages=["en", "es"])
    how = {"n_samples": 8, "max_new_tokens": 12, "progress": False}
    own = generate(lm, prompts, **how)
    reference = Reference.measure(lm, own, held_out, progress=False)
    rng = np.random.default_rng(0)
    neurons = NeuronSet.of([(layer, int(i)) for layer in range(lm.n_layers) for i in rng.choice(100, 8, replace=False)])
    with Offset(neurons, -10.0).on(lm):
        broken = generate(lm, prompts, **how)
    found = {}
    for name, written in (("own", own), ("other seed", generate(lm, prompts, **how, seed=1)), ("broken", broken)):
        fluency = conditional_perplexity(lm, written, progress=False)
        unsound = soundness.kinds(written, fluency, reference)
        found[name] = unsound.count("gibberish") / len(unsound), unsound.count("ended early") / len(unsound)
    assert max(found["own"]) <= 0.01
    assert max(found["other seed"]) <= 0.04
    by_text_alone = degenerate.kinds(broken.texts, broken.row_languages)
    assert by_text_alone.count("sound") > len(by_text_alone) / 2
    assert found["broken"][0] > 0.5
    assert found["broken"][0] >= by_text_alone.count("sound") / len(by_text_alone) - 0.01


def test_a_model_without_numbers_writes_gibberish(model, tokenizer):
    """Weights that overflow give losses that are not a number."""
    lm = HookedLM.load(model, tokenizer=tokenizer)
    own = generate(lm, ["the cat"], n_samples=20, max_new_tokens=6, progress=False)
    fluency = conditional_perplexity(lm, own, progress=False)
    nothing = dataclasses.replace(fluency, values=np.full(20, math.nan))
    reference = Reference.measure(lm, own, None, fluency=fluency, progress=False)
    text_kinds = degenerate.kinds(own.texts, own.row_languages)
    expected = ["gibberish" if kind == "sound" else kind for kind in text_kinds]
    assert soundness.kinds(own, nothing, reference) == expected
    assert "gibberish" in expected


def test_it_is_kept_in_a_file_and_shown(tmp_path):
    REFERENCE.save(tmp_path / "reference.json")
    assert Reference.load(tmp_path / "reference.json") == REFERENCE
    assert dataclasses.replace(REFERENCE, max_new_tokens=None) != REFERENCE
    strict_json(tmp_path / "reference.json")
    assert repr(REFERENCE) == "Reference(2 languages, by base: gibberish from perplexity 50 to 900 on)"
    full = dataclasses.replace(REFERENCE, counts={code: {"continuations": 9, "held_out": 3} for code in ("en", "ru")})
    assert full.to_frame().to_dict("list") == {
        "language": ["en", "ru"],
        "fewest_tokens": [4, 0],
        "highest_perplexity": [50.0, 900.0],
        "continuations": [9, 9],
        "held_out": [3, 3],
    }
    assert "Russian" in full._repr_html_()
    (tmp_path / "wrong.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ValueError, match=r"wrong\.json holds no reference"):
        Reference.load(tmp_path / "wrong.json")


def test_fluency_keeps_the_number_of_tokens(lm, tokenizer, tmp_path):
    own = Continuations((Prompt("en", "the cat"),), 4, (" sat on", "", " ran away", " the" * 80))
    fluency = conditional_perplexity(lm, own, progress=False)
    n_prompt = len(tokenizer("the cat")["input_ids"])
    expected = [len(tokenizer("the cat" + text)["input_ids"]) - n_prompt for text in (" sat on", "", " ran away")]
    assert fluency.n_tokens.tolist() == [*expected, 0]
    fluency.save(tmp_path / "fluency.json")
    assert Fluency.load(tmp_path / "fluency.json") == fluency
    old = json.loads((tmp_path / "fluency.json").read_text())
    del old["n_tokens"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Fluency.load(tmp_path / "old.json") == dataclasses.replace(fluency, n_tokens=None)


# --- bad input is refused


def test_texts_and_judges_that_do_not_belong_together(lm, model, tokenizer):
    own, fluency = judged((" the cat", 7.0, 9))
    other = Identity("other", None, "float32", "ba9876543210")
    for wrong, words in (
        (dataclasses.replace(fluency, model=other), "other judged the fluency"),
        (dataclasses.replace(fluency, model=None), "expected conditional_perplexity by the unedited model, base"),
        (dataclasses.replace(fluency, values=np.ones(2), n_tokens=np.ones(2, int)), "2 values for 1 continuations"),
        (dataclasses.replace(fluency, n_tokens=None), "lacks n_tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            soundness.kinds(own, wrong, REFERENCE)
    with pytest.raises(ValueError, match=r"up to 5 new tokens, and the reference's had 20: .* one max_new_tokens="):
        soundness.kinds(*judged((" the cat", 7.0, 9), budget=5), REFERENCE)
    with pytest.raises(ValueError, match="does not know fr"):
        soundness.kinds(*judged((" le chat", 7.0, 9), code="fr"), REFERENCE)
    edited = generate(HookedLM.load(randomised(copy.deepcopy(model), seed=1), tokenizer=tokenizer), ["a"], n_samples=1)
    with pytest.raises(ValueError, match="wrote these continuations: measure a reference by what the unedited"):
        Reference.measure(lm, edited, None)
