"""What bfloat16 changes on a CPU: `python tests/benchmarks/dtypes.py [--source smollm2] [--only speed]`.

Compares a model in float32 with the same model in bfloat16: the share of equal greedy texts, the activations on the
same tokens, the toxicity and the fluency of samples with their intervals, and the time. The time stands next to Hugging
Face's of the same type, as the median of ratios within rounds, in which the ways take turns.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import xlingtox as xt
from xlingtox.measures import TOXICITY

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CODES = ["en", "es", "fr", "de"]
NEW = 20
CLOCK = time.perf_counter


def seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return how long each way takes in each round. Each runs once before, and the order changes with the round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name, way in order.sample(list(ways.items()), len(ways)):
            began = CLOCK()
            way()
            if turn:
                taken[name].append(CLOCK() - began)
    return taken


def ways_of(lm: Any, texts: list[str], neurons: Any) -> dict[str, Callable[[], Any]]:
    """Our ways and Hugging Face's, for samples and for activations."""
    plain = lm.unwrapped()
    plain.generation_config.pad_token_id = lm.tokenizer.pad_token_id
    ids, mask = (tensor[:4] for tensor in lm.encode(texts))
    many, many_mask = lm.encode(texts)
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 0, "num_return_sequences": 25}
    # No row may end early: both ways shall do the same work.
    sizes = {"max_new_tokens": NEW, "min_new_tokens": NEW}

    def raw_collection() -> None:
        kept: list[torch.Tensor] = []
        downs = dict(plain.named_modules())
        handles = [
            downs[lm.down_projections()[layer]].register_forward_pre_hook(
                lambda _, given, indices=indices: kept.append(given[0][:, -1, indices])
            )
            for layer, (indices, _) in neurons.by_layer().items()
        ]
        plain.generate(input_ids=many, attention_mask=many_mask.long(), do_sample=False, **sizes)
        for handle in handles:
            handle.remove()

    return {
        "samples, Hugging Face": lambda: plain.generate(
            input_ids=ids, attention_mask=mask.long(), **sampling, max_new_tokens=NEW
        ),
        "samples, ours": lambda: xt.generate(lm, texts[:4], n_samples=25, max_new_tokens=NEW, progress=False),
        "activations, Hugging Face": raw_collection,
        "activations, ours": lambda: xt.collect_activations(
            lm, texts, neurons, max_new_tokens=NEW, stop_at_end=False, progress=False
        ),
        "reading": lambda: lm.logits(many, many_mask),
    }


def speed(models: dict[str, Any], texts: list[str], neurons: Any, rounds: int) -> None:
    ways = {f"{name}: {way}": run for name, lm in models.items() for way, run in ways_of(lm, texts, neurons).items()}
    taken = seconds(ways, rounds)
    for name, rows in taken.items():
        print(f"  {name:40s} {statistics.median(rows):7.2f} s")

    def ratio(first: str, then: str) -> str:
        ratios = [a / b for a, b in zip(taken[first], taken[then], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    for name in models:
        samples = ratio(f"{name}: samples, Hugging Face", f"{name}: samples, ours")
        collecting = ratio(f"{name}: activations, ours", f"{name}: activations, Hugging Face")
        print(f"  {name}, samples: Hugging Face takes {samples} of our time")
        print(f"  {name}, activations: we take {collecting} of Hugging Face's time")
    for way in ("samples, ours", "activations, ours", "reading"):
        print(f"  {way}: bfloat16 takes {ratio(f'bfloat16: {way}', f'float32: {way}')} of float32's time")


def changes(source: str, models: dict[str, Any], prompts: Any, neurons: Any, n_samples: int) -> None:
    exact, rough = models["float32"], models["bfloat16"]
    greedy = [xt.generate(lm, prompts, greedy=True, max_new_tokens=NEW, progress=False).texts for lm in (exact, rough)]
    equal = [first == then for first, then in zip(*greedy, strict=True)]
    print(f"  greedy texts that are equal: {np.mean(equal):.1%} of {len(equal)}")
    read = [
        xt.collect_activations(lm, prompts, neurons, max_new_tokens=NEW, writer=exact, progress=False).mean()
        for lm in (exact, rough)
    ]
    first, then = (means.double().numpy() for means in read)
    error = np.linalg.norm(then - first) / np.linalg.norm(first)
    print(
        f"  mean activations of {len(neurons)} neurons on the same tokens: r {np.corrcoef(first, then)[0, 1]:.6f}, "
        f"relative error {error:.2%}, other sign {np.mean((first > 0) != (then > 0)):.1%}"
    )
    scorer: Any = xt.mini.scorer()
    if source != "mini":
        probe = xt.Probe.fit(exact, xt.mini.labelled("en", n=400), progress=False)
        scorer = xt.scoring.ProbeScorer(exact, probe, languages=CODES, progress=False)
        print(f"  judge: a probe with AUC {probe.auc:.3f}")
    comparison = xt.compare(
        exact,
        rough,
        prompts,
        neurons=neurons,
        scorer=scorer,
        n_samples=n_samples,
        held_out=xt.mini.held_out(n=10, languages=CODES),
        progress=False,
    )
    for name in (*TOXICITY, "mean_activation", "continuation_perplexity", "degenerate"):
        change = comparison.mean_changes[name]
        level = np.mean([getattr(measures, name) for measures in comparison.before.values()])
        print(f"  {name:24s} {level:8.4f}, change {change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})")
    held = [
        np.mean([measures.perplexity for measures in side.values()]) for side in (comparison.before, comparison.after)
    ]
    print(f"  held-out perplexity      {held[0]:8.4f}, change {held[1] - held[0]:+.4f}")
    for name, change in comparison.activity.changes["all"].items():
        ends = f"({change.low:+.5f} to {change.high:+.5f})"
        print(f"  same text, {name:13s} {change.before:8.4f}, change {change.after - change.before:+.5f} {ends}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=10, help="prompts in each language")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--new", type=int, default=20, help="new tokens")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine, with --threads 1")
    parser.add_argument("--only", choices=["speed", "changes"])
    given = parser.parse_args()
    global NEW, CLOCK
    NEW, CLOCK = given.new, time.process_time if given.processor_time else time.perf_counter
    torch.set_num_threads(given.threads)
    models = {name: xt.HookedLM.load(given.source, dtype=dtype) for name, dtype in TYPES.items()}
    for name, lm in models.items():
        print(f"{name}: {lm.weight_bytes / 2**20:.0f} MiB of weights")
    prompts = xt.mini.prompts(n=given.prompts, languages=CODES)
    probe = xt.Probe.fit(models["float32"], xt.mini.labelled("en", n=200), progress=False)
    neurons = xt.localize.by_cosine(models["float32"], probe, k=60)
    if given.only != "changes":
        speed(models, list(prompts["prompt"])[: 2 * given.prompts], neurons, given.rounds)
    if given.only != "speed":
        changes(given.source, models, prompts, neurons, given.samples)


if __name__ == "__main__":
    main()
