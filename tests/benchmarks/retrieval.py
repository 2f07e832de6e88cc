"""What retrieval costs: `python tests/benchmarks/retrieval.py [--device cuda] [--shape mgpt]`.

Ratios within one run, medians of rounds in which the ways take turns. Random weights; nothing is downloaded.
"""

import argparse
import random
import statistics
import time

import torch
import transformers
from engine import SHAPES, Peak, model_of, show, timed

import xlingtox as xt
from xlingtox import languages
from xlingtox.models.batching import by_length
from xlingtox.models.hooked import HookedLM
from xlingtox.transfer import retrieval

BATCH = 64


def sentences_of(n: int, seed: int) -> list[str]:
    """Words of the miniature's languages, 4 to 24 a sentence."""
    rng = random.Random(seed)
    words = [word for row in xt.mini.parallel(n=100).to_list() for text in row.values() for word in text.split()]
    return [" ".join(rng.sample(words, rng.randint(4, 24))) for _ in range(n)]


def embedding(shape: str, device: str, n: int) -> None:
    model = model_of(shape, device, torch.float32 if device == "cpu" else torch.bfloat16)
    lm = HookedLM.load(model, tokenizer=HookedLM.load("mini").tokenizer)
    texts = sentences_of(n, 0)
    order = by_length([len(ids) for ids in lm.tokenizer(texts)["input_ids"]])

    @torch.no_grad()
    def bare(keep: int) -> None:
        for start in range(0, n, BATCH):
            ids, mask = lm.encode([texts[i] for i in order[start : start + BATCH]])
            model(
                input_ids=ids,
                attention_mask=mask.long(),
                output_hidden_states=True,
                use_cache=False,
                logits_to_keep=keep,
            )

    ways = {
        "forward with hidden states": lambda: bare(0),
        "the same, logits of the last position": lambda: bare(1),
        "retrieval.embed": lambda: retrieval.embed(lm, texts, batch_size=BATCH, progress=False),
    }
    found = timed(ways)
    for base in list(ways)[:2]:
        show(f"{n} sentences, against {base}", found, base)


def miniature() -> None:
    lm = HookedLM.load("mini")
    parallel = xt.mini.parallel(n=200)
    walls, busy = [], []
    for _ in range(3):
        began, worked = time.perf_counter(), time.process_time()
        retrieval.bilingual_retrieval(lm, parallel, progress=False)
        walls.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    print(f"\n200 sentences x 17 languages on the miniature: {statistics.median(walls):.1f} s", end=" ")
    print(f"({statistics.median(busy):.1f} s of processor time)")


def memory(layers: int, n: int) -> None:
    """A narrow model with many layers: what is kept is means of states, never states of tokens."""
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=64, n_head=2, vocab_size=6000, n_positions=128, eos_token_id=0
    )
    lm = HookedLM.load(transformers.GPT2LMHeadModel(config).eval(), tokenizer=HookedLM.load("mini").tokenizer)
    parallel = {code: sentences_of(n, i) for i, code in enumerate(languages.CODES)}
    retrieval.embed(lm, parallel["en"][:BATCH], progress=False)
    with Peak() as peak:
        retrieval.bilingual_retrieval(lm, parallel, progress=False)
    tokens = sum(len(ids) for own in parallel.values() for ids in lm.tokenizer(own)["input_ids"])
    means = 4 * (layers + 1) * 17 * n * lm.d_model
    print(
        f"  {layers:3d} layers, {n:4d} sentences: peak {peak.most / 2**20:6.0f} MiB; means of all languages "
        f"{means / 2**20:6.0f} MiB, states of all tokens {4 * (layers + 1) * tokens * lm.d_model / 2**20:6.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--only", choices=["miniature", "memory", "embedding"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.utils.logging.set_verbosity_error()
    if given.only in (None, "miniature"):
        miniature()
    if given.only in (None, "memory"):
        print("\nmemory of retrieval.bilingual_retrieval, 17 languages")
        for layers, n in ((6, 250), (24, 250), (24, 1000)):
            memory(layers, n)
    if given.only in (None, "embedding"):
        embedding(given.shape, given.device, given.sentences)


if __name__ == "__main__":
    main()
