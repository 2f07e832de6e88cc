"""Measure the side effects of an offset on the sources: `python tests/benchmarks/side_effects.py [model [dose]]`.

The miniature has local tasks, held-out text and prompts. SmolLM2 has the same texts, which are simple English, Spanish
and German.
"""

import sys
import tempfile
import time
from pathlib import Path

import datasets

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness_tasks

import xlingtox as xt


def main(name: str = "mini", dose: float = -1.0) -> None:
    lm = xt.HookedLM.load(name)
    codes = list(harness_tasks.CODES)
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=400), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=100)
    toxic = xt.mini.prompts(n=10, languages=codes)
    activations = xt.collect_activations(lm, toxic, candidates, max_new_tokens=8, progress=False)
    sources = candidates.where(activations.mean(language="en") > 0)
    edit = xt.Offset(sources, dose)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = f"{folder}/cache"
        files = harness_tasks.write(Path(folder))
        began = time.process_time()
        effects = xt.side_effects(
            lm,
            (lm, edit),
            tasks=files[:2],
            held_out=xt.mini.held_out(n=40, languages=codes),
            prompts=xt.mini.prompts(n=20, kind="neutral", languages=codes),
            n_samples=5,
            progress=False,
        )
    print(f"{name}: {len(sources)} sources, dose {dose}, {time.process_time() - began:.0f} s of processor time")
    print(effects)
    print(effects.to_frame().round(3).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:3]))
