import copy
import dataclasses
import html
import logging
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from studies import HOSTILE
from tokenizers.processors import TemplateProcessing

from xlingtox import NeuronSet, plot
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.measurement import Measures
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations
from xlingtox.scoring import ScorerIdentity
from xlingtox.transfer import prediction, predictors, retrieval
from xlingtox.transfer.least_squares import left_out_errors, prediction_p
from xlingtox.transfer.prediction import relate
from xlingtox.transfer.results import Transfer

CODES = ("es", "fr", "de", "ru", "zh", "ar")


def measures(emt, average):
    return Measures(emt, 0.5, average, 0.0, 10.0, 12.0, 0.9, 0.9, 0.9, 0.1)


SCORER = ScorerIdentity("hash", "1", ())


def observed(codes, seed=0, before=None):
    rng = np.random.default_rng(seed)
    first = {code: measures(*rng.uniform(0.5, 1, 2)) for code in codes} | (before or {})
    return Comparison(first, {code: measures(*rng.uniform(0, 0.5, 2)) for code in codes}, {}, SCORER)


def known(codes, seed=1):
    return dict(zip(codes, np.random.default_rng(seed).uniform(0, 1, len(codes)).tolist(), strict=True))


def dropping(drops):
    """A comparison with these relative drops in EMT."""
    sides = (
        {code: measures(0.5, 0.5) for code in drops},
        {code: measures(0.5 * (1 - d), 0.1) for code, d in drops.items()},
    )
    return Comparison(*sides, {}, SCORER)


