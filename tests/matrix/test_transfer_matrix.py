"""The result of tuning on each source and evaluating in each target: its table, its file, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
from made_matrices import matrix

import xlingtox as xt
from xlingtox.evaluation import paired_changes

THREE = ("en", "es", "fr")


def random_matrix(sources=THREE, targets=("es", "fr", "zh"), n_prompts=7, **fields):
    rng = np.random.default_rng(3)
    shape = (1 + 2 * len(sources), len(targets), n_prompts)
    values = {"average_toxicity": rng.random(shape), "degenerate": rng.random(shape) / 2}
    values["average_toxicity"][:, 1, 5:] = math.nan
    meanings = np.tile(np.arange(n_prompts), (len(targets), 1))
    meanings[1, 5:] = -1
    perplexity = 10 + rng.random(shape[:2])
    numbers = rng.random((len(sources), len(targets)))
    empty = np.zeros((len(sources), len(targets)))
    fields = {"values": values, "meanings": meanings, "perplexity": perplexity, "has_shuffled": True} | fields
    return matrix(empty, sources, targets, properties={"retrieval": numbers, "mixing": -numbers}, **fields)


def test_the_table_by_hand():
    result = random_matrix()
    table = result.to_frame()
    assert list(table.columns[:8]) == "source target measure before after low high relative_drop".split()
    assert list(table.columns[8:]) == ["shuffled", "shuffled_drop", "same", "caution"]
    assert len(table) == 3 * 3 * 3
    for row in table.to_dict("records"):
        i, j = THREE.index(row["source"]), ("es", "fr", "zh").index(row["target"])
        if row["measure"] == "perplexity":
            before, after, control = (result.perplexity[run, j] for run in (0, 1 + i, 4 + i))
            assert math.isnan(row["low"])
            assert math.isnan(row["high"])
        else:
            prompts = [result.values[row["measure"]][run, j] for run in (0, 1 + i, 4 + i)]
            if row["measure"] == "average_toxicity" and row["target"] == "fr":
                prompts = [values[:5] for values in prompts]
            before, after, control = (values.mean() for values in prompts)
            change = paired_changes({row["target"]: prompts[0]}, {row["target"]: prompts[1]})[0][row["target"]]
            assert (row["low"], row["high"]) == pytest.approx((change.low, change.high))
        assert (row["before"], row["after"], row["shuffled"]) == pytest.approx((before, after, control))
        assert row["relative_drop"] == pytest.approx((before - after) / before)
        assert row["shuffled_drop"] == pytest.approx((before - control) / before)
        assert row["same"] == (row["source"] == row["target"])
    drops = table[table.measure == "average_toxicity"].relative_drop.to_numpy().reshape(3, 3)
    assert result.drops() == pytest.approx(drops)
    assert result.to_frame("degenerate").equals(table[table.measure == "degenerate"].reset_index(drop=True))


def test_saved_and_loaded_is_equal(tmp_path):
    result = random_matrix()
    result.save(tmp_path / "matrix.safetensors")
    again = xt.TransferMatrix.load(tmp_path / "matrix.safetensors")
    assert again == result
    assert list(again.properties) == ["retrieval", "mixing"]
    assert again.effects().equals(result.effects())
    assert again != random_matrix(recipe={})
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.safetensors"]
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        xt.TransferMatrix.load(tmp_path / "other.safetensors")


def test_where_nothing_could_drop_there_is_no_drop():
    result = matrix(np.full((3, 3), 0.5), THREE, base=(0.5, 0.0, 0.4))
    assert np.isnan(result.drops()[:, 1]).all()
    assert result.drops()[:, [0, 2]] == pytest.approx(np.full((3, 2), 0.5))
    assert np.isnan(result.shuffled_drops()).all()


def test_what_is_refused():
    result = random_matrix()
    for fields, words in (
        ({"sources": ("es", "en", "fr")}, "sources are es, en, fr: expected languages without repetition"),
        ({"targets": ()}, "targets are none"),
        ({"has_shuffled": False}, r"values\['average_toxicity'\] has shape \(7, 3, 7\): expected \(4, 3, 7\)"),
        ({"properties": {"a": np.ones((2, 3))}}, r"properties\['a'\] has shape \(2, 3\): expected \(3, 3\)"),
        ({"values": {}}, "needs values of average_toxicity"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(result, **fields)
    with pytest.raises(TypeError, match="with axes as long as those of the other arguments"):
        dataclasses.replace(result, perplexity=np.ones((7, 2)))
    with pytest.raises(ValueError, match="measure is 'emt': expected one of average_toxicity, degenerate, perplexity"):
        result.drops("emt")
    with pytest.raises(ValueError, match="measure is 'perplexity': expected one with a value for each prompt"):
        result.effects("perplexity")
    with pytest.raises(ValueError, match="versus is 'zh': expected one of the sources, en, es, fr"):
        result.teachers(versus="zh")
