"""ProbeScorer, and agreement between scorers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import HashScorer, NeverAsked

from xlingtox.edits.interventions import Offset
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.scoring import Agreement, Cached, ProbeScorer, UncoveredLanguage, WordlistScorer, agreement

# --- ProbeScorer


@pytest.fixture(scope="module")
def probe(lm):
    direction = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return Probe(direction, 0.25, accuracy=1.0, auc=1.0, baseline=0.5, n_train=9, n_held_out=3, model=lm.identity())


def test_equal_to_a_plain_reading_of_the_states(lm, model, tokenizer, probe):
    """The input of the final norm, averaged over the tokens, by a plain PyTorch hook."""
    texts = ["the cat sat on the mat", "a", "кот", "la casa " * 40, ""]
    expected = []
    for text in texts:
        kept = []
        handle = model.transformer.ln_f.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
        ids = tokenizer(text)["input_ids"][:64] or [tokenizer.eos_token_id]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        handle.remove()
        logit = kept[0][0].mean(0) @ probe.direction + probe.bias
        expected.append(1 / (1 + math.exp(-logit.item())))
    scores = ProbeScorer(lm, probe, languages=["en", "es", "ru"], progress=False).score(
        texts, ["en", "en", "ru", "es", "en"]
    )
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(st.characters()), max_size=4))
def test_any_text_is_judged(lm, probe, texts):
    texts += ["\ud800", "\0", "שלום \u202e", "x" * 100_000]
    scores = ProbeScorer(lm, probe, languages=["en"], progress=False).score(texts, ["en"] * len(texts))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_sure_probe_does_not_overflow(lm, probe):
    for sign in (1, -1):
        sure = dataclasses.replace(probe, direction=probe.direction * 0, bias=sign * 1e4)
        with np.errstate(all="raise", under="ignore"):
            scores = ProbeScorer(lm, sure, languages=["en"], progress=False).score(["a", "b"], ["en", "en"])
        assert scores.tolist() == [(sign + 1) / 2] * 2


def test_the_probe_and_the_weights_are_the_revision(lm, probe, ending):
    base = ProbeScorer(lm, probe, languages=["en"])
    assert (base.name, base.languages) == (f"probe on {lm.name}", {"en"})
    assert base.revision.endswith(f" on {lm.fingerprint()} float32")
    assert ProbeScorer(lm, dataclasses.replace(probe, bias=0.5), languages=["en"]).revision != base.revision
    assert (
        ProbeScorer(lm, dataclasses.replace(probe, direction=-probe.direction), languages=["en"]).revision
        != base.revision
    )
    assert base.score([], []).shape == (0,)


def test_what_does_not_fit_is_refused(lm, probe):
    with pytest.raises(ValueError, match="width"):
        ProbeScorer(lm, dataclasses.replace(probe, direction=torch.ones(3)), languages=["en"])
    other_model = dataclasses.replace(lm.identity(), name="elsewhere", fingerprint="0" * 12)
    with pytest.raises(ValueError, match="was fitted on elsewhere, whose weights are not those of"):
        ProbeScorer(lm, dataclasses.replace(probe, model=other_model), languages=["en"])
    with pytest.raises(ValueError, match="unknown language 'EN'"):
        ProbeScorer(lm, probe, languages=["EN"])
    with pytest.raises(ValueError, match="say which languages"):
        ProbeScorer(lm, probe, languages=[])
    with pytest.raises(UncoveredLanguage, match="does not cover fr: it covers en"):
        ProbeScorer(lm, probe, languages=["en"]).score(["a"], ["fr"])


def test_no_score_while_an_edit_stands_on_the_judge(lm, probe, tmp_path):
    scorer = ProbeScorer(lm, probe, languages=["en"], progress=False)
    cached = Cached(scorer, path=tmp_path / "scores.sqlite", progress=False)
    expected = scorer.score(["a fool"], ["en"])
    ids, mask = lm.encode(["a fool"])
    with Offset(NeuronSet.of([(0, 3)]), 50.0).on(lm):
        lm.logits(ids, mask)
        with pytest.raises(RuntimeError, match="an edit or another hook is on the scorer's model: score outside"):
            cached.score(["a fool"], ["en"])
    lm.tl.blocks[0].hook_resid_post.add_hook(lambda value, hook: value + 1)
    try:
        with pytest.raises(RuntimeError, match="on the scorer's model"):
            cached.score(["a fool"], ["en"])
    finally:
        lm.tl.reset_hooks()
    with pytest.raises(ZeroDivisionError), Offset(NeuronSet.of([(0, 3)]), 50.0).on(lm):
        raise ZeroDivisionError
    assert not lm.hooked
    assert cached.score(["a fool"], ["en"]).tolist() == expected.tolist()


def test_no_score_by_a_judge_whose_weights_have_changed(model, tokenizer, probe):
    judge = HookedLM.load(model, tokenizer=tokenizer)
    scorer = ProbeScorer(judge, probe, languages=["en"], progress=False)
    assert scorer.score(["a"], ["en"]).shape == (1,)
    with torch.no_grad():
        judge.value_vectors(0).mul_(2)
    with pytest.raises(RuntimeError, match="the weights of the scorer's model have changed since"):
        scorer.score(["a"], ["en"])


# --- agreement


class Given(HashScorer):
    """Scores of texts that are numbers, by a table."""

    def __init__(self, name, table, *languages):
        super().__init__(*languages)
        self.name, self.table = name, table

    def score(self, texts, languages):
        return np.array([self.table[int(text)] for text in texts])


def spearman(a, b):
    """Pearson correlation of mean ranks, in loops."""

    def ranks(values):
        return [sum(u < v for u in values) + (sum(u == v for u in values) + 1) / 2 for v in values]

    ra, rb = ranks(a), ranks(b)
    ma, mb = sum(ra) / len(ra), sum(rb) / len(rb)
    upper = sum((x - ma) * (y - mb) for x, y in zip(ra, rb, strict=True))
    return upper / math.sqrt(sum((x - ma) ** 2 for x in ra) * sum((y - mb) ** 2 for y in rb))


def test_rank_correlations_by_language_and_pair():
    generator = np.random.default_rng(0)
    tables = [np.round(generator.random(60), 1) for _ in range(3)]
    codes = [["en", "fr", "de"][i % 3] for i in range(60)]
    scorers = [Given(name, table, "en", "fr", "de") for name, table in zip("abc", tables, strict=True)]
    result = agreement(scorers, [str(i) for i in range(60)], codes, n_disagreements=4)
    frame = result.to_frame()
    assert list(frame.columns) == ["language", "first", "second", "n", "rank_correlation"]
    order = [("en", "a", "b"), ("en", "a", "c"), ("en", "b", "c"), ("fr", "a", "b")]
    assert [tuple(row) for row in frame.iloc[:4, :3].to_numpy()] == order
    for row in frame.itertuples():
        a, b = (tables["abc".index(name)][[c == row.language for c in codes]] for name in (row.first, row.second))
        assert row.n == 20
        assert row.rank_correlation == pytest.approx(spearman(a, b))
    assert len(result.disagreements_to_frame()) == 9 * 4


def test_the_largest_disagreements():
    first, second = [0.1, 0.2, 0.3, 0.9, 0.5], [0.91, 0.92, 0.93, 0.94, 0.2]
    result = agreement(
        [Given("a", first, "en"), Given("b", second, "en")], list("01234"), ["en"] * 5, n_disagreements=2
    )
    (pair,) = result.pairs
    # Ranks 1 2 3 5 4 and 2 3 4 5 1: the scale of the scores does not count.
    assert [tuple(disagreement) for disagreement in pair.disagreements] == [(4, 0.5, 0.2, 0.75), (0, 0.1, 0.91, -0.25)]
    frame = result.disagreements_to_frame()
    assert frame.columns.tolist() == [
        "language", "first", "second", "text", "first_score", "second_score", "ranks_apart"
    ]  # fmt: skip
    assert frame["text"].tolist() == [4, 0]


def test_scorers_that_cover_different_languages():
    result = agreement(
        [WordlistScorer({"en": ["fool"], "fr": ["sot"]}), HashScorer("en", "de"), Given("c", [0.5] * 9, "en", "de")],
        ["0", "1", "2", "3", "4"],
        ["en", "en", "de", "de", "fr"],
    )
    frame = result.to_frame().set_index(["language", "first", "second"])
    assert frame.loc[("en", "wordlist", "hash"), "n"] == 2
    assert frame.loc[("de", "wordlist", "hash"), "n"] == 0
    assert frame.loc[("fr", "hash", "c"), "n"] == 0
    assert math.isnan(frame.loc[("en", "wordlist", "c"), "rank_correlation"])  # both give all texts the same
    assert len(frame) == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.pairs = ()


def test_an_agreement_is_kept_in_one_file_and_shown(tmp_path):
    tables = [0.1, 0.2, 0.3, 0.9, 0.5], [0.95, 0.92, 0.93, 0.94, 0.2]
    scorers = [Given("<a>", tables[0], "en", "fr"), Given("b", tables[1], "en"), Given("c", [0.5] * 5, "en", "fr")]
    result = agreement(scorers, list("01234"), ["en", "en", "en", "en", "fr"])
    result.save(tmp_path / "agreement.json")
    assert [path.name for path in tmp_path.iterdir()] == ["agreement.json"]
    again = Agreement.load(tmp_path / "agreement.json")
    assert again.to_frame().equals(result.to_frame())
    assert math.isnan(again.pairs[1].rank_correlation)
    assert [pair.disagreements for pair in again.pairs] == [pair.disagreements for pair in result.pairs]
    assert type(again.pairs[0].disagreements[0]) is type(result.pairs[0].disagreements[0])
    assert repr(again) == "Agreement(3 scorers, 2 languages)"
    html = result._repr_html_()
    assert html.count("<tr") == 7
    assert "&lt;a&gt;" in html
    assert "<a>" not in html
    assert "not defined" in html
    (tmp_path / "agreement.json").write_text('{"pairs": [{"language": "en"}]}')
    with pytest.raises(ValueError, match=r"agreement\.json holds no agreement"):
        Agreement.load(tmp_path / "agreement.json")


def test_bad_input_is_refused_before_work():
    asked = NeverAsked("en")
    named = NeverAsked("en")
    named.name = "other"
    for scorers in ([], [asked], [asked, asked]):
        with pytest.raises(ValueError, match="expected two scorers or more"):
            agreement(scorers, ["a"], ["en"])
    for texts, languages, words in [
        ([], [], "no texts"),
        (["a"], ["en", "en"], "1 texts and 2 languages"),
        (["a", "b"], ["en", "sv"], "none of hash, other covers sv"),
    ]:
        with pytest.raises(ValueError, match=words):
            agreement([asked, named], texts, languages)
    with pytest.raises(ValueError, match="n_disagreements is -1"):
        agreement([asked, named], ["a"], ["en"], n_disagreements=-1)
