"""Judges against people: areas as scikit-learn has them, intervals that hold the truth, and labels of every kind."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from published import jsonl, table, written
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, recall_score, roc_auc_score
from toys import HashScorer, NeverAsked

import xlingtox as xt
from xlingtox.scoring import Validation, WordlistScorer, validate
from xlingtox.scoring.auroc import auroc, wilson
from xlingtox.scoring.calibration import error_by_chance

CODES = ("en", "de")


class Known:
    """A judge whose scores are written into the texts, after the last space."""

    revision = "1"

    def __init__(self, name="known", languages=CODES):
        self.name, self.languages, self.asked = name, frozenset(languages), []

    def score(self, texts, languages):
        self.asked += texts
        return np.array([float(text.split()[-1]) for text in texts])


def labelled(n=120, seed=0, codes=CODES, decimals=2):
    """Texts with the scores of `Known`: toxic ones score higher, many scores are tied."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.clip(np.round(rng.normal(0.35 + 0.3 * labels, 0.2), decimals), 0, 1)
    return [
        {"language": codes[i % len(codes)], "text": f"text {i} {scores[i]}", "label": int(labels[i])} for i in range(n)
    ]


def columns(rows, code):
    chosen = [row for row in rows if row["language"] == code]
    return np.array([row["label"] for row in chosen]), np.array([float(row["text"].split()[-1]) for row in chosen])


@pytest.mark.parametrize("decimals", [1, 6])
def test_as_scikit_learn_has_it(decimals):
    rows = labelled(decimals=decimals)
    table = validate(Known(), rows).to_frame()
    assert list(table.columns[:6]) == ["judge", "language", "auroc", "low", "high", "n"]
    assert table.language.tolist() == list(CODES)
    for row in table.itertuples():
        labels, scores = columns(rows, row.language)
        assert row.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert row.brier == pytest.approx(brier_score_loss(labels, scores))
        assert row.sensitivity == pytest.approx(recall_score(labels, scores >= 0.5))
        assert row.specificity == pytest.approx(recall_score(labels, scores >= 0.5, pos_label=0))
        assert row.agreement == pytest.approx((row.sensitivity + row.specificity) / 2)
        assert (row.n, row.n_toxic) == (len(labels), labels.sum())
        assert 0 <= row.low < row.auroc < row.high <= 1
    everything = validate(Known(), rows, by="all").to_frame()
    labels = np.array([row["label"] for row in rows])
    scores = np.array([float(row["text"].split()[-1]) for row in rows])
    assert everything[["language", "auroc", "n"]].values.tolist() == [["all", roc_auc_score(labels, scores), len(rows)]]


