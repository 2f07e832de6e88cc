"""What baking an offset costs in bfloat16, by family: `PYTHONPATH=tests python tests/benchmarks/rounding.py`.

Mean distance of the logits from those of the hooked model in float32, as a share of the edit's own mean effect, on
small random models. A baked bias is worked out exactly and rounded once; a hooked activation is rounded at each token.
"""

import families
import torch

import xlingtox as xt

NEURONS = xt.NeuronSet.of([(1, 0), (1, 39), (2, 5), (0, 7)])
TEXTS = ["the cat sat on the mat", "la casa es grande", "кот"]


def main() -> None:
    tokenizer = xt.HookedLM.load("mini").tokenizer
    print(f"{'family':20s} hooked   baked")
    for name in families.LAYOUTS:
        families.VOCABULARY = len(tokenizer)
        model = families.build(name)
        whole, half = (xt.HookedLM.load(model, tokenizer=tokenizer, dtype=kind) for kind in (None, torch.bfloat16))
        ids, mask = whole.encode(TEXTS)
        plain = whole.logits(ids, mask)[mask]
        edit = xt.Offset(NEURONS, -1.5)
        try:
            baked = edit.bake(half)
        except ValueError:
            edit = xt.Scale(NEURONS, -1.5)
            baked = edit.bake(half)
        with edit.on(whole):
            truth = whole.logits(ids, mask)[mask]
        with edit.on(half):
            hooked = half.logits(ids, mask)[mask].float()
        effect = (truth - plain).abs().mean()
        gaps = [float((each - truth).abs().mean() / effect) for each in (hooked, baked.logits(ids, mask)[mask].float())]
        print(f"{name:20s} {gaps[0]:.4f}   {gaps[1]:.4f}   {type(edit).__name__}")


if __name__ == "__main__":
    main()
