"""What hooks cost: `python tests/benchmarks/engine.py [--device cuda] [--shape mgpt]`.

Ratios within one run, medians of the rounds, in each of which the ways take turns in another order. Random weights;
nothing is downloaded.
"""

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
import transformers
from torch.nn.functional import cosine_similarity

import xlingtox as xt
from xlingtox.models.backend import HuggingFaceBackend
from xlingtox.models.generation import decode, pick_greedily
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

SHAPES = {
    "mini": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 6000},
    "gpt2-small-6000": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 6000},
    "gpt2-medium-6000": {"n_layer": 24, "n_embd": 1024, "n_head": 16, "vocab_size": 6000},
    "gpt2-small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "mgpt": {"n_layer": 24, "n_embd": 2048, "n_head": 16, "vocab_size": 100_000},
}
ROWS, LENGTH, NEW, ROUNDS = 10, 32, 20, 5


def model_of(shape: str, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_positions=2048, **SHAPES[shape])
    with torch.device(device):
        model = transformers.GPT2LMHeadModel(config).eval().to(dtype)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def timed(ways: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds; every way once unmeasured, then in turns, so that a busy machine is unfair to none.

    The order changes with the turn: what a way leaves behind in caches and memory would always meet the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name, way in order.sample(list(ways.items()), len(ways)):
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def show(title: str, found: dict[str, float], base: str) -> None:
    print(f"\n{title}")
    for name, each in found.items():
        print(f"  {name:42s} {each:9.3f} s   {each / found[base]:6.2f} x")


def prompts_of(lm: HookedLM, rows: int) -> list[str]:
    """Texts of exactly LENGTH tokens of the miniature's tokenizer."""
    generator = torch.Generator().manual_seed(1)
    texts: list[str] = []
    while len(texts) < rows:
        text = lm.decode([torch.randint(300, 5000, (LENGTH * 2,), generator=generator).tolist()])[0]
        ids = lm.tokenizer(text)["input_ids"][:LENGTH]
        text = lm.decode([ids])[0]
        if len(lm.tokenizer(text)["input_ids"]) == LENGTH:
            texts.append(text)
    return texts


class Peak:
    """The most memory in a block beyond what was there before, in bytes."""

    def __enter__(self) -> "Peak":
        self.process, self.going, self.most = psutil.Process(), True, 0
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while self.going:
            self.most = max(self.most, self.process.memory_info().rss - self.before)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.going = False
        self.thread.join()


def activations(lm: HookedLM, model: Any, slow: bool) -> None:
    texts = prompts_of(lm, ROWS)
    ids, mask = lm.encode(texts)
    some = NeuronSet.of([(layer, 7 * i + layer) for layer in range(lm.n_layers) for i in range(36 // lm.n_layers or 1)])
    some = NeuronSet.of(list(some)[:36])
    every = NeuronSet.all(lm)

    def raw() -> None:
        model.generate(input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=NEW)

    def authors() -> None:
        # The way of the authors' code: the growing sequence from the start at every step, all activations cached.
        row = ids
        for _ in range(NEW):
            with torch.no_grad():
                logits, cache = lm.tl.run_with_cache(row, attention_mask=torch.ones_like(row))
            _ = [cache[f"blocks.{layer}.mlp.hook_post"][:, -1, :3].cpu() for layer in range(lm.n_layers)]
            row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)

    def under() -> None:
        with xt.Offset(some, -1.0).on(lm):
            decode(lm, ids, mask, NEW, pick=pick_greedily)

    ways: dict[str, Callable[[], Any]] = {
        "Hugging Face generate": raw,
        "ours, no hooks": lambda: decode(lm, ids, mask, NEW, pick=pick_greedily),
        "collect_activations, 36 neurons": lambda: xt.collect_activations(
            lm, texts, some, max_new_tokens=NEW, progress=False
        ),
        "collect_activations, all neurons": lambda: xt.collect_activations(
            lm, texts, every, max_new_tokens=NEW, progress=False
        ),
        "under an Offset on 36 neurons": under,
    }
    found = timed(ways, 15)
    if slow:
        found |= timed({"the authors' way": authors}, 3)
    show(f"{ROWS} x {LENGTH} tokens, {NEW} new", found, "Hugging Face generate")
    print(f"  Offset against none: {found['under an Offset on 36 neurons'] / found['ours, no hooks']:.2f} x")


def edits(lm: HookedLM) -> None:
    ids, mask = lm.encode(prompts_of(lm, ROWS))
    edit = xt.Offset(NeuronSet.of([(layer, 7 * i) for layer in range(lm.n_layers) for i in range(3)]), -1.0)
    baked = edit.bake(lm)

    def hooked() -> None:
        with edit.on(lm):
            decode(lm, ids, mask, NEW, pick=pick_greedily)

    ways: dict[str, Callable[[], Any]] = {
        "unedited": lambda: decode(lm, ids, mask, NEW, pick=pick_greedily),
        "baked": lambda: decode(baked, ids, mask, NEW, pick=pick_greedily),
        "hooked": hooked,
    }
    show(f"an Offset on {3 * lm.n_layers} neurons", timed(ways, 15), "unedited")


def samples(lm: HookedLM, model: Any) -> None:
    texts = prompts_of(lm, 4)
    ids, mask = lm.encode(texts)

    def raw() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=True,
            temperature=0.9,
            top_p=0.8,
            top_k=0,
            num_return_sequences=25,
            max_new_tokens=NEW,
        )

    ways = {
        "Hugging Face": raw,
        "ours": lambda: xt.generate(lm, texts, n_samples=25, max_new_tokens=NEW, progress=False),
    }
    show("4 prompts x 25 samples", timed(ways, 3), "ours")


def ranking(lm: HookedLM) -> None:
    direction = torch.randn(lm.d_model)
    probe = xt.Probe(direction, bias=0.0, accuracy=1.0, auc=1.0, baseline=0.5, n_train=2, n_held_out=2)
    stacked = torch.stack([lm.value_vectors(layer).float() for layer in range(lm.n_layers)])
    held = direction.to(lm.device)
    ways: dict[str, Callable[[], Any]] = {
        "one cosine_similarity, stacked": lambda: cosine_similarity(stacked, held, dim=-1).flatten().topk(100),
        "localize.by_cosine": lambda: xt.localize.by_cosine(lm, probe, k=100),
    }
    show(f"ranking {lm.n_layers} x {lm.d_mlp} value vectors of {lm.d_model}", timed(ways), next(iter(ways)))
    del stacked
    if lm.device.type == "cpu":
        with Peak() as peak:
            xt.localize.by_cosine(lm, probe, k=100)
        print(f"  extra memory: {peak.most / (4 * lm.d_mlp * lm.d_model):.2f} layers")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["activations", "edits", "samples", "ranking"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.set_verbosity_error()
    dtype = torch.float32 if given.device == "cpu" else torch.bfloat16
    model = model_of(given.shape, given.device, dtype)
    lm = HookedLM.load(model, tokenizer=xt.HookedLM.load("mini").tokenizer)
    assert isinstance(lm._backend(), HuggingFaceBackend)
    parts: dict[str, Callable[[], None]] = {
        "activations": lambda: activations(lm, model, slow=given.shape == "gpt2-small"),
        "edits": lambda: edits(lm),
        "samples": lambda: samples(lm, model),
        "ranking": lambda: ranking(lm),
    }
    for name, part in parts.items():
        if given.only in (None, name):
            part()


if __name__ == "__main__":
    main()