WORLDS = {
    "smooth": (lambda rng, n: rng.normal(1.2, 1, n), lambda rng, n: rng.normal(0, 1, n), norm.cdf(1.2 / 2**0.5)),
    "nearly perfect": (
        lambda rng, n: rng.normal(2.5, 1, n),
        lambda rng, n: rng.normal(0, 1, n),
        norm.cdf(2.5 / 2**0.5),
    ),
    "toxic ones spread": (
        lambda rng, n: rng.normal(3, 3, n),
        lambda rng, n: rng.normal(0, 1, n),
        norm.cdf(3 / 10**0.5),
    ),
    # A word list finds half of the toxic texts, and one of fifty others.
    "tied": (lambda rng, n: rng.random(n) < 0.5, lambda rng, n: rng.random(n) < 0.02, 0.74),
    "guesses": (lambda rng, n: rng.random(n), lambda rng, n: rng.random(n), 0.5),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("sizes", [(5, 40), (12, 12), (60, 30)])
def test_intervals_hold_the_truth(world, sizes):
    """400 simulated validations: of 95 % intervals, 92 % to 99.7 % hold the area that the world has."""
    toxic_scores, other_scores, truth = WORLDS[world]
    rng = np.random.default_rng(7)
    toxic = np.arange(sum(sizes)) < sizes[0]
    held = 0
    for _ in range(400):
        scores = np.append(toxic_scores(rng, sizes[0]), other_scores(rng, sizes[1])).astype(float)
        found = auroc(toxic, scores)
        held += found.low <= truth <= found.high
    assert 0.925 <= held / 400 <= 0.997


def test_wilson_as_scipy_has_it():
    from scipy.stats import binomtest

    for hits, n in ((0, 9), (3, 9), (9, 9), (40, 200)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_calibration():
    """Scores 0.1 and 0.8, of which 0.1 and 0.5 are toxic: the error is the mean of 0 and 0.3."""
    rows = [
        {"language": "en", "text": f"{i} {s}", "label": int(i < t)} for s, t in ((0.1, 1), (0.8, 5)) for i in range(10)
    ]
    result = validate(Known(), rows)
    assert result.to_frame().calibration_error[0] == pytest.approx(0.15)
    bins = result.reliability(10)
    assert bins[["begin", "end", "n", "score", "label"]].round(6).values.tolist() == [
        [0.1, 0.2, 10, 0.1, 0.1],
        [0.8, 0.9, 10, 0.8, 0.5],
    ]
    assert bins[["low", "high"]].values.tolist() == [list(wilson(1, 10)), list(wilson(5, 10))]
    # A coin of 0.5 in ten texts: the mean distance of a share from one half, by hand.
    from scipy.stats import binom

    expected = sum(binom.pmf(k, 10, 0.5) * abs(k / 10 - 0.5) for k in range(11))
    assert error_by_chance(np.full(10, 0.5), seed=0) == pytest.approx(expected, abs=0.02)


def test_the_best_threshold_is_chosen_on_one_half():
    """People draw the line at 0.3, with noise: the threshold is near, and told from other texts."""
    rng = np.random.default_rng(1)
    scores = rng.uniform(0, 0.6, 400).round(4)
    labels = (scores + rng.normal(0, 0.02, 400) >= 0.3).astype(int)
    rows = [
        {"language": "en", "text": f"{i} {s}", "label": int(y)}
        for i, (s, y) in enumerate(zip(scores, labels, strict=True))
    ]
    result = validate(Known(), rows)
    row = result.to_frame().iloc[0]
    assert row.best_threshold == pytest.approx(0.3, abs=0.03)
    assert row.best_agreement > 0.9 > 0.75 > row.usual_agreement
    assert any("much better at another threshold than 0.5 (English (en): 0." in line for line in result.warnings)
    # Random labels: on the other half the threshold is worth nothing, though on its own half it looks better.
    random = [row | {"label": int(label)} for row, label in zip(rows, rng.integers(0, 2, 400), strict=True)]
    assert validate(Known(), random).to_frame().best_agreement[0] == pytest.approx(0.5, abs=0.08)
    assert not validate(Known(), random, seed=3).to_frame().equals(validate(Known(), random).to_frame())


def test_what_a_judge_does_not_cover_is_stated_and_not_scored():
    rows = labelled() + [{"language": "ko", "text": f"k 0.{i}", "label": 1} for i in range(1, 9)]
    one, other = Known(), Known("narrow", ["en", "ko", "fr"])
    result = validate([one, other], rows)
    assert not any(text.startswith("k") for text in one.asked + other.asked)
    assert result.to_frame()[["judge", "language"]].values.tolist() == [
        ["known", "en"],
        ["known", "de"],
        ["narrow", "en"],
    ]
    assert result.coverage.query("language != 'en'").values.tolist() == [
        ["known", "de", 60, True, True],
        ["known", "ko", 8, False, False],
        ["narrow", "de", 60, False, False],
        ["narrow", "ko", 8, True, False],
    ]
    assert result.warnings[:3] == (
        "Korean (ko): all 8 texts are toxic, so no judge could be validated there.",
        "known does not cover Korean (ko): there is no score, and nothing is known of it.",
        "narrow does not cover German (de): there is no score, and nothing is known of it.",
    )
    assert result.unusable == {"ko": "Korean (ko): all 8 texts are toxic"}


def test_disagreements_are_listed_worst_first_and_masked():
    rows = [
        {"language": "en", "text": text, "label": label}
        for text, label in [("<b>a 0.9", 0), ("b 0.6", 0), ("c 0.1", 1), ("d 0.4", 1), ("e 0.9", 1), ("f 0.2", 0)]
    ]
    result = validate(Known(), rows, n_disagreements=3)
    assert [(entry.row, entry.score, entry.label) for entry in result.disagreements] == [
        (0, 0.9, 0),
        (2, 0.1, 1),
        (1, 0.6, 0),
    ]
    assert list(result.disagreements_to_frame().text) == ["<b>a 0.9", "c 0.1", "b 0.6"]
    page = result._repr_html_()
    assert "c•••" in page
    assert ">c 0.1<" not in page
    assert "<b>a" not in page
    assert validate(Known(), rows, n_disagreements=0).disagreements == ()


def test_shares_of_votes():
    """From one half on a text is toxic; the calibration compares with the share itself."""
    rows = [
        {"language": "en", "text": f"{i} {s}", "label": y}
        for i, (s, y) in enumerate([(0.5, 0.5), (0.2, 0.4), (0.9, 1)])
    ]
    row = validate(Known(), rows).to_frame().iloc[0]
    assert (row.auroc, row.n_toxic, row.brier) == (1.0, 2, pytest.approx((0 + 0.04 + 0.01) / 3))


@pytest.mark.parametrize("kind", [pd.DataFrame, Dataset.from_list])
def test_tables_of_any_kind(kind):
    assert validate(Known(), kind(labelled())) == validate(Known(), labelled())


def test_saved_in_one_file(tmp_path):
    result = validate([Known(), HashScorer("en")], labelled(), by="all", threshold=0.4, seed=5)
    result.save(tmp_path / "a.safetensors")
    loaded = Validation.load(tmp_path / "a.safetensors")
    assert loaded == result
    pd.testing.assert_frame_equal(loaded.to_frame(), result.to_frame())
    assert loaded.warnings == result.warnings
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "b.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Validation.load(tmp_path / "b.json")


def test_an_interrupted_call_goes_on(tmp_path):
    class Breaks(Known):
        def score(self, texts, languages):
            if self.asked:
                raise KeyboardInterrupt
            return super().score(texts, languages)

    rows = labelled(300)
    with pytest.raises(KeyboardInterrupt):
        validate(Breaks(), rows, cache=tmp_path / "scores.sqlite")
    judge = Known()
    result = validate(judge, rows, cache=tmp_path / "scores.sqlite")
    assert len(judge.asked) == 300 - 256
    assert result == validate(Known(), rows)


def test_the_votes_of_rtp_lx(tmp_path):
    """A prompt with votes, a completion with the mean alone, and benign completions without votes are read."""

    def row(number, levels, mean):
        return {
            "Prompt": f"prompt {number} {min(levels) / 5}",
            "Completion": f"completion {number} 0.{number}",
            "BenignCompletion": f"kind {number} 0.1",
            "PromptAnnotationsRaw": {"Toxicity": levels, "Insult": [1, 1, 3]},
            "CompletionAnnotations": {"Toxicity": mean},
            "BenignCompletionAnnotationsRaw": {"Toxicity": [1, 1, 1]} if number else {},
        }

    levels = [[5, 5, 4], [3, 2, 1], [2, 2, 1]]
    content = jsonl(*(row(i, levels[i], mean) for i, mean in enumerate((4.2, 2.9, 3.0))))
    loaded = xt.data.rtp_lx(written(tmp_path, {"RTP_LX_EN.json": content, "RTP_LX_DE.json": content}))
    votes = xt.data.votes_as_labels(loaded).filter(lambda row: row["language"] == "en")
    assert [(row["part"], row["label"]) for row in votes] == [
        *(("prompt", 1.0), ("prompt", pytest.approx(1 / 3)), ("prompt", 0.0)),
        *(("completion", 1.0), ("completion", 0.0), ("completion", 1.0)),
        *(("benign_completion", 0.0), ("benign_completion", 0.0)),
    ]
    result = validate(Known(), loaded)
    labels, scores = np.array(votes["label"]) >= 0.5, [float(text.split()[-1]) for text in votes["text"]]
    assert result.to_frame().auroc.tolist() == pytest.approx([roc_auc_score(labels, scores)] * 2)
    assert xt.data.skipped(xt.data.votes_as_labels(loaded))["reason"].tolist() == ["no vote on toxicity"]
    insults = xt.data.votes_as_labels(loaded, parts="prompt", harm="insult")
    assert set(insults["label"]) == {1 / 3}
    assert xt.data.votes_as_labels(loaded, parts="prompt", toxic_from=5)["label"][:3] == [pytest.approx(2 / 3), 0, 0]
    for wrong, words in (({"harm": "rudeness"}, "harm is 'rudeness'"), ({"parts": "title"}, "part is 'title'")):
        with pytest.raises(ValueError, match=words):
            xt.data.votes_as_labels(loaded, **wrong)
    with pytest.raises(ValueError, match="rows with votes have no column"):
        xt.data.votes_as_labels([{"language": "en", "text": "a"}])


def test_the_multilingual_set_of_jigsaw(tmp_path):
    rows = [[str(i), f"hola {i} 0.{i}", "es" if i < 6 else "tr", str(int(i % 3 == 2))] for i in range(1, 10)]
    path = (
        written(tmp_path, {"validation.csv": table(["id", "comment_text", "lang", "toxic"], *rows)}) / "validation.csv"
    )
    loaded = xt.data.jigsaw(path, languages=["es", "tr"])
    found = validate(Known(languages=["es", "tr"]), loaded).to_frame()
    assert found[["language", "n", "n_toxic"]].values.tolist() == [["es", 5, 2], ["tr", 4, 1]]


GOOD = [{"language": "en", "text": "a 0.1", "label": 0}, {"language": "en", "text": "b 0.2", "label": 1}]


@pytest.mark.parametrize(
    ("judges", "rows", "options", "words"),
    [
        ([], GOOD, {}, "expected one judge or several"),
        ([NeverAsked("en"), NeverAsked("en")], GOOD, {}, r"each with a name of its own, got \['hash', 'hash'\]"),
        (NeverAsked("de"), GOOD, {}, "none of hash covers en, in which there are labelled texts"),
        (NeverAsked("en"), [], {}, "there are no labelled texts"),
        (NeverAsked("en"), GOOD[:1], {}, r"no language has both .*: English \(en\): the only text is not toxic"),
        (NeverAsked("en"), [GOOD[1], GOOD[1] | {"label": 0.7}], {}, r"English \(en\): all 2 texts are toxic"),
        (NeverAsked("en"), [*GOOD, GOOD[0] | {"label": 2}], {}, "the label of text 2 is 2: expected 0, 1, or a share"),
        (NeverAsked("en"), [*GOOD, GOOD[0] | {"label": None}], {}, "the label of text 2 is None"),
        (NeverAsked("en"), [*GOOD, GOOD[0] | {"label": "toxic"}], {}, "the label of text 2 is 'toxic'"),
        (NeverAsked("en"), [*GOOD, GOOD[0] | {"text": " "}], {}, "labelled text 2 is blank"),
        (NeverAsked("en"), [*GOOD, GOOD[0] | {"language": "xx"}], {}, "unknown language 'xx'"),
        (NeverAsked("en"), [{"text": "a", "label": 1}], {}, "labelled texts have no column language"),
        (NeverAsked("en"), GOOD, {"threshold": 0}, "threshold is 0"),
        (NeverAsked("en"), GOOD, {"n_disagreements": -1}, "n_disagreements is -1"),
    ],
)
def test_bad_input_is_refused_before_a_judge_is_asked(judges, rows, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        validate(judges, rows, **options)
    assert "\n" not in str(caught.value)


def test_wrong_types_and_choices():
    with pytest.raises(ValueError, match=r"by is 'dialect' .*expected one of 'language', 'all'"):
        validate(NeverAsked("en"), GOOD, by="dialect")
    with pytest.raises(TypeError, match="judges is"):
        validate("wordlist", GOOD)


def test_a_word_list_is_the_floor():
    """A list that knows half of the words does worse than the judge that made the labels, and both are seen."""
    rows = list(xt.mini.labelled("en", n=60, split="validation"))
    words = xt.mini.toxic_words()["en"]
    result = validate([xt.mini.scorer(), WordlistScorer({"en": words[::3]})], rows)
    first, second = result.to_frame().itertuples()
    assert first.auroc > 0.95 > second.auroc
    assert second.high < first.low
