"""How cost grows, and what other ways of writing cost: `python tests/benchmarks/growth.py [--model mini]`.

Three models: the miniature, SmolLM2, and random weights in the small shape of GPT-2. Growth is measured over prompts,
samples, neurons, doses, random sets, languages and processes. Ratios are to Hugging Face's `generate`, within one run.

vLLM and nnsight need environments of their own. Name their Pythons, and they take turns with the others:

    python tests/benchmarks/growth.py --only ratios --vllm ../vllm/bin/python --nnsight ../nnsight/bin/python

All times are processor time, medians of rounds in which the ways take turns. So other work on the machine matters
little. Only the growth over processes is seconds of waiting: run it on a machine that does nothing else.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from engine import model_of, prompts_of

import xlingtox as xt
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

MODELS = {"mini": "Miniature", "smollm2": "SmolLM2", "gpt2-small": "GPT-2 small, random"}
SAMPLES = 25
OTHERS = Path(__file__).with_name("other_engines.py")

Work = Callable[[], Any]


def in_turns(ways: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return each way's median seconds: what it returns where it says them, else the processor time that it took.

    Each runs once unmeasured. Then all take turns, in another order in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name, way in order.sample(list(ways.items()), len(ways)):
            began = time.process_time()
            said = way()
            took = said if isinstance(said, float) else time.process_time() - began
            if turn:
                seconds[name].append(took)
    return {name: statistics.median(each) for name, each in seconds.items()}


def loaded(name: str) -> HookedLM:
    if name != "gpt2-small":
        return HookedLM.load(name)
    return HookedLM.load(model_of(name, "cpu", torch.float32), tokenizer=HookedLM.load("mini").tokenizer)


def saved(lm: HookedLM, folder: Path) -> Path:
    """Write the model as a checkpoint; a neuron times 1 changes nothing."""
    xt.Scale(NeuronSet.of([(0, 0)]), 1.0).bake(lm, output_dir=folder)
    return folder


class Other(AbstractContextManager["Other"]):
    """An engine in a process of its own, which says how long it took."""

    def __init__(self, engine: str, python: str, folder: Path) -> None:
        command = [python, str(OTHERS), engine, str(folder)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, env=environment, text=True, **(pipes | {"stderr": self.errors}))
        self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        sys.exit(f"the other engine ended: {self.errors.read()[-3000:]}")

    def write(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def spread(lm: HookedLM, n: int) -> NeuronSet:
    """Return n neurons, as many in each layer as go."""
    in_a_layer = -(-n // lm.n_layers)
    every = [(layer, i) for i in range(in_a_layer) for layer in range(lm.n_layers)]
    return NeuronSet.of(every[:n])


def ratios(lm: HookedLM, name: str, folder: Path, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of each way to write greedily, and to sample. The two large models do less of each."""
    n_prompts, n_sampled, new = (10, 4, 20) if name == "mini" else (4, 2, 10)
    raw = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    raw.generation_config.pad_token_id = 0
    neurons = spread(lm, 36)
    layers = sorted({layer for layer, _ in neurons})
    texts = prompts_of(lm, n_prompts)
    ids, mask = lm.encode(texts)
    few, few_mask = ids[:n_sampled], mask[:n_sampled]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_p": 0.8}

    def huggingface(rows: torch.Tensor, rows_mask: torch.Tensor, **options: Any) -> Any:
        return raw.generate(input_ids=rows, attention_mask=rows_mask.long(), max_new_tokens=new, **options)

    def transformerlens(rows: torch.Tensor, *, reads: bool, **options: Any) -> None:
        kept: list[torch.Tensor] = []

        def read(activations: torch.Tensor, hook: Any) -> None:
            kept.append(activations[:, -1, :3])

        hooks = [(f"blocks.{layer}.mlp.hook_post", read) for layer in layers] if reads else []
        with lm.tl.hooks(fwd_hooks=hooks):
            lm.tl.generate(
                rows, max_new_tokens=new, verbose=False, return_type="tokens", eos_token_id=lm.ends[0], **options
            )
        assert bool(kept) == reads

    def authors() -> None:
        """Read the growing sequence from its start at each step, with all activations in a cache."""
        row = ids
        for _ in range(new):
            with torch.no_grad():
                logits, cache = lm.tl.run_with_cache(row, attention_mask=torch.ones_like(row))
            _ = [cache[f"blocks.{layer}.mlp.hook_post"][:, -1, :3] for layer in layers]
            row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)

    def edited() -> None:
        with xt.Offset(neurons, 0.5).on(lm):
            xt.generate(lm, texts, greedy=True, max_new_tokens=new, progress=False)

    collect = {"max_new_tokens": new, "progress": False}
    greedy: dict[str, Work] = {
        "Hugging Face's `generate`": lambda: huggingface(ids, mask, do_sample=False),
        "`xt.generate`": lambda: xt.generate(lm, texts, greedy=True, **collect),
        "`xt.generate` under an `Offset` of 36 neurons": edited,
        "`xt.collect_activations` of 36 neurons": lambda: xt.collect_activations(lm, texts, neurons, **collect),
        "TransformerLens's `generate`": lambda: transformerlens(ids, reads=False, do_sample=False),
        "TransformerLens's `generate`, reading 36 neurons": lambda: transformerlens(ids, reads=True, do_sample=False),
    }
    samples: dict[str, Work] = {
        "Hugging Face's `generate`": lambda: huggingface(
            few, few_mask, top_k=0, num_return_sequences=SAMPLES, **sampling
        ),
        "`xt.generate`": lambda: xt.generate(lm, texts[:n_sampled], n_samples=SAMPLES, **collect),
        "TransformerLens's `generate`": lambda: transformerlens(
            few.repeat_interleave(SAMPLES, 0), reads=False, **sampling
        ),
    }
    with ExitStack() as stack:
        if given.nnsight:
            nnsight = stack.enter_context(Other("nnsight", given.nnsight, folder))
            ask = {"prompts": ids.tolist(), "n_samples": 1, "greedy": True, "new": new}
            greedy["nnsight's `generate`"] = lambda: nnsight.write(**ask, layers=[])["seconds"]
            greedy["nnsight's `generate`, reading 36 neurons"] = lambda: nnsight.write(**ask, layers=layers)["seconds"]
        if given.vllm:
            vllm = stack.enter_context(Other("vllm", given.vllm, folder))
            once = {"prompts": ids.tolist(), "n_samples": 1, "greedy": True, "new": new}
            many = {"prompts": few.tolist(), "n_samples": SAMPLES, "greedy": False, "new": new}
            greedy["vLLM"] = lambda: vllm.write(**once)["seconds"]
            samples["vLLM"] = lambda: vllm.write(**many)["seconds"]
        found = {"greedy": in_turns(greedy, given.rounds), "samples": in_turns(samples, given.rounds)}
    found["greedy"] |= in_turns({"The authors' way: read the whole text again for each token": authors}, 1)
    return found