@pytest.mark.parametrize("measure", ["emt", "average_toxicity"])
def test_relating_equals_scipy(measure):
    diff, retrieved = observed(("en", *CODES)), known(CODES)
    result = relate(retrieved, diff, measure=measure)
    y = [1 - getattr(diff.after[code], measure) / getattr(diff.before[code], measure) for code in CODES]
    expected = stats.pearsonr(list(retrieved.values()), y)
    assert (result.pearson_r, result.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.measure == measure
    assert list(result.retrieval) == list(result.drop) == list(CODES)  # English, which was tuned, is not among them
    assert list(result.drop.values()) == pytest.approx(y)
    row = result.to_frame().iloc[0]
    assert (row["predictor"], row["languages"]) == ("retrieval", 6)
    assert row["pearson_r"] == result.pearson_r
    assert row["spearman_rho"] == pytest.approx(stats.spearmanr(list(retrieved.values()), y).statistic)


def test_errors_of_languages_left_out_equal_scikit_learn():
    retrieved = known(CODES)
    transfer = relate(retrieved, observed(CODES))
    x, y = np.array(list(retrieved.values()))[:, None], np.array(list(transfer.drop.values()))
    foretold = cross_val_predict(LinearRegression(), x, y, cv=LeaveOneOut())
    predictor = transfer.predictors["retrieval"]
    assert predictor.error == pytest.approx(abs(foretold - y).mean())
    assert predictor.guess == pytest.approx(np.mean([abs(np.delete(y, i).mean() - y[i]) for i in range(6)]))


def test_the_drop_of_another_language():
    drops = {"es": 0.2, "fr": 0.25, "de": 0.45, "ru": 0.5}
    retrieved = {"es": 0.1, "fr": 0.2, "de": 0.3, "ru": 0.4, "zh": 0.5, "ar": 2.0}
    transfer = relate(retrieved, dropping(drops))
    slope, intercept = np.polyfit(list(retrieved.values())[:4], list(drops.values()), 1)
    foretold = transfer.predict("zh")
    assert foretold.drop == pytest.approx(intercept + 0.5 * slope)
    assert foretold.low < foretold.drop < foretold.high
    assert transfer.predict("zh", level=0.5).low > foretold.low
    beyond = transfer.predict("ar")
    assert foretold.extrapolated
    assert beyond.extrapolated
    assert beyond.drop == pytest.approx(intercept + 2 * slope)
    assert beyond.low < 1 < beyond.high, "not cut at 1, where it would have no width"
    assert not relate(retrieved, dropping(drops | {"zh": 0.4})).predict("de").extrapolated
    # A language that was observed is foretold from the others.
    slope, intercept = np.polyfit([0.2, 0.3, 0.4], [0.25, 0.45, 0.5], 1)
    assert transfer.predict("es").drop == pytest.approx(intercept + 0.1 * slope)


def test_no_prediction_is_certain():
    """Drops that are all the same, as 1 where EMT falls to 0, tell nothing of how far another may be from them."""
    codes = [f"{i:02}" for i in range(17)]
    x = dict(zip(codes, np.linspace(0.1, 0.9, 17), strict=True))
    transfer = relate(x, dropping(dict.fromkeys(codes[:16], 1.0)))
    foretold = transfer.predict(codes[16])
    assert (foretold.drop, foretold.low, foretold.high) == (pytest.approx(1), -math.inf, math.inf)
    steep = {code: 0.1 + 2 * x[code] + 0.01 * (-1) ** i for i, code in enumerate(codes[:8])}
    beyond = relate(x, dropping(steep)).predict(codes[16])
    assert (beyond.extrapolated, beyond.low > 1) == (True, True)
    assert beyond.high - beyond.low > 0.02


def test_drops_may_be_numbers_from_a_paper():
    drops = known(CODES, 2)
    by_hand, compared = relate(known(CODES), drops, measure="emt"), relate(known(CODES), dropping(drops), measure="emt")
    assert by_hand.pearson_r == pytest.approx(compared.pearson_r)
    assert by_hand.drop == drops
    assert by_hand.drop_intervals == {}
    assert relate(known(CODES), drops, measure="share of harmful answers").measure == "share of harmful answers"
    assert list(relate(known(CODES), drops | {"fr": math.nan}).drop) == [code for code in CODES if code != "fr"]
    with pytest.raises(ValueError, match=r"the drop of fr is 73: expected .* at most 1"):
        relate(known(CODES), drops | {"fr": 73})
    with pytest.raises(ValueError, match="unknown language 'klingon'"):
        relate(known(CODES), drops | {"klingon": 0.5})


def test_prediction_intervals_hold_what_they_promise():
    """Over many worlds of 16 languages and one more, whose drop is linear in retrieval but for normal noise."""
    rng, held = np.random.default_rng(0), {0.8: [], 0.95: []}
    coverage = []
    codes = [f"{i:02}" for i in range(17)]
    for _ in range(60):
        x = rng.uniform(size=17)
        y = 0.2 + 0.3 * x + rng.normal(0, 0.05, 17)
        transfer = relate(dict(zip(codes, x, strict=True)), dropping(dict(zip(codes[:16], y[:16], strict=True))))
        coverage.append(transfer.predictors["retrieval"].coverage)
        for level, hits in held.items():
            foretold = transfer.predict(codes[16], level=level)
            hits.append(foretold.low <= y[16] <= foretold.high)
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.03)
    assert {level: np.mean(hits) for level, hits in held.items()} == pytest.approx({0.8: 0.8, 0.95: 0.95}, abs=0.1)


def test_at_least_three_languages():
    assert list(relate(known(CODES), observed(("en", *CODES[:3]))).drop) == list(CODES[:3])
    with pytest.raises(ValueError, match="share 2 languages"):
        relate(known(CODES), observed(("en", *CODES[:2])))
    with pytest.raises(ValueError, match="share 2 languages"):  # nothing toxic before: no relative drop
        relate(known(CODES[:3]), observed(CODES[:3], before={"fr": measures(0.0, 0.5)}))
    with pytest.raises(ValueError, match="text and drops share 1 languages"):
        relate(known(CODES), observed(CODES), others={"text": {"es": 1.0, "en": 2.0, "fr": math.nan}})
    with pytest.raises(ValueError, match="unknown measure 'rudeness': expected one of emt"):
        relate(known(CODES), observed(CODES), measure="rudeness")


