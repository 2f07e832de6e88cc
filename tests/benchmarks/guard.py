"""Time a guard as a judge: `PYTHONPATH=tests python tests/benchmarks/guard.py [--device cuda] [--texts 2000]`.

Short texts under a random Qwen3 with a guard's chat template, against a bare forward pass of the same batches, sorted
by length and tokenized before. Medians of rounds in which the ways take turns. Nothing is downloaded.
"""

import argparse
import random

import torch
import transformers
from engine import show, timed
from guards import PREFIX, VERDICTS, guard

from xlingtox.scoring import GuardScorer

ROWS = 64


def short_texts(n: int) -> list[str]:
    """Return texts of 1 to 10 words."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioumnrstl", k=chance.randint(2, 7))) for _ in range(500)]
    return [" ".join(chance.choices(words, k=chance.randint(1, 10))) + f" {i}" for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
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
