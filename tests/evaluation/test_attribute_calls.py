"""The call `attribute`: means over texts, prompts and languages, groups, other measures, files, and bad input."""

import copy
import math

import families
import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from toys import HashScorer

import xlingtox as xt
from xlingtox.data import Prompt
from xlingtox.evaluation.attribute import _texts_that_fit
from xlingtox.models.generation import Continuations

PROMPTS = (Prompt("en", "the cat sat"), Prompt("en", "the dog"), Prompt("es", "la casa"))
TEXTS = (" on the mat", " ran away", " and", " from the house", " es grande", " duerme")
WRITTEN = Continuations(PROMPTS, 2, TEXTS)


@pytest.fixture(scope="module")
def pair(tokenizer, model):
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return tuned, xt.HookedLM.load(model, tokenizer=tokenizer), xt.HookedLM.load(tuned, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def attributed(pair):
    _, lm, tuned_lm = pair
    sets = {"some": xt.NeuronSet.of([(0, 1), (1, 40)]), "mixed": [xt.NeuronSet.of([(0, 1)], site="heads")]}
    return xt.attribute(lm, tuned_lm, PROMPTS, continuations=WRITTEN, groups=sets, progress=False)


def chances(model, lm, prompt, text):
    """The log-probabilities of a text's tokens after a prompt, from Hugging Face's own logits, and their places."""
    given, ids = lm.token_ids([prompt, prompt + text])
    logits = raw.forward(model, torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logits[len(given) - 1 : -1], ids[len(given) :]


def log_probability(model, lm, prompt, text):
    logits, ids = chances(model, lm, prompt, text)
    return float(logits[range(len(ids)), ids].sum())


def test_a_prompt_counts_once_and_so_does_a_language(pair, attributed, model):
    tuned, lm, _ = pair
    per_text = [
        log_probability(tuned, lm, prompt.text, text) - log_probability(model, lm, prompt.text, text)
        for prompt, text in zip([one for one in PROMPTS for _ in range(2)], TEXTS, strict=True)
    ]
    per_prompt = np.array(per_text).reshape(3, 2).mean(1)
    np.testing.assert_allclose(attributed.totals["exact"], per_prompt, atol=1e-4)
    assert attributed.exact == pytest.approx((per_prompt[:2].mean() + per_prompt[2]) / 2, abs=1e-4)
    summary = attributed.summary().set_index("language")
    assert summary["exact"].to_dict() == pytest.approx(
        {"en": per_prompt[:2].mean(), "es": per_prompt[2], "all": attributed.exact}, abs=1e-4
    )
    assert summary.loc["all", "remainder"] == pytest.approx(attributed.exact - summary.loc["all", "integrated"])
    assert abs(attributed.completeness - 1) < 0.01


def test_sums_over_units_are_those_of_the_prompts(attributed):
    table = attributed.to_frame()
    assert table.columns.tolist() == ["component", "layer", "index", "language", "linear", "integrated"]
    for code, row in attributed.summary().set_index("language").iterrows():
        of_language = table[table["language"] == code]
        assert len(of_language) == 2 * (48 + 2)
        assert of_language["linear"].sum() == pytest.approx(row["linear"], abs=1e-5)
        assert of_language["integrated"].sum() == pytest.approx(row["integrated"], abs=1e-5)


def test_a_group_is_the_sum_of_its_units(attributed):
    table, groups = attributed.to_frame(), attributed.groups_frame().set_index(["group", "language"])
    units = table.set_index(["component", "language", "layer", "index"])
    for code in ("en", "es", "all"):
        expected = units.loc[("neurons", code, 0, 1), "integrated"] + units.loc[("neurons", code, 1, 40), "integrated"]
        assert groups.loc[("some", code), "integrated"] == pytest.approx(expected, abs=1e-6)
        assert groups.loc[("mixed", code), "linear"] == pytest.approx(
            units.loc[("heads", code, 0, 1), "linear"], abs=1e-6
        )
    # One prompt tells nothing of how prompts differ.
    assert math.isnan(groups.loc[("some", "es"), "low"])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_top_is_the_order_of_the_estimates(attributed, sign):
    values = attributed.values("neurons", language="es")
    top = attributed.top(5, sign=sign, language="es")
    assert list(top.scores) == sorted(values, key=lambda value: -sign * value)[:5]
    assert [values[48 * layer + index] for layer, index in top] == pytest.approx(list(top.scores))
    assert attributed.top(1, component="heads", sign=int(np.sign(attributed.values("heads")[0]))).site == "heads"
    spread = attributed.shared(5, sign=sign)
    assert spread["n_languages"].sum() == 10
    assert set(spread["n_languages"]) <= {1, 2}


def test_other_measures_are_what_they_say(pair, model):
    _, lm, tuned_lm = pair
    texts = Continuations(PROMPTS, 1, TEXTS[::2])
    options = {"continuations": texts, "components": ("layers",), "steps": 1, "progress": False}
    tokens = (70, 80, 90)
    mass = xt.attribute(lm, tuned_lm, PROMPTS, measure=xt.evaluation.ToxicMass(tokens), **options)
    expected = [
        float(chances(model, lm, prompt.text, text)[0].exp()[:, list(tokens)].sum(1).mean())
        for prompt, text in zip(PROMPTS, texts.texts, strict=True)
    ]
    np.testing.assert_allclose(mass.totals["base"], expected, atol=1e-5)
    probe = xt.Probe(torch.linspace(-1, 1, 32), 0.25)
    logits = xt.attribute(lm, tuned_lm, PROMPTS, measure=xt.evaluation.ProbeLogit(probe), **options)
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts.texts, strict=True)):
        given, ids = lm.token_ids([prompt.text, prompt.text + text])
        states = raw.states(model, torch.tensor([ids]))[-1][0, len(given) :]
        assert logits.totals["base"][number] == pytest.approx(float((states @ probe.direction).mean() + 0.25), abs=1e-4)