def test_other_predictors_and_intervals():
    diff = dataclasses.replace(observed(CODES), changes={"es": {"emt": (-0.3, -0.1)}})
    text = {"en": 9.0, "es": 3.0, "fr": 1.0, "de": 2.0, "ru": 2.5}
    transfer = relate(known(CODES), diff, intervals={"es": (0.1, 0.2), "ko": (0.3, 0.4)}, others={"text": text})
    before = diff.before["es"].emt
    assert transfer.drop_intervals == {"es": pytest.approx((0.1 / before, 0.3 / before))}
    assert transfer.retrieval_intervals == {"es": (0.1, 0.2)}
    frame = transfer.to_frame().set_index("predictor")
    assert list(frame["languages"]) == [6, 4]
    some = ["es", "fr", "de", "ru"]
    expected = stats.pearsonr([text[code] for code in some], [transfer.drop[code] for code in some])
    assert tuple(frame.loc["text", ["pearson_r", "pearson_p_value"]]) == pytest.approx(tuple(expected))
    assert transfer.predict("ar").language == "ar"
    with pytest.raises(ValueError, match="text has no value for 'ar': it has es, fr, de, ru"):
        transfer.predict("ar", predictor="text")
    with pytest.raises(ValueError, match="no predictor 'luck': there are retrieval, text"):
        transfer.predict("ar", predictor="luck")
    with pytest.raises(ValueError, match="level is 95"):
        transfer.predict("ar", level=95)
    three = relate(known(CODES[:3]), observed(CODES[:3]))
    with pytest.raises(ValueError, match="without 'es', retrieval and drops share 2 languages"):
        three.predict("es")


def test_it_says_how_little_the_languages_carry():
    codes = [f"{i:02}" for i in range(16)]
    transfer = relate(known(codes), dropping(known(codes, 2)))
    # The r at which t with 14 degrees of freedom is 2.145.
    assert "16 languages carry little: an |r| below 0.50 may be chance" in transfer.caveat
    assert f"r = {transfer.pearson_r:.2f} has a 95 % interval from" in transfer.caveat
    assert transfer.caveat in repr(transfer)
    assert "has no interval to speak of. A language's drop" in relate(known(CODES[:4]), observed(CODES)).caveat
    flat = relate(dict.fromkeys(CODES, 0.5), observed(CODES))
    assert math.isnan(flat.pearson_r)
    assert flat.caveat.endswith("(p > 0.05).")
    assert Transfer("emt", {}, {}, math.nan, math.nan).caveat == "0 languages carry little: no correlation is defined."


def test_saved_and_loaded_is_equal(tmp_path):
    diff = dataclasses.replace(observed(CODES), changes={"es": {"emt": (-0.3, -0.1)}})
    transfer = relate(known(CODES), diff, intervals={"es": (0.1, 0.2)}, others={"text": known(CODES, 5)})
    transfer.save(tmp_path / "transfer.json")
    assert Transfer.load(tmp_path / "transfer.json") == transfer
    assert transfer != dataclasses.replace(transfer, p_value=0.5)
    assert transfer != "found"


def test_saved_and_loaded_is_equal_where_numbers_are_not_defined(tmp_path):
    """Fewer than six languages have no interval, and retrieval that does not vary has no correlation."""
    for retrieved in (known(CODES[:4]), dict.fromkeys(CODES, 0.5)):
        transfer = relate(retrieved, observed(CODES))
        assert math.isnan(transfer.predictors["retrieval"].pearson.low)
        transfer.save(tmp_path / "transfer.json")
        assert Transfer.load(tmp_path / "transfer.json") == transfer


