"""Nobody is called: a study, tuning, loaders and models from folders attempt no connection, and leave no switch set."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from datasets import Dataset
from families import build
from huggingface_hub import constants
from toys import xlm_roberta

from xlingtox.tuning.side_effects import no_hub_calls

ROOT = Path(__file__).parents[2]
SWITCHES = ("CI", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
MORE_SWITCHES = ("DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_UPDATE_DOWNLOAD_COUNTS", "DISABLE_SAFETENSORS_CONVERSION")

SOCKETS = """
import socket, traceback
attempts = []

def refused(*args, **kwargs):
    attempts.append("".join(traceback.format_stack(limit=30)))
    raise OSError("no network in this test")

for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, refused)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refused)
"""

WORK = """
import dataclasses, json, pathlib, sys
import xlingtox as xt

folder = pathlib.Path(sys.argv[1])

def settled():
    # Telemetry goes out in a thread of its own, which swallows what it meets.
    from huggingface_hub.utils import _telemetry
    _telemetry._TELEMETRY_QUEUE.join()
    return len(attempts)

seen = {"import": settled()}
from xlingtox import mini, study
from xlingtox.study import report
lm = xt.HookedLM.load("mini")
materials = study.Materials(
    labelled=mini.labelled("en", n=400), toxic_prompts=mini.prompts(n=2, kind="toxic"),
    neutral_prompts=mini.prompts(n=2, kind="neutral"),
    pairs=mini.pairs("en", n=8), validation=mini.pairs("en", n=4, split="validation"), parallel=mini.parallel(n=6),
    held_out=mini.held_out(n=2), scorer=xt.scoring.Cached(mini.scorer(), path=folder / "scores.sqlite", progress=False),
    identify_language=mini.identify_language,
)
recipe = xt.tuning.Recipe(steps=2, batch_size=2, learning_rate=1e-4, max_length=48, save_every=1, evaluate_every=1)
settings = study.Settings(
    k=100, offsets=(0.0, -1.0), amplifications=(0.0, 1.0), n_random=2, n_random_amplified=2, dose_prompts=1,
    n_samples=2, max_new_tokens=8, recipe=recipe,
)
results = study.run(lm, materials, output_dir=folder / "study", settings=settings, progress=False)
report.write(results, folder / "report.html", toxic_words=mini.toxic_words())
seen["study"] = settled()

adapter = dataclasses.replace(recipe, lora=xt.tuning.Lora(rank=2, alpha=2, bits=None))
loaded = xt.HookedLM.load(folder / "llama")
# A model in memory remembers the name of what it came from.
plain = loaded.unwrapped()
plain.config._name_or_path = "somebody/something"
named = xt.HookedLM.load(plain, tokenizer=loaded.tokenizer)
xt.tune_dpo(named, materials.pairs, output_dir=folder / "named", recipe=adapter, progress=False)
xt.tune_dpo(folder / "llama", materials.pairs, output_dir=folder / "tuned", recipe=adapter, progress=False)
for name in ("SFT", "KTO", "ORPO", "SIMPO"):
    method = dataclasses.replace(getattr(xt.tuning, name), steps=1, batch_size=2, lora=adapter.lora)
    xt.tune(folder / "llama", materials.pairs, output_dir=folder / name, recipe=method, progress=False)
seen["tuning"] = settled()

xt.HookedLM.load(folder / "llama", adapter=folder / "tuned" / "adapter")
xt.Offset(xt.NeuronSet.of([(0, 1)]), -1.0).bake(lm, output_dir=folder / "baked")
xt.HookedLM.load(folder / "baked")
seen["models"] = settled()
for name in ("list.json", "table.parquet", "lines.jsonl"):
    xt.data.from_columns(folder / name, {"text": "said"}, language="en")
judge = xt.scoring.ClassifierScorer(folder / "classifier", languages=["en"], progress=False)
judge.score(["a fool"], ["en"])
seen["loaders and scorers"] = settled()

before = list(attempts)
# Everything is as it was, and an attempt would have been seen.
from huggingface_hub.utils import send_telemetry
send_telemetry("nothing")
assert settled() > len(before), "this test cannot see a call"
print(json.dumps({"seen": seen, "attempts": before[:2]}))
"""


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A Llama whose embeddings are not tied, a classifier, and tables."""
    build("llama").save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    classifier, of_classifier = xlm_roberta({"id2label": {0: "neutral", 1: "toxic"}}, ["a fool", "the cat"])
    classifier.save_pretrained(tmp_path / "classifier")
    of_classifier.save_pretrained(tmp_path / "classifier")
    (tmp_path / "list.json").write_text(json.dumps([{"said": "a"}]))
    (tmp_path / "lines.jsonl").write_text('{"said": "a"}\n')
    Dataset.from_dict({"said": ["a"]}).to_parquet(tmp_path / "table.parquet")
    return tmp_path


def test_no_connection_is_attempted(folder):
    environment = {name: value for name, value in os.environ.items() if name not in {*SWITCHES, *MORE_SWITCHES}}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    script = SOCKETS + textwrap.dedent(WORK)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert not any(report["seen"].values()), "\n".join([str(report["seen"]), *report["attempts"]])


@pytest.mark.parametrize("before", [None, "0", "1"])
@pytest.mark.parametrize("silenced", [False, True])
def test_the_switches_are_put_back(monkeypatch, before, silenced):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", silenced)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    for error in (KeyboardInterrupt, ValueError):
        inside = []
        with contextlib.suppress(error), no_hub_calls():
            inside += [constants.HF_HUB_DISABLE_TELEMETRY, os.environ["HF_HUB_OFFLINE"]]
            raise error
        assert inside == [True, "1"]
        assert (constants.HF_HUB_DISABLE_TELEMETRY, os.environ.get("HF_HUB_OFFLINE")) == (silenced, before)
