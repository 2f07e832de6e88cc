"""The two lines that show how far a study is."""

import io
import re
import time

import pytest

from xlingtox.progress import bar
from xlingtox.study import progress_lines
from xlingtox.study.progress_lines import ProgressLines


def test_the_share_grows_with_the_stages_and_ends_at_one():
    shares = []
    with ProgressLines(["a", "b", "c"], shown=False, expected={"a": 1.0, "b": 2.0, "c": 1.0}) as lines:
        lines.skip("a")
        shares.append(lines.share)
        for name in ("b", "c"):
            with lines.stage(name):
                shares.append(lines.share)
            shares.append(lines.share)
    assert shares[0] == pytest.approx(0.25)
    assert shares[2] == pytest.approx(0.75)
    assert shares[-1] == pytest.approx(1)
    assert shares == sorted(shares)


def test_the_time_left_follows_how_long_the_stages_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with ProgressLines(["a", "b"], shown=False, expected={"a": 10.0, "b": 30.0}) as lines:
        with lines.stage("a"):
            now[0] = 5.0
            assert lines.seconds_left == pytest.approx(35)  # half of the stage, at the pace that was foretold
            now[0] = 20.0  # twice as slow
        assert lines.seconds_left == pytest.approx(60)
        with lines.stage("b"):
            now[0] = 50.0
            assert lines.seconds_left == pytest.approx(30)


def test_nothing_is_foretold_before_a_stage_is_done_where_nothing_is_known():
    with ProgressLines(["a", "b"], shown=False) as lines, lines.stage("a"):
        assert lines.seconds_left is None


def test_the_words_name_the_stage_and_the_loops_within():
    with ProgressLines(["a", "b"], shown=False) as lines:
        with lines.stage("a"), bar("doses", total=3) as outer:
            outer.update()
            with bar("writing", total=2000) as inner:
                inner.update(1500)
                assert lines.words == "a: doses 1/3 > writing 1,500/2,000"
            outer.note("half")
            assert lines.words == "a: doses 1/3, half"
        with lines.stage("b"):
            assert lines.words == "b", "nothing of the stage before"


def test_two_lines_are_drawn_and_no_bar_within(monkeypatch, capsys):
    drawn = io.StringIO()
    monkeypatch.setattr(progress_lines, "can_draw", lambda: True)
    monkeypatch.setattr(progress_lines, "_EVERY", 0.0)
    real = progress_lines.tqdm
    monkeypatch.setattr(progress_lines, "tqdm", lambda **how: real(file=drawn, ncols=80, mininterval=0, **how))
    with ProgressLines(["a", "b"], shown=True, expected={"a": 1.0, "b": 1.0}) as lines:
        for name in ("a", "b"):
            with lines.stage(name), bar("reading", total=2) as shown:
                shown.update()
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", drawn.getvalue())
    assert "study: a, about" in text
    assert "  a: reading 1/2" in text
    assert "study: done" in text
    assert "100%" in text
    assert capsys.readouterr().err == ""


def test_nothing_is_drawn_into_a_file(capsys):
    with ProgressLines(["a"], shown=True) as lines, lines.stage("a"), bar("reading", total=2) as shown:
        shown.update(2)
    assert capsys.readouterr() == ("", "")
