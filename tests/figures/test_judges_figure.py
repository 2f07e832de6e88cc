"""The figures of judges: a mark for each judge in each language that it covers."""

import pytest
from toys import HashScorer

import xlingtox as xt

ROWS = [
    {"language": code, "text": f"{word} {i}", "label": int(word == "fool")}
    for code in ("en", "de", "ko")
    for word in ("fool", "friend")
    for i in range(6)
]
FOUND = xt.scoring.validate([xt.scoring.WordlistScorer({"en": ["fool"], "de": ["fool"]}), HashScorer("en", "ko")], ROWS)


def test_a_mark_with_its_interval_for_each_judge_and_language():
    figure = xt.plot(FOUND)
    assert figure == xt.figures.validation(FOUND)
    words, hashed = figure.data
    table = FOUND.to_frame().set_index(["judge", "language"])
    assert (words.name, hashed.name) == ("wordlist", "hash")
    assert words.y == (1.0, 1.0, None)
    assert hashed.y == (table.auroc["hash", "en"], None, table.auroc["hash", "ko"])
    assert hashed.error_y.array[0] == pytest.approx(table.high["hash", "en"] - table.auroc["hash", "en"])
    assert words.error_y.arrayminus[1] == pytest.approx(1 - table.low["wordlist", "de"])
    assert words.marker.symbol != hashed.marker.symbol
    assert figure.layout.xaxis.ticktext == ("English", "German", "Korean")
    assert all(first < second for first, second in zip(words.x, hashed.x, strict=True))
    assert xt.plot(xt.scoring.validate(HashScorer("en"), ROWS, by="all")).layout.xaxis.ticktext == ("all languages",)


def test_blind_spots():
    judges = [xt.scoring.WordlistScorer({"en": ["fool"]}), HashScorer("en")]
    found = xt.scoring.blind_spots(judges, ["You fool", "A fool", "fools"], ["en"] * 3)
    figure = xt.plot(found, language="en")
    assert [bar.name for bar in figure.data] == ["wordlist", "hash"]
    assert figure.data[0].x == tuple(xt.scoring.PERTURBATIONS)
    assert figure.data[0].y[:2] == (1.0, 1.0)
    with pytest.raises(ValueError, match="language is 'de': expected one of en, all"):
        xt.plot(found, language="de")