def test_a_notebook_shows_the_caveat_and_a_row_a_predictor():
    transfer = relate(known(CODES), observed(CODES), others={"text": known(CODES, 5)})
    shown = transfer._repr_html_()
    assert shown.startswith(f"<p>{html.escape(transfer.caveat)}</p><table>")
    assert "Predictors of the drop in expected maximum toxicity" in shown
    assert re.findall(r'<th scope="row"[^>]*>([^<]*)', shown) == ["retrieval", "text"]
    assert f">{transfer.pearson_r:.2f}<".replace("-", "−") in shown
    hostile = relate(known(CODES), known(CODES, 2), measure=HOSTILE, others={HOSTILE: known(CODES, 5)})._repr_html_()
    for raw in ("<img", "<script", "\u202e", "\x00"):
        assert raw not in hostile


# --- predictors


def test_tokens_per_character(lm, tokenizer):
    texts = {"en": ["the cat", "a"], "ru": ["кот"]}
    ratios = predictors.tokens_per_character(lm, texts)
    assert ratios == {
        "en": (len(tokenizer("the cat")["input_ids"]) + len(tokenizer("a")["input_ids"])) / 8,
        "ru": len(tokenizer("кот")["input_ids"]) / 3,
    }
    with pytest.raises(ValueError, match="no text in es"):
        predictors.tokens_per_character(lm, {"es": [""]})


def test_special_tokens_are_not_counted(lm, tokenizer, monkeypatch):
    """A tokenizer that begins each text with one, as many do, cuts a language no finer for it."""
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    assert adding("кот")["input_ids"] == [0, *tokenizer("кот")["input_ids"]]
    monkeypatch.setattr(lm, "tokenizer", adding)
    assert predictors.tokens_per_character(lm, {"ru": ["кот"]}) == {"ru": len(tokenizer("кот")["input_ids"]) / 3}


def test_share_of_active_neurons():
    neurons = NeuronSet.of([(0, 1), (0, 2), (1, 0), (1, 1)])
    values = torch.tensor([[[1.0, -1.0, 2.0, 0.0]], [[-1.0, -1.0, 2.0, -3.0]], [[1.0, 1.0, 1.0, 1.0]]])
    sums, steps = torch.stack([values[2, 0], values[0, 0] + values[1, 0]]).double(), torch.tensor([1, 2])
    mask = torch.ones(3, 1, dtype=torch.bool)
    acts = Activations(neurons, sums, steps, mask, ("es", "es", "en"), values, Identity("m", None, "float32", "0"))
    assert predictors.active_share(acts) == {"en": 1.0, "es": 0.25}


def test_share_of_promoted_tokens(lm, tokenizer):
    neurons = NeuronSet.of([(0, 3), (1, 5)])
    promoted = set()
    for layer, index in neurons:
        scores = lm.unembedding() @ lm.value_vectors(layer)[index]
        promoted |= set(scores.topk(5).indices.tolist())
    some = tokenizer.decode(sorted(promoted)[:1])
    texts = {"en": [some, "the cat"], "ru": ["кот"]}
    used = {code: {i for text in lines for i in tokenizer(text)["input_ids"]} for code, lines in texts.items()}
    expected = {code: len(promoted & tokens) / len(promoted) for code, tokens in used.items()}
    assert predictors.promoted_share(lm, neurons, texts, k=5) == expected


# --- from the model


PARALLEL = {
    "en": ["the house is large", "the cat sleeps", "a dog", "the mat"],
    "es": ["la casa es grande", "el gato duerme", "un perro", "la cama"],
    "de": ["das haus", "katze da", "ein hund", "im haus"],
    "ru": ["дом большой", "кот сидит", "собака", "коврик"],
}


