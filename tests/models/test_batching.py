import logging

import pytest
import torch

from xlingtox.models import batching
from xlingtox.models.batching import in_batches, rows_that_fit
from xlingtox.models.generation import generate


def test_in_order_and_all():
    seen = []
    in_batches([4, 2, 9, 7, 1], 2, lambda rows: seen.append(rows))
    assert seen == [[4, 2], [9, 7], [1]]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_halved_with_a_warning_when_memory_runs_out(error, caplog):
    seen = []

    def work(rows):
        if len(rows) > 2:
            raise error
        seen.append(rows)

    with caplog.at_level(logging.WARNING):
        in_batches(list(range(7)), 6, work)
    assert [row for rows in seen for row in rows] == list(range(7))
    assert max(map(len, seen)) == 2
    assert "with 6 rows at once: going on with 3" in caplog.text


def test_one_row_that_does_not_fit_is_an_error():
    def work(rows):
        raise MemoryError

    with pytest.raises(MemoryError, match="not even one row"):
        in_batches([0, 1], 2, work)


def test_other_faults_pass():
    def work(rows):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        in_batches([0, 1], 2, work)


def test_texts_are_the_same_after_memory_ran_out(lm, monkeypatch):
    prompts = ["the cat", "la casa es grande", "a", "кот"]
    texts = generate(lm, prompts, n_samples=3, max_new_tokens=5, progress=False).texts
    repeated = lm.repeated

    def tight(held, times):
        if held.key_values.get_seq_length() and held.key_values.layers[0].keys.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return repeated(held, times)

    monkeypatch.setattr(lm, "repeated", tight)
    assert generate(lm, prompts, n_samples=3, max_new_tokens=5, progress=False).texts == texts


@pytest.mark.parametrize("most", [1, 3, 5])
def test_the_samples_of_one_prompt_are_parted_when_memory_runs_out(lm, monkeypatch, caplog, most):
    prompts = ["the cat", "la casa es grande", "кот"]
    options = {"n_samples": 9, "max_new_tokens": 5, "progress": False}
    texts = generate(lm, prompts, **options).texts
    extend, repeated, read = lm.extend, lm.repeated, []

    def tight(held, times):
        if times * held.key_values.layers[0].keys.shape[0] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return repeated(held, times)

    def counted(ids, mask, cache=None, **more):
        if cache is None:
            read.append(len(ids))
        return extend(ids, mask, cache=cache, **more)

    monkeypatch.setattr(lm, "repeated", tight)
    monkeypatch.setattr(lm, "extend", counted)
    assert generate(lm, prompts, **options).texts == texts
    # Once it is known how many fit, no prompt tries more.
    tried, parts = len(caplog.records), {1: 9, 3: 3, 5: 2}[most]
    assert len(read) == tried + parts * len(prompts)
    assert tried <= 6


def test_a_batch_smaller_than_the_samples_parts_them(lm, monkeypatch):
    options = {"n_samples": 5, "max_new_tokens": 4, "progress": False}
    texts, extend, rows = generate(lm, ["the cat", "a"], **options).texts, lm.extend, []

    def seen(ids, mask, cache=None, **more):
        rows.append(len(ids))
        return extend(ids, mask, cache=cache, **more)

    monkeypatch.setattr(lm, "extend", seen)
    assert generate(lm, ["the cat", "a"], batch_size=2, **options).texts == texts
    assert max(rows) == 2


def test_not_even_one_sample_fits(lm, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lm, "extend", full)
    with pytest.raises(MemoryError, match="not even one row"):
        generate(lm, ["the cat"], n_samples=4, max_new_tokens=2, progress=False)


def test_rows_follow_the_memory_at_hand(lm, monkeypatch):
    class Memory:
        available = 40 * lm.row_bytes(30)

    monkeypatch.setattr(batching.psutil, "virtual_memory", Memory)
    assert rows_that_fit(lm, 30) == 20
    assert rows_that_fit(lm, 60) < 20
    Memory.available = 0
    assert rows_that_fit(lm, 30) == 1
    Memory.available = 1e15
    assert rows_that_fit(lm, 30) == batching._MOST_ROWS["cpu"]
