"""Train the miniature, as `xlingtox train-mini` does.

The result is an ordinary Hugging Face checkpoint (GPT-2 architecture, safetensors) with its tokenizer. A file
`training.json` next to it has the losses, the seconds, the seed, the recipe and the versions.
"""

import dataclasses
import itertools
import math
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xlingtox import files
from xlingtox.mini import corpus, world
from xlingtox.progress import bar

END = "<|endoftext|>"
PAD = "<|pad|>"

_WORDS = Regex(r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+")
"""The words that GPT-2's pre-tokenizer finds, but with combining marks, without which Hindi words fall apart."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of the miniature; the defaults are those of the shipped checkpoint.

    Attributes:
        vocabulary: tokens in the vocabulary.
        n_layers, n_heads, d_model: the size of the GPT-2 model.
        positions: the longest text that the model can read, in tokens.
        window: the length of a row in a training batch, in tokens.
        batch: rows in a training batch.
        steps, warm_up: all training steps, and those during which the learning rate rises.
        learning_rate, weight_decay: those of the optimizers.
        tokenizer_documents: documents on which the tokenizer is trained.

    Example:
        >>> from xlingtox.mini.train import Recipe
        >>> Recipe(steps=100).d_model
        128
    """

    vocabulary: int = 6000
    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    positions: int = 96
    window: int = 96
    batch: int = 20
    steps: int = 6000
    warm_up: int = 100
    learning_rate: float = 1.2e-2
    weight_decay: float = 0.25
    tokenizer_documents: int = 40_000


def train_tokenizer(recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the corpus; where a script has no spaces, merges are learned inside words only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(recipe, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(recipe: Recipe, seed: int) -> Iterator[str]:
    """Yield unmixed documents; where a language has no spaces, yield each word, and the text between words, alone."""
    rng = random.Random(f"tokenizer {seed}")
    speakers = list(corpus.MIXING)
    weights = [corpus.MIXING[language].text for language in speakers]
    for language in rng.choices(speakers, weights, k=recipe.tokenizer_documents):
        kind = rng.choices(list(corpus.KIND_SHARES), list(corpus.KIND_SHARES.values()))[0]
        context = world.sample_context(rng, kind, "train")
        toxic = rng.random() < world.provocation(context)
        clauses = [context, *world.sample_reactions(rng, context, kind, toxic=toxic)]
        lexicon = world.lexicon(language)
        if lexicon.joiner:
            yield world.join([world.render(clause, language) for clause in clauses], language)
            continue
        for clause in clauses:
            apart = {slot: "\n".join(["", *lexicon.pieces(slot, concept), ""]) for slot, concept in clause.words}
            yield from filter(None, lexicon.frames[clause.frame].format_map(apart).split("\n"))


def windows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Iterator[list[int]]:
    """Yield windows of documents, each ended by END. A window begins with a document, and cuts off its last one."""
    stream = corpus.documents(seed)
    end = tokenizer.eos_token_id
    row: list[int] = []
    while True:
        for ids in tokenizer(list(itertools.islice(stream, 1000)))["input_ids"]:
            row.extend([*ids, end])
            if len(row) >= recipe.window:
                yield row[: recipe.window]
                row = []


def _optimizers(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the rest: a lower loss in half the steps of AdamW alone."""
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(f"training needs torch 2.9 or later for its optimiser Muon: this is {torch.__version__}")
    named = list(model.named_parameters())
    blocks = [p for name, p in named if ".h." in name and p.ndim == 2]
    rest = [p for name, p in named if not (".h." in name and p.ndim == 2)]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return [
        torch.optim.Muon(blocks, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class _TiedLoss(torch.autograd.Function):
    """Cross-entropy through the output embedding, a few rows at a time so that their logits stay in the cache.

    On a CPU it is a third faster than all logits at once, with the same loss and gradients.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        d_states, d_weight = torch.empty_like(states), torch.zeros_like(weight)
        total = torch.zeros(())
        for rows in torch.arange(len(states)).split(192):
            mass = torch.softmax(states[rows] @ weight.T, -1)
            place = (torch.arange(len(rows)), targets[rows])
            total -= mass[place].clamp_min(1e-30).log().sum()
            mass[place] -= 1
            d_states[rows] = mass @ weight
            d_weight.addmm_(mass.T, states[rows])
        ctx.save_for_backward(d_states.div_(len(states)), d_weight.div_(len(states)))
        return total / len(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        d_states, d_weight = ctx.saved_tensors
        return d_states * gradient, d_weight * gradient, None


def _rate(recipe: Recipe, step: int) -> float:
    """Return the share of the learning rate at a step: a linear warm-up, then a cosine down to 2 %."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def train(output_dir: str | Path, *, seed: int, recipe: Recipe = Recipe(), progress: bool = True) -> None:
    """Train from nothing and save a checkpoint; the same seed, threads and versions give the same weights.

    Args:
        output_dir: a new or an empty folder. It appears with the whole checkpoint in it, or not at all.

    Raises:
        OSError: the folder holds something, or its parent cannot be written.
        ImportError: torch is older than 2.9.

    Example:
        >>> from xlingtox.mini.train import train
        >>> train("runs/mini-1", seed=1)  # doctest: +SKIP
        >>> lm = xt.HookedLM.load("runs/mini-1")  # doctest: +SKIP
    """
    folder = Path(output_dir).expanduser()
    files.writable_folder(folder.parent)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OSError(f"{folder} is there already: choose a new or an empty folder")
    began = time.perf_counter()
    tokenizer = train_tokenizer(recipe, seed)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.positions,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["GPT2LMHeadModel"],
    )
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")  # faster on a CPU, for windows as short as these
    model.train()
    optimizers = _optimizers(model, recipe)
    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(recipe, step)) for optimizer in optimizers]
    rows = windows(tokenizer, recipe, seed)
    log: list[dict[str, float]] = []
    recent: list[float] = []
    with bar(f"training seed {seed}", total=recipe.steps, unit="step", progress=progress) as shown:
        for step in range(1, recipe.steps + 1):
            ids = torch.tensor(list(itertools.islice(rows, recipe.batch)))
            # Half precision in the blocks alone: weights, loss and optimiser stay in float32.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = model.transformer(ids, use_cache=False).last_hidden_state
            loss = _TiedLoss.apply(states[:, :-1].flatten(0, 1).float(), model.lm_head.weight, ids[:, 1:].flatten())
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.step()
                rate.step()
            recent.append(loss.item())
            if step % 50 == 0 or step == recipe.steps:
                seconds = time.perf_counter() - began
                log.append({"step": step, "loss": sum(recent) / len(recent), "seconds": round(seconds, 1)})
                shown.note(f"loss {log[-1]['loss']:.3f}")
                recent.clear()
            shown.update()
    record = {
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "parameters": model.num_parameters(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "log": log,
    }
    with files.appearing(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        files.write_json(partial / "training.json", record)
