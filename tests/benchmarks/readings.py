"""What a study reads and writes more than once: `python tests/benchmarks/readings.py [--out FOLDER] [--samples 25]`.

Studies the miniature in small, and counts the tokens of all forward passes by stage and by the function that asked for
them. A token counts as read again if the same model, under the same edit, has read it before after the same tokens.
Below that, it counts the texts that were cut into tokens, and how many of them had been cut before.
"""

import argparse
import collections
import dataclasses
import hashlib
import sys
import tempfile
import time
from pathlib import Path

import torch

import xlingtox as xt
from xlingtox import study, tuning
from xlingtox.models import text_encoding
from xlingtox.models import tokenizer as tokenizers
from xlingtox.models.forward import ForwardPasses
from xlingtox.study.models import ModelSource

CODES = ["en", "es", "fr", "ru"]
WORK = (
    "generate",
    "collect_together",
    "conditional_perplexity",
    "held_out_losses",
    "ending_probability",
    "mean_states",
)
"""The functions that let a model write or read."""

ASKED_BY = ("activations_of_layers", "collect_activations", "measure_before", "measure_after", "judge_after")
ASKED_BY += ("propose_doses", "_written", "response", "_promoted", "_greedy", "tried")
"""The functions that ask for it."""


class Counts:
    """How many there are in all, and how many were there before, by stage and function."""

    def __init__(self) -> None:
        self.all: collections.Counter[tuple[str, str]] = collections.Counter()
        self.again: collections.Counter[tuple[str, str]] = collections.Counter()
        self.known: set[bytes] = set()

    def add(self, where: tuple[str, str], key: bytes) -> None:
        self.all[where] += 1
        self.again[where] += key in self.known
        self.known.add(key)

    def show(self, title: str) -> None:
        print(f"\n{title:>62}    again")
        for (stage, where), count in self.all.items():
            print(f"{stage:<10} {where:<43} {count:>8} {self.again[stage, where]:>8}")
        print(f"{'all':<54} {self.all.total():>8} {self.again.total():>8}")


class Watch:
    """Counts the tokens that models read, and the texts that are cut into tokens."""

    def __init__(self) -> None:
        self.tokens, self.texts, self.stage = Counts(), Counts(), "check"

    def install(self) -> None:
        watch, logits, extend, ids_of = self, ForwardPasses.logits, ForwardPasses.extend, tokenizers.token_ids
        repeated, selected = ForwardPasses.repeated, ForwardPasses.selected

        def counted_logits(lm, input_ids, attention_mask, **options):
            watch.read(lm, input_ids, attention_mask, [b""] * len(input_ids))
            return logits(lm, input_ids, attention_mask, **options)

        def counted_extend(lm, input_ids, attention_mask, **options):
            cache = options.get("cache")
            before = [b""] * len(input_ids) if cache is None else cache.digests
            digests = watch.read(lm, input_ids, attention_mask[:, -input_ids.shape[1] :], before)
            result, cache = extend(lm, input_ids, attention_mask, **options)
            cache.digests = digests
            return result, cache

        def noted_repeated(lm, cache, times):
            copied = repeated(lm, cache, times)
            copied.digests = [digest for digest in cache.digests for _ in range(times)]
            return copied

        def noted_selected(lm, cache, rows):
            chosen = selected(lm, cache, rows)
            chosen.digests = [cache.digests[row] for row in rows.tolist()]
            return chosen

        def counted_ids(tokenizer, texts):
            for text in texts:
                watch.texts.add(watch.where(), text.encode("utf-8", "replace"))
            return ids_of(tokenizer, texts)

        ForwardPasses.logits, ForwardPasses.extend = counted_logits, counted_extend
        ForwardPasses.repeated, ForwardPasses.selected = noted_repeated, noted_selected
        text_encoding.token_ids = counted_ids

    def read(self, lm, input_ids, attention_mask, before):
        if not hasattr(lm, "_last_fingerprint"):
            return before  # the model is being made
        where, model = self.where(), f"{lm.fingerprint()} {lm.edits_by_digest()}".encode()
        digests = []
        for digest, ids, keep in zip(before, input_ids.tolist(), attention_mask.bool().tolist(), strict=True):
            digest = digest or model
            for token, kept in zip(ids, keep, strict=True):
                if kept:
                    digest = hashlib.sha256(digest + str(token).encode()).digest()
                    self.tokens.add(where, digest)
            digests.append(digest)
        return digests

    def where(self) -> tuple[str, str]:
        frame, names = sys._getframe(1), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        work, asked_by = (next((name for name in names if name in known), "other") for known in (WORK, ASKED_BY))
        return self.stage, f"{work} < {asked_by}"


def materials(n: int) -> study.Materials:
    """The miniature's sentences, a few of each."""
    return study.Materials(
        labelled=xt.mini.labelled("en", n=80),
        toxic_prompts=xt.mini.prompts(n=n, languages=CODES),
        neutral_prompts=xt.mini.prompts(n=n, kind="neutral", languages=CODES),
        pairs=xt.mini.pairs("en", n=40),
        parallel=xt.mini.parallel(n=20, languages=CODES),
        held_out=xt.mini.held_out(n=n, languages=CODES),
        scorer=xt.mini.scorer(),
        word_groups=xt.mini.word_groups(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keeps the study here")
    parser.add_argument("--prompts", type=int, default=6, help="prompts in each language")
    parser.add_argument("--samples", type=int, default=5, help="samples of each prompt in the comparison")
    parser.add_argument("--source", default="mini")
    given = parser.parse_args()
    torch.set_num_threads(1)
    watch = Watch()
    watch.install()
    for name, stage in list(study.running.WORK.items()):

        def watched(progress, name=name, stage=stage):
            watch.stage = name
            return stage(progress)

        study.running.WORK[name] = watched
    recipe = dataclasses.replace(tuning.MINI, steps=4)
    settings = study.Settings(
        k=40, n_doses=3, n_random=2, n_random_amplified=1, dose_prompts=4, n_samples=given.samples, recipe=recipe
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder, source = given.out or Path(temporary) / "study", ModelSource(given.source)
        began = time.perf_counter()
        study.run(source, materials(given.prompts), output_dir=folder, settings=settings, progress=False)
        print(f"{time.perf_counter() - began:.1f} s, while counting")
    watch.tokens.show("tokens read")
    watch.texts.show("texts cut into tokens")


if __name__ == "__main__":
    main()
