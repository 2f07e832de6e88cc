"""Tiny random models of three families, built in memory; nothing is downloaded.

The whole suite runs in a few processes, each with one thread. A part of it runs in one process.
"""

import copy
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import trl
from families import build, randomised
from huggingface_hub import constants
from hypothesis import HealthCheck, settings
from playwright import sync_api as playwright_api
from playwright.sync_api import sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xlingtox.models.hooked import HookedLM
from xlingtox.study import picture

# The models of these tests, and of the processes that they start, are too small for more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
constants.HF_HUB_OFFLINE = True
collect_ignore_glob = ["benchmarks/*"]
# On a busy machine an example may take any time.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
transformers.utils.logging.disable_progress_bar()

CORPUS = [
    "the cat sat on the mat and the dog ran away from the house",
    "la casa es grande y el gato duerme en la cama",
    "das ist ein hund und eine katze im haus",
    "кот сидит на коврике у двери",
]
D_MODEL, N_LAYERS, N_POSITIONS = 32, 2, 64


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `-n auto` means, which is given in pyproject.toml; 0 is none but this one."""
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(os.cpu_count() or 1, 4) if is_whole else 0


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all that was imported, each time that a test collects.

    A tuning run collects three times. Over a million objects of torch and transformers, that took most of its time.
    """
    # Importing it late would leave its objects to be looked through.
    assert trl.DPOTrainer
    gc.collect()
    gc.freeze()


class Family(NamedTuple):
    """A Hugging Face model as it was given, and the same under our hooks."""

    name: str
    model: Any
    lm: HookedLM


@pytest.fixture(scope="session", autouse=True)
def file_of_log_probs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of the reference's log-probabilities that no other run of the tests knows."""
    file = tmp_path_factory.mktemp("reference") / "reference.sqlite"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xlingtox.tuning.reference.default_path", lambda: file)
        yield file


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens; end-of-sequence is 0, padding 1."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")


def tiny(name: str) -> Any:
    """A random model: GPT-2 with d_mlp 48 (not 4 * 32), BLOOM, Llama with grouped-query attention."""
    ids = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if name == "gpt2":
        config = transformers.GPT2Config(
            n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, n_inner=48, n_positions=N_POSITIONS, **ids
        )
        return randomised(transformers.GPT2LMHeadModel(config))
    if name == "bloom":
        return randomised(
            transformers.BloomForCausalLM(
                transformers.BloomConfig(
                    hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=2, tie_word_embeddings=False, **ids
                )
            )
        )
    config = transformers.LlamaConfig(
        hidden_size=D_MODEL,
        intermediate_size=56,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=N_POSITIONS,
        **ids,
    )
    return randomised(transformers.LlamaForCausalLM(config))


@pytest.fixture(scope="session", params=["gpt2", "bloom", "llama"])
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> Family:
    model = tiny(request.param)
    return Family(request.param, model, HookedLM.load(model, tokenizer=tokenizer))


@pytest.fixture(scope="session")
def model() -> Any:
    """A raw GPT-2."""
    return tiny("gpt2")


@pytest.fixture(scope="session")
def lm(model: Any, tokenizer: PreTrainedTokenizerFast) -> HookedLM:
    """The same GPT-2 under our hooks."""
    return HookedLM.load(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pair(tokenizer: PreTrainedTokenizerFast) -> list[tuple[Any, HookedLM]]:
    """Two models of one shape: raw and hooked each."""
    models = [tiny("gpt2"), randomised(tiny("gpt2"), seed=1)]
    return [(model, HookedLM.load(model, tokenizer=tokenizer)) for model in models]


@pytest.fixture(scope="session")
def ending(model: Any, tokenizer: PreTrainedTokenizerFast):
    """`ending(token_id)`: the GPT-2 with another token as its end of sequence, so that some rows end early.

    With `special=False` the tokenizer only calls it so, as after `tokenizer.eos_token = ...`, and decodes it as text.
    """

    def load(token_id: int, special: bool = True) -> HookedLM:
        other = copy.deepcopy(tokenizer)
        token = other.convert_ids_to_tokens(token_id)
        if special:
            other.add_special_tokens({"eos_token": token})
        else:
            other.eos_token = token
        assert other.eos_token_id == token_id
        return HookedLM.load(model, tokenizer=other)

    return load


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> tuple[Any, Path]:
    """A random Llama and its checkpoint."""
    model = build("llama")
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The machine's Chromium, else the one that Playwright brought; without either, the tests that ask are skipped."""
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=picture.browser(), args=["--no-sandbox"], timeout=600_000
            )
        except playwright_api.Error as error:
            pytest.skip(f"no browser: {str(error).strip().splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def two_word_model():
    """`two_word_model(logits)`: a GPT-2 whose next-token logits after `w0` and `w1` are the two given rows.

    Its blocks add nothing, so that the final norm turns the two embeddings into two orthogonal directions.
    """

    def build(logits: torch.Tensor) -> tuple[Any, HookedLM]:
        size = logits.shape[1]
        words = {f"w{i}": i for i in range(size - 2)} | {"<eos>": size - 2, "<pad>": size - 1}
        level = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        config = transformers.GPT2Config(
            vocab_size=size, n_embd=4, n_layer=1, n_head=1, n_positions=8, tie_word_embeddings=False
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            model.transformer.ln_f.weight.fill_(1.0)
            model.transformer.wte.weight[0] = torch.tensor([1.0, -1.0, 0.0, 0.0])
            model.transformer.wte.weight[1] = torch.tensor([0.0, 0.0, 1.0, -1.0])
            model.lm_head.weight[:, 0] = logits[0] / 2**0.5
            model.lm_head.weight[:, 2] = logits[1] / 2**0.5
            model.lm_head.weight[-2:, 1] = model.lm_head.weight[-2:, 3] = 100.0  # never <eos> nor <pad>
        fast = PreTrainedTokenizerFast(tokenizer_object=level, eos_token="<eos>", pad_token="<pad>")
        return model, HookedLM.load(model, tokenizer=fast)

    return build
