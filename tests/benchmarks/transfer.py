"""How well each predictor foretells the drops of finished studies: `python tests/benchmarks/transfer.py DIR [DIR ...]`.

Each DIR is a folder that `python -m xlingtox demo` filled; a miniature of one's own is named as in `DIR:FOLDER`.
Prints a Markdown table.
"""

import argparse
from pathlib import Path

import pandas as pd

import xlingtox as xt
from xlingtox.cli import materials
from xlingtox.models.hooked import HookedLM
from xlingtox.transfer.prediction import Transfer

COLUMNS = {
    "study": "study",
    "predictor": "predictor",
    "r": "Pearson's r (95 %)",
    "p": "p",
    "rho": "Spearman's ρ",
    "rho_p": "p",
    "error": "error",
    "guess": "guess",
    "coverage": "held",
}


def transfers(folder: Path, model: str) -> dict[str, Transfer]:
    results = xt.StudyResults.load(folder / "results.json")
    lm, data = HookedLM.load(model), materials(results.seed or 0)
    if results.model is None or lm.fingerprint() != results.model.fingerprint:
        raise SystemExit(f"{folder} is a study of another model than {model}")
    written = xt.generate(lm, data.toxic_prompts, n_samples=4, seed=results.seed or 0, progress=False)
    texts: dict[str, list[str]] = {}
    for code, text in zip(written.row_languages, written.texts, strict=True):
        texts.setdefault(code, []).append(text)
    activations = xt.collect_activations(lm, data.toxic_prompts, results.candidates, progress=False)
    retrieved = xt.transfer.bilingual_retrieval(lm, data.parallel, progress=False)
    spoken = {code: data.parallel[code] for code in retrieved.scores}
    others = {
        "csls_top1": retrieved.mean("csls_top1"),
        "mean_reciprocal_rank": retrieved.mean("mean_reciprocal_rank"),
        "tokens_per_character": xt.transfer.tokens_per_character(lm, spoken),
        "active_share": xt.transfer.active_share(activations),
        "promoted_share": xt.transfer.promoted_share(lm, results.sources, texts),
    }
    return {
        measure: xt.transfer.predict_from_retrieval(retrieved, results.comparison, measure=measure, predictors=others)
        for measure in ("emt", "average_toxicity")
    }


def small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("studies", nargs="+", metavar="DIR[:MODEL]")
    rows: dict[str, list[dict[str, str]]] = {"emt": [], "average_toxicity": []}
    for each in parser.parse_args().studies:
        folder, _, model = each.partition(":")
        for measure, found in transfers(Path(folder), model or "mini").items():
            for row in found.to_frame().to_dict("records"):
                rows[measure].append(
                    {
                        "study": Path(folder).name,
                        "predictor": row["predictor"],
                        "r": f"{row['pearson_r']:.2f} ({row['pearson_low']:.2f} to {row['pearson_high']:.2f})",
                        "p": small(row["pearson_p_value"]),
                        "rho": f"{row['spearman_rho']:.2f}",
                        "rho_p": small(row["spearman_p_value"]),
                        "error": f"{row['error']:.3f}",
                        "guess": f"{row['guess']:.3f}",
                        "coverage": f"{row['coverage']:.0%}",
                    }
                )
    for measure, own in rows.items():
        print(f"\n{measure}\n")
        print("| " + " | ".join(COLUMNS.values()) + " |")
        print("|" + "---|" * len(COLUMNS))
        for row in pd.DataFrame(own).itertuples(index=False):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
