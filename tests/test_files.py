"""Files and folders are written whole or not at all, read back equal, and named where they cannot be read."""

import errno
import json
import math
import os
import re
import resource
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from kept import KINDS, contents, made, save_all
from safetensors.torch import load_file, save_file

from xlingtox import files
from xlingtox.edits.interventions import Intervention, Offset
from xlingtox.files import _HOST, appearing, writable_folder
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.transfer.retrieval import Retrieval

EVERY = [*made(1.0), "edit", "vectors.gguf", "results.json", "report.html"]


@pytest.fixture
def saved(lm, tmp_path):
    """A folder with a file of every kind, made of the number 1."""
    save_all(lm, 1.0, tmp_path / "saved")
    return tmp_path / "saved"


# --- one result, one file, written beside and moved into place


def test_one_result_is_one_file_that_equals_it(lm, saved):
    assert sorted(os.listdir(saved)) == sorted(EVERY)
    for name, kind in KINDS.items():
        again = kind.load(saved / name)
        assert repr(again) == repr(made(1.0)[name])
        again.save(saved.parent / name)
        assert (saved.parent / name).read_bytes() == (saved / name).read_bytes()
    acts, probe = Activations.load(saved / "activations"), Probe.load(saved / "probe")
    assert torch.equal(acts.values, made(1.0)["activations"].values)
    assert (acts.neurons, acts.model) == (made(1.0)["activations"].neurons, made(1.0)["activations"].model)
    assert torch.equal(probe.direction, made(1.0)["probe"].direction)
    for name in ("comparison", "retrieval", "patching", "doses", "drift", "fluency"):
        assert KINDS[name].load(saved / name) == made(1.0)[name]
        assert KINDS[name].load(saved / name) != made(2.0)[name]
    assert Intervention.load(saved / "edit", lm) == Offset(
        NeuronSet.of([(0, i) for i in range(20)], scores=[1.0] * 20), 1.0
    )


def test_another_reader_of_safetensors_reads_them(saved):
    assert load_file(saved / "probe")["direction"].tolist() == made(1.0)["probe"].direction.tolist()


def test_files_have_ordinary_permissions(lm, tmp_path):
    before = os.umask(0o027)
    try:
        save_all(lm, 1.0, tmp_path / "saved")
        save_all(lm, 2.0, tmp_path / "saved")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "saved").iterdir()} == {0o640}