def growth(lm: HookedLM, name: str, rounds: int) -> dict[str, dict[int, float]]:
    """Return what each size of each kind takes, in seconds. The two large models do less of each."""
    is_small = name == "mini"
    new, times = (20, 2) if is_small else (6, 1)
    texts = prompts_of(lm, 16 * times)
    quiet: dict[str, Any] = {"progress": False}
    codes = ["en", "es", "fr", "de", "pt", "it", "nl", "sv", "id", "pl", "cs", "ru", "zh", "ja", "ko", "hi"]
    held_out, scorer = xt.mini.held_out(n=1, languages=["en"]), xt.mini.scorer()
    some = xt.mini.prompts(n=2 * times, languages=["en"])

    def collect(n_prompts: int, n_neurons: int) -> Work:
        neurons = spread(lm, n_neurons)
        return lambda: xt.collect_activations(
            lm, texts[:n_prompts], neurons, max_new_tokens=new, batch_size=4 * times, **quiet
        )

    def sample(n_prompts: int, n_samples: int) -> Work:
        return lambda: xt.generate(
            lm, texts[:n_prompts], n_samples=n_samples, max_new_tokens=new, batch_size=20 * times, **quiet
        )

    def edited(n: int) -> Work:
        edit = xt.Offset(spread(lm, n), 0.1)

        def write() -> None:
            with edit.on(lm):
                xt.generate(lm, texts[: 4 * times], greedy=True, max_new_tokens=new, **quiet)

        return write

    def doses(n: int, n_random: int) -> Work:
        offsets = [-0.1 * (i + 1) for i in range(n)]
        options: dict[str, Any] = {"match": "layers", "unit": "activation", "max_new_tokens": new // 2, **quiet}
        return lambda: xt.dose_response(
            lm, spread(lm, 36), offsets, some, scorer=scorer, held_out=held_out, n_random=n_random, **options
        )

    def compared(n: int) -> Work:
        prompts = xt.mini.prompts(n=2 * times, languages=codes[:n])
        options: dict[str, Any] = {"n_samples": 5, "max_new_tokens": new // 2, **quiet}
        return lambda: xt.compare(lm, lm, prompts, neurons=spread(lm, 36), scorer=scorer, **options)

    def retrieved(n: int) -> Work:
        parallel = xt.mini.parallel(n=10 * times, languages=codes[:n])
        return lambda: xt.bilingual_retrieval(lm, parallel, **quiet)

    few, many = (4 * times, 8 * times, 16 * times), (4, 8, 16) if is_small else (2, 4, 8)
    kinds: dict[str, tuple[Callable[[int], Work], Sequence[int]]] = {
        "Prompts: `collect_activations`": (lambda n: collect(n, 36), few),
        "Prompts: `generate`, 5 samples": (lambda n: sample(n, 5), few),
        "Samples of a prompt": (lambda n: sample(1, n), (5, 20, 80)),
        "Neurons: `collect_activations`": (lambda n: collect(4 * times, n), (20, 200, 2000)),
        "Neurons of an `Offset`": (edited, (20, 200, 2000)),
        "Doses": (lambda n: doses(n, 0), many),
        "Random sets of a dose": (lambda n: doses(1, n), many),
        "Languages: `compare`": (compared, many),
        "Languages: retrieval": (retrieved, many),
    }
    return {
        kind: in_turns({n: work_of(n) for n in sizes}, rounds)  # type: ignore[misc]
        for kind, (work_of, sizes) in kinds.items()
    }


def slope(seconds: Mapping[int, float]) -> float:
    """Return the power of the size by which the cost grows: 0 is flat, 1 is linear."""
    (n, first), *_, (m, then) = seconds.items()
    return math.log(then / first) / math.log(m / n)


def in_words(power: float) -> str:
    if power < 0.15:
        return "flat"
    if power < 0.85:
        return "less than linear"
    return "linear" if power < 1.1 else "more than linear"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for line in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(line) + " |")


def show_ratios(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for kind, title in (
        ("greedy", "greedy text"),
        ("samples", f"{SAMPLES} samples of each prompt"),
    ):
        models = [name for name in found if kind in found[name]]
        ways = dict.fromkeys(way for name in models for way in found[name][kind])
        rows = []
        for way in ways:
            cells = []
            for name in models:
                seconds = found[name][kind]
                ratio = seconds.get(way, math.nan) / seconds["Hugging Face's `generate`"]
                cells.append(f"{ratio:.2f}" if math.isfinite(ratio) else "–")
            rows.append([way, *cells])
        show(title, ["Way", *(MODELS[name] for name in models)], rows)


def show_growth(found: Mapping[str, Mapping[str, Mapping[int, float]]]) -> None:
    rows = []
    for kind in next(iter(found.values())):
        sizes = list(next(iter(found.values()))[kind])
        cells, powers = [], []
        for kinds in found.values():
            seconds = kinds[kind]
            first = next(iter(seconds.values()))
            cells.append(" · ".join(f"{each / first:.2f}" for each in seconds.values()))
            powers.append(slope(seconds))
        words = list(dict.fromkeys(in_words(power) for power in powers))
        of_large = list(list(found.values())[-1][kind])
        shown = " · ".join(f"{n:,}" for n in sizes)
        shown += "" if of_large == sizes else f" (large models: {' · '.join(map(str, of_large))})"
        rows.append([kind, shown, *cells, " or ".join(words)])
    show("growth", ["What grows", "Sizes", *(MODELS[name] for name in found), "Growth"], rows)


def processes(given: argparse.Namespace) -> None:
    """Measure how long N processes wait for the same table, in turns."""
    counts = [int(n) for n in given.processes.split(",")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(given.rounds):
        for name in given.model:
            for n in counts:
                command = [*launch, "--num_processes", str(n), "--num_machines", "1", "--mixed_precision", "no",
                           "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
                command += [__file__, "--as-process", "--model", name]
                done = subprocess.run(command, capture_output=True, text=True)
                lines = [line for line in done.stdout.splitlines() if line.startswith("waited ")]
                if not lines:
                    sys.exit(done.stderr[-3000:])
                found.setdefault(name, {}).setdefault(n, []).append(float(lines[0].split()[1]))
    rows = [
        [str(n), *(f"{statistics.median(of[n]) / statistics.median(of[counts[0]]):.2f}" for of in found.values())]
        for n in counts
    ]
    show("processes", ["Processes", *(MODELS[name] for name in found)], rows)


def as_process(name: str) -> None:
    """Write one table with the other processes, and say how long it took."""
    lm = loaded(name)
    texts = prompts_of(lm, 32)
    options: dict[str, Any] = {"n_samples": 5, "max_new_tokens": 20, "batch_size": 20, "progress": False}
    xt.generate(lm, texts[:2], **options)
    began = time.perf_counter()
    xt.generate(lm, texts, **options)
    if os.environ.get("RANK", "0") == "0":
        print(f"waited {time.perf_counter() - began}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="one or more of the models (all)")
    parser.add_argument("--only", choices=["growth", "ratios", "processes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", default="1,2", help="the numbers of processes that are compared (%(default)s)")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--nnsight", metavar="PYTHON", help="the Python of an environment with nnsight")
    parser.add_argument("--as-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.model = given.model or list(MODELS)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if given.as_process:
        as_process(*given.model)
        return
    found_ratios, found_growth = {}, {}
    for name in given.model:
        if given.only in (None, "ratios"):
            with tempfile.TemporaryDirectory() as place:
                lm = loaded(name)
                found_ratios[name] = ratios(lm, name, saved(lm, Path(place) / name), given)
        if given.only in (None, "growth"):
            found_growth[name] = growth(loaded(name), name, given.rounds)
    if found_ratios:
        show_ratios(found_ratios)
    if found_growth:
        show_growth(found_growth)
    if given.only in (None, "processes"):
        processes(given)


if __name__ == "__main__":
    main()