def test_prediction_is_retrieval_then_transfer(lm):
    diff, text = observed(("en", "es", "ru", "de")), {"es": 3.0, "de": 2.0, "ru": 1.0}
    for parallel in (PARALLEL, Dataset.from_dict(PARALLEL)):
        transfer = prediction.predict_transfer(
            lm, parallel, diff, measure="average_toxicity", predictors={"text": text}, progress=False
        )
        measured = retrieval.bilingual_retrieval(lm, PARALLEL, progress=False)
        assert list(transfer.predictors) == ["retrieval", "aligned_cosine", "tokens_per_character", "text"]
        assert transfer.retrieval == measured.mean()
        assert transfer.retrieval_intervals == measured.intervals()
        assert transfer.predictors["aligned_cosine"].values == measured.mean("aligned_cosine")
        translated = {code: PARALLEL[code] for code in ("es", "de", "ru")}
        assert transfer.predictors["tokens_per_character"].values == predictors.tokens_per_character(lm, translated)


def test_too_few_languages_are_refused_before_any_reading(lm, monkeypatch):
    monkeypatch.setattr(retrieval, "mean_states", None)
    for sentences in ({"pivot": "en"}, {}):
        with pytest.raises(ValueError, match="unknown language 'german'"):
            prediction.predict_transfer(lm, PARALLEL, observed(CODES), source_language="german", **sentences)
    with pytest.raises(ValueError, match="retrieval and drops share 2 languages"):
        prediction.predict_transfer(lm, PARALLEL, observed(("en", "es", "ru")))
    with pytest.raises(ValueError, match="text and drops share 1 languages"):
        prediction.predict_transfer(lm, PARALLEL, observed(CODES), predictors={"text": {"es": 1.0}})


def test_the_tuned_language_is_no_point_whatever_the_pivot(lm):
    diff = observed(("en", "es", "ru", "de"), before={"en": measures(0.9, 0.9)})
    with pytest.raises(ValueError, match="retrieval and drops share 2 languages"):
        prediction.predict_transfer(lm, PARALLEL, diff, pivot="de", progress=False)
    transfer = prediction.predict_transfer(lm, PARALLEL, diff, pivot="de", source_language="de", progress=False)
    assert set(transfer.drop) == {"en", "es", "ru"}
    measured = retrieval.bilingual_retrieval(lm, PARALLEL, pivot="de", progress=False)
    assert transfer.retrieval == measured.mean()
    assert set(transfer.predictors["tokens_per_character"].values) == {"en", "es", "ru"}
    assert prediction.predict_transfer(lm, PARALLEL, diff, source_language="de", progress=False) == transfer
    assert (transfer.pivot, plot(transfer).layout.xaxis.title.text) == ("de", "Retrieval accuracy with German")
    more = PARALLEL | {"fr": ["la maison est grande", "le chat dort", "un chien", "le tapis"]}
    diff = observed(("en", "es", "ru", "fr"))
    transfer = prediction.predict_transfer(lm, more, diff, pivot="de", progress=False)
    assert list(transfer.drop) == ["es", "fr", "ru"]
    measured = retrieval.bilingual_retrieval(lm, more, pivot="de", progress=False)
    for name, values in (("retrieval", measured.mean()), ("aligned_cosine", measured.mean("aligned_cosine"))):
        assert transfer.predictors[name].values == {code: values[code] for code in ("es", "fr", "ru")}


def test_a_comparison_of_another_model_is_refused_before_any_reading(lm, monkeypatch):
    untuned, tuned = lm.identity(), Identity("tuned", None, "float32", "abcabcabcabc")
    diff = observed(("en", "es", "ru", "de"))
    good, swapped = (dataclasses.replace(diff, models=models) for models in ((untuned, tuned), (tuned, untuned)))
    assert prediction.predict_transfer(lm, PARALLEL, good, progress=False).drop
    measured = retrieval.bilingual_retrieval(lm, PARALLEL, progress=False)
    monkeypatch.setattr(retrieval, "mean_states", None)
    with pytest.raises(
        ValueError, match=r"before tuning is tuned \(float32, fingerprint abcabcabcabc\).*give the model"
    ):
        prediction.predict_transfer(lm, PARALLEL, swapped)
    with pytest.raises(ValueError, match="before tuning is tuned"):
        prediction.predict_from_retrieval(measured, swapped)
    assert prediction.predict_from_retrieval(dataclasses.replace(measured, model=None), swapped).drop