@pytest.mark.parametrize("fault", ["the disk is full", "the disk is full at the end", "no more than 100 bytes"])
def test_a_full_disk_leaves_the_old_file(lm, saved, monkeypatch, fault):
    before = contents(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    results = made(2.0)
    saves = {name: lambda name=name: results[name].save(saved / name) for name in results}
    saves["edit"] = lambda: Offset(NeuronSet.of([(0, i) for i in range(20)]), 2.0).save(saved / "edit", lm)
    saves["vectors.gguf"] = lambda: results["vectors"].save_gguf(saved / "vectors.gguf", "llama")
    saves["results.json"] = lambda: files.write_results(saved / "results.json", {"values": [2.0] * 100})
    saves["report.html"] = lambda: files.write_text(saved / "report.html", "2.0\n" * 100)
    assert list(saves) == EVERY
    for name, save in saves.items():
        with monkeypatch.context() as patched:
            if fault == "the disk is full":
                patched.setattr("xlingtox.files.Path.mkdir", full)
            elif fault == "the disk is full at the end":
                patched.setattr("xlingtox.files.os.fsync", full)
            else:
                # The system itself refuses what goes beyond.
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            try:
                with pytest.raises(OSError, match=re.escape(str(saved / name))) as raised:
                    save()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "what the file held before is kept" in str(raised.value)
        assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert contents(saved) == before
    assert sorted(os.listdir(saved)) == sorted(EVERY), "no partial file is left"


def test_an_interrupt_leaves_the_old_file(tmp_path):
    files.write_text(tmp_path / "a", "old")

    def interrupted():
        with files.replacing(tmp_path / "a") as partial:
            partial.write_text("half")
            assert (tmp_path / "a").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"a": b"old"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    files.write_text(tmp_path / "there" / "a", "old")
    (tmp_path / "link").symlink_to("there/a")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    """Moved onto a device, a file would take its place."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=f"cannot write .*{name}: it is a folder or a device"):
            files.write_text(tmp_path / name, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"its folder does not exist: '.*/no/a'") as raised:
        files.write_text(tmp_path / "no" / "a", "x")
    assert raised.value.filename == str(tmp_path / "no" / "a")


def test_many_threads_write_one_file(tmp_path):
    texts = [f"{i}" * 5000 for i in range(10)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(tmp_path / "a", text), texts * 20))
    assert (tmp_path / "a").read_text() in texts
    assert os.listdir(tmp_path) == ["a"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, now = files._HOST, time.time()
    left = {
        f".xlingtox-{host}-{ended.pid}-{'0' * 8}.partial": now,
        f".xlingtox-{'f' * 8}-1-{'0' * 8}.partial": now - 1e5,
    }
    # One from before this process began, which has its number: that of a container that was started again.
    left[f".xlingtox-{host}-{os.getpid()}-{'1' * 8}.partial"] = now - 80_000
    others = {f".xlingtox-{host}-{os.getpid()}-{'0' * 8}.partial": now, f".xlingtox-{'f' * 8}-1-{'1' * 8}.partial": now}
    others |= {".xlingtox-notes": now - 1e6, ".xlingtox-1-2-3.partial.json": now - 1e6, "a.partial": now - 1e6}
    for name, written in (left | others).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
        os.utime(tmp_path / name, (written, written))
    files.write_text(tmp_path / "a", "x")
    assert set(os.listdir(tmp_path)) == {"a", *others}


# --- reading


@pytest.mark.parametrize("name", [*KINDS, "edit"])
def test_what_cannot_be_read_is_named(lm, saved, name):
    """Cut off anywhere, empty, of another kind, or something else altogether."""
    load = (lambda path: Intervention.load(path, lm)) if name == "edit" else KINDS[name].load
    file, content = saved / name, (saved / name).read_bytes()
    broken = [content[: int(share * len(content))] for share in (0, 0.001, 0.1, 0.5, 0.9)] + [
        content[:-1].rstrip()[:-1]
    ]
    broken += [b"\xff\xfe" * 50, b"[" * 100_000, b"null", b"[1]", b'{"a": 1}', (saved / "report.html").read_bytes()]
    others = [(saved / other_name).read_bytes() for other_name in [*KINDS, "edit"] if other_name != name]
    for wrong in [*broken, *others]:
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} (cannot be read|holds no)") as raised:
            load(file)
        assert type(raised.value) is ValueError
        assert "\n" not in str(raised.value)
        assert "save" in str(raised.value), "what to do"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        load(file)
    file.mkdir()
    with pytest.raises(IsADirectoryError, match=re.escape(str(file))):
        load(file)


def test_json_of_the_standard_has_null_for_what_is_no_number(tmp_path):
    files.write_results(tmp_path / "a", {"a": [1.5, math.nan, (math.inf, None)], "b": "NaN"})
    assert json.loads((tmp_path / "a").read_text()) == {"a": [1.5, None, [None, None]], "b": "NaN"}
    again = files.read_results(tmp_path / "a")
    assert again["a"][0] == 1.5
    assert math.isnan(again["a"][1])
    assert math.isnan(again["a"][2][0])


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\U0001f600", "\\ud800", "é\u2028\0"])
def test_any_text_comes_back(tmp_path, text):
    """A prompt with half a surrogate pair must not cost what was written after it."""
    files.write_json(tmp_path / "a", [text])
    assert files.read_json(tmp_path / "a") == [text]
    files.write_tensors(tmp_path / "b", {"x": torch.ones(2)}, {"text": text})
    assert files.read_tensors(tmp_path / "b")[1] == {"text": text}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back(tmp_path, dtype):
    tensors = {"a": torch.arange(12).reshape(3, 4).T.to(dtype), "b": torch.zeros(0, 5, dtype=dtype)}
    files.write_tensors(tmp_path / "a", tensors)
    again, about = files.read_tensors(tmp_path / "a")
    assert about == {}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == dtype for name in tensors)


# --- two files to a result, as versions before wrote them


def two_files(path: Path, tensors, about) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.with_name(path.name + ".json").write_text(json.dumps(about), "utf-8")


def test_a_result_in_two_files_is_read(lm, tmp_path):
    results = made(1.0)
    probe, acts, retrieved = results["probe"], results["activations"], results["retrieval"]
    model = {"name": "model 1.0", "revision": None, "dtype": "float32", "fingerprint": "f"}
    figures = {"bias": 1.0, "accuracy": 1.0, "auc": 1.0, "baseline": 1.0, "n_train": 1, "n_held_out": 1}
    two_files(tmp_path / "probe", {"direction": probe.direction}, {**figures, "model": model})
    about = {"neurons": acts.neurons.neurons, "scores": acts.neurons.scores, "languages": ["en", "en"], "model": model}
    tensors = {"sums": acts.sums, "steps": acts.steps, "mask": acts.mask, "values": acts.kept}
    two_files(tmp_path / "activations", tensors, about)
    measures = json.loads(json.dumps(files.read_tensors(_saved(retrieved, tmp_path / "new"))[1]["measures"]))
    about = {"pivot": "en", "ties": {"es": [1] * 5}, "duplicates": {"es": 1}, "model": model, "measures": measures}
    two_files(tmp_path / "retrieval", {"es": torch.from_numpy(np.ascontiguousarray(retrieved.scores["es"]))}, about)
    step = {"kind": "Offset", "positions": "all", "one": True}
    made_for = {"name": lm.name, "revision": None, "dtype": "float32", "fingerprint": lm.fingerprint()}
    tensors = {"neurons.0": torch.tensor([[0, 3], [1, 2]]), "scores.0": torch.tensor([0.5, 1.0]).double()}
    tensors["value.0"] = torch.tensor([-0.25, -0.25]).double()
    two_files(tmp_path / "edit", tensors, {"steps": [step], "model": made_for})
    assert torch.equal(Probe.load(tmp_path / "probe").direction, probe.direction)
    assert Probe.load(tmp_path / "probe").model == probe.model
    again = Activations.load(tmp_path / "activations")
    assert (again.neurons, again.languages, again.model) == (acts.neurons, acts.languages, acts.model)
    assert torch.equal(again.values, acts.values)
    assert Retrieval.load(tmp_path / "retrieval") == retrieved
    assert Intervention.load(tmp_path / "edit", lm) == Offset(NeuronSet.of([(0, 3), (1, 2)], scores=[0.5, 1.0]), -0.25)


def test_a_new_file_does_not_believe_an_old_one_that_stands_there(tmp_path):
    made(1.0)["probe"].save(tmp_path / "probe")
    (tmp_path / "probe.json").write_text(json.dumps({"bias": 7.0}))
    assert Probe.load(tmp_path / "probe").bias == 1.0
    save_file({"direction": torch.ones(3)}, tmp_path / "old")
    (tmp_path / "old.json").write_text('{"bias": 1')
    with pytest.raises(ValueError, match=r"old\.json cannot be read"):
        Probe.load(tmp_path / "old")


def _saved(result, path):
    result.save(path)
    return path


# --- folders


def test_writable_folder(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_several_may_ask_for_one_folder_at_once(tmp_path):
    """The processes of a launcher do so."""
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(writable_folder, [tmp_path] * 800)) == {tmp_path}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "runs [1]"
    with appearing(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("a", "utf-8")
        (part / "sub" / "a").chmod(0o600)
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["runs [1]"]
    plain = tmp_path / "plain"
    plain.write_text("", "utf-8")
    assert (target / "sub" / "a").stat().st_mode == plain.stat().st_mode
    with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "other") as part:  # noqa: PT012
        (part / "a").write_text("a", "utf-8")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plain"]
    with pytest.raises(OSError), appearing(target) as part:
        (part / "b").write_text("b", "utf-8")
    assert [path.name for path in target.iterdir()] == ["sub"]
    assert [path.name for path in target.parent.iterdir()] == ["runs [1]"]


def test_what_a_killed_process_left_is_removed_and_no_others(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".xlingtox-{_HOST}-{gone.pid}-0123abcd.partial", f".xlingtox-{_HOST}-{os.getpid()}-0123abcd.partial"]
    names += [".runs.partial-mine", ".xlingtox-mine.partial", "runs2"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", "utf-8")
    with appearing(tmp_path / "runs"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "runs"])