def test_the_preference_margin_is_of_both_sides(pair, model):
    tuned, lm, tuned_lm = pair
    rows = [{"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran"}]
    margin = xt.attribute(
        lm,
        tuned_lm,
        Dataset.from_list(rows),
        measure=xt.evaluation.PreferenceMargin(beta=0.5),
        components=("neurons",),
        progress=False,
    )
    expected = [
        0.5 * (log_probability(one, lm, "the cat", " sat on the mat") - log_probability(one, lm, "the cat", " ran"))
        for one in (model, tuned)
    ]
    assert margin.totals["base"][0] == pytest.approx(expected[0], abs=1e-4)
    assert margin.exact == pytest.approx(expected[1] - expected[0], abs=1e-4)
    assert margin.languages == ("en",)


def test_only_what_the_scorer_keeps_counts(pair, tokenizer):
    _, lm, tuned_lm = pair
    scorer = HashScorer("en", "es")
    toxic = scorer.score(TEXTS, []) >= 0.5
    assert 0 < toxic.sum() < len(TEXTS)
    for kept, counting in (("toxic", toxic), ("clean", ~toxic)):
        attribution = xt.attribute(
            lm,
            tuned_lm,
            PROMPTS,
            continuations=WRITTEN,
            scorer=scorer,
            kept=kept,
            components=("layers",),
            progress=False,
        )
        assert len(attribution.languages) == int(counting.reshape(3, 2).any(1).sum())


def test_saved_and_loaded_is_equal(attributed, tmp_path):
    attributed.save(tmp_path / "attribution.safetensors")
    assert xt.Attribution.load(tmp_path / "attribution.safetensors") == attributed
    assert "log probability changes by" in attributed._repr_html_()
    xt.Probe(torch.ones(4), 0.0).save(tmp_path / "probe.safetensors")
    with pytest.raises(ValueError, match="holds no attribution"):
        xt.Attribution.load(tmp_path / "probe.safetensors")
    with pytest.raises(ValueError, match="k is 49: expected 1 to"):
        attributed.top(49, component="heads")


def test_a_model_is_left_as_it_was(pair):
    _, lm, tuned_lm = pair
    before = [weight.requires_grad for weight in lm.unwrapped().parameters()]
    xt.attribute(lm, tuned_lm, PROMPTS, continuations=WRITTEN, components=("heads",), progress=False)
    assert [weight.requires_grad for weight in lm.unwrapped().parameters()] == before
    assert not lm.hooked
    assert not lm.logits(*lm.encode(["the cat"])).requires_grad
    assert 1 <= _texts_that_fit(lm, 16) <= 64


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"components": ()}, "components are none: expected one or more"),
        ({"components": ("heads", "heads")}, "components are heads, heads: expected"),
        ({"components": ("layers", "heads")}, "layers hold the heads too"),
        ({"measure": "toxicity"}, "unknown measure 'toxicity': expected 'log_probability'"),
        ({"steps": 0}, "steps is 0"),
        (
            {"continuations": Continuations(PROMPTS[:1], 1, (" on",))},
            "the continuations are of 1 other prompts: expected continuations of the 3 prompts that were given",
        ),
        ({"continuations": Continuations(PROMPTS, 1, (" ", "", " "))}, "none of the 3 continuations in en, es is one"),
        ({"groups": {"heads": xt.NeuronSet.of([(0, 0)], site="heads")}, "components": ("neurons",)}, "a group holds"),
        ({"groups": {"far": xt.NeuronSet.of([(9, 0)])}}, r"neuron \(9, 0\) is outside"),
        ({"measure": xt.evaluation.ToxicMass((999999,))}, "not all are of the vocabulary"),
    ],
)
def test_bad_input_is_one_line(pair, options, complaint):
    _, lm, tuned_lm = pair
    with pytest.raises(ValueError, match=complaint) as caught:
        xt.attribute(lm, tuned_lm, PROMPTS, **{"continuations": WRITTEN, "progress": False, **options})
    assert "\n" not in str(caught.value)


def test_models_that_do_not_match_and_families_without_a_component(pair, tokenizer):
    _, lm, _ = pair
    with pytest.raises(ValueError, match="given as both models"):
        xt.attribute(lm, lm, PROMPTS)
    with pytest.raises(ValueError, match="the models differ in shape"):
        xt.attribute(lm, xt.HookedLM.load("mini"), PROMPTS)
    # A LlamaForCausalLM has no biases on its MLPs.
    llamas = [xt.HookedLM.load(families.build("llama"), tokenizer=tokenizer) for _ in range(2)]
    with pytest.raises(ValueError, match="LlamaForCausalLM has no biases: leave 'biases' out of components"):
        xt.attribute(*llamas, PROMPTS, components=("biases",))


class Unbounded(xt.evaluation.RowMeasure):
    name = "unbounded"

    def values(self, lm, reading):
        return (reading.states.sum((1, 2)) * 0).log()


def test_a_measure_that_is_not_finite_is_refused(pair):
    _, lm, tuned_lm = pair
    with pytest.raises(ValueError, match=r"unbounded of prompt \d \(en\).*is not finite: it is -inf in GPT2"):
        xt.attribute(lm, tuned_lm, PROMPTS, measure=Unbounded(), continuations=WRITTEN, progress=False)