def test_unequally_many_sentences_are_warned_of(lm, caplog):
    lengths = {"es": 4, "de": 4, "ru": 3}
    rows = [
        {"language": code, "sentence": PARALLEL[code][i], "translation": PARALLEL["en"][i]}
        for code, n in lengths.items()
        for i in range(n)
    ]
    diff = observed(("en", "es", "ru", "de"))
    with caplog.at_level(logging.WARNING):
        prediction.predict_transfer(lm, PARALLEL, diff, progress=False)
        assert not caplog.records
        prediction.predict_transfer(lm, Dataset.from_list(rows), diff, progress=False)
    assert "not comparable (4 in es, 4 in de, 3 in ru)" in caplog.text


def test_left_out_errors_are_those_of_a_line_through_the_others():
    rng = np.random.default_rng(3)
    for x, y in [
        (rng.uniform(0, 1, 9), rng.uniform(0, 1, 9)),
        (np.array([0.2, 0.2, 0.2, 0.9]), rng.uniform(0, 1, 4)),  # without the last, all x are the same
        (np.full(5, 0.3), rng.uniform(0, 1, 5)),
    ]:
        expected = []
        for i in range(len(x)):
            others_x, others_y = np.delete(x, i), np.delete(y, i)
            flat = np.ptp(others_x) == 0
            slope = 0.0 if flat else np.polyfit(others_x, others_y, 1)[0]
            expected.append(abs(others_y.mean() + slope * (x[i] - others_x.mean()) - y[i]))
        assert left_out_errors(x, y) == pytest.approx(expected)
    several = rng.uniform(0, 1, (3, 9))
    y = rng.uniform(0, 1, 9)
    assert left_out_errors(several, y) == pytest.approx(np.array([left_out_errors(x, y) for x in several]))


def test_the_p_of_the_error_is_even_where_nothing_is_predicted_and_small_where_something_is():
    rng = np.random.default_rng(4)
    by_chance = [prediction_p(rng.normal(size=12), rng.normal(size=12), n_orders=199) for _ in range(300)]
    for share in (0.1, 0.5, 0.9):
        assert np.mean(np.array(by_chance) <= share) == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / 300)
        )
    x = rng.uniform(0, 1, 16)
    assert prediction_p(x, x + rng.normal(0, 0.1, 16)) < 0.001
    result = relate(dict(zip(CODES, x, strict=False)), dict(zip(CODES, x / 2, strict=False)))
    assert result.predictors["retrieval"].error_p == prediction_p(x[:6], x[:6] / 2)
    assert "permutation test" in result.caveat


def test_p_values_of_several_predictors_are_corrected_for_their_number():
    retrieved = known(CODES)
    others = {"other": known(CODES, 2), "third": known(CODES, 3), "constant": dict.fromkeys(CODES, 0.5)}
    transfer = relate(retrieved, observed(CODES), others=others)
    table = transfer.to_frame().set_index("predictor")
    ordered = table["pearson_p_value"].dropna().sort_values()
    assert len(ordered) == 3
    by_hand, largest = {}, 0.0
    for place, (name, p) in enumerate(ordered.items()):
        largest = max(largest, min(1.0, p * (3 - place)))
        by_hand[name] = largest
    assert table["p_corrected"].dropna().to_dict() == pytest.approx(by_hand)
    assert math.isnan(table.loc["constant", "p_corrected"])
    assert "<th>p, corrected (Holm)</th>" in re.sub(r"<th[^>]*>", "<th>", transfer._repr_html_())
    alone = relate(retrieved, observed(CODES)).to_frame()
    assert alone["p_corrected"].tolist() == pytest.approx(alone["pearson_p_value"].tolist())
