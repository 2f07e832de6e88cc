"""Peak memory of a whole study against that of its largest single stage: `python tests/benchmarks/study_memory.py`.

A model that weighs far more than the libraries is studied twice: each stage in a process of its own, one after the
other in one folder, and all stages in one process. Prints the peak of each process, and exits with 1 if the whole study
needs more than 1.15 times what the largest stage needs. `--source` names another model, such as smollm2.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

import xlingtox as xt
from xlingtox import study, tuning
from xlingtox.study.models import ModelSource
from xlingtox.study.settings import STAGES

MOST = 1.15
CODES = ["en", "es", "fr"]


def random_llama(folder: Path) -> None:
    """Write a random Llama of about 190 million parameters, with the miniature's tokenizer."""
    tokenizer = xt.HookedLM.load("mini").tokenizer
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def materials(n: int) -> study.Materials:
    """The miniature's sentences, a few of each."""
    return study.Materials(
        labelled=xt.mini.labelled("en", n=60),
        toxic_prompts=xt.mini.prompts(n=n, languages=CODES),
        neutral_prompts=xt.mini.prompts(n=n, kind="neutral", languages=CODES),
        pairs=xt.mini.pairs("en", n=12),
        parallel=xt.mini.parallel(n=20, languages=CODES),
        held_out=xt.mini.held_out(n=n, languages=CODES),
        scorer=xt.mini.scorer(),
    )


def one(source: str, folder: Path, stages: list[str]) -> None:
    """Do some stages in this process, and print its peak memory in MiB."""
    recipe = tuning.Recipe(steps=2, batch_size=2, learning_rate=1e-5, warm_up=0)
    settings = study.Settings(
        k=20,
        stages=tuple(stages),
        offsets=(0.0, -1.0),
        amplifications=(0.0, 1.0),
        n_random=1,
        n_random_amplified=1,
        dose_samples=None,
        n_samples=2,
        max_new_tokens=6,
        recipe=dataclasses.replace(recipe, save_every=1),
    )
    study.run(ModelSource(source), materials(2), output_dir=folder, settings=settings, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def peak(source: str, folder: Path, stages: list[str]) -> int:
    """Return the peak memory in MiB of a process that does these stages."""
    command = [sys.executable, __file__, "--source", source, "--folder", str(folder), "--stages", ",".join(stages)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="a model (a random Llama)")
    parser.add_argument("--folder", type=Path, help="used by the processes that this one starts")
    parser.add_argument("--stages", help="used by the processes that this one starts")
    options = parser.parse_args()
    if options.folder:
        one(options.source, options.folder, options.stages.split(","))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = options.source
        if source is None:
            source = str(work / "llama")
            random_llama(work / "llama")
        peaks = {}
        for stage in STAGES:
            peaks[stage] = peak(source, work / "apart", [stage])
            print(f"{stage:<10}{peaks[stage]:>7} MiB", flush=True)
        whole = peak(source, work / "together", list(STAGES))
        ratio = whole / max(peaks.values())
        print(f"{'whole':<10}{whole:>7} MiB, {ratio:.2f} x the largest stage")
    sys.exit(ratio > MOST)


if __name__ == "__main__":
    main()
