"""The dtype in which a model is computed on a CPU if none was asked for."""

import gc

import families
import pytest
import raw
import torch
import transformers
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from xlingtox.edits.interventions import Scale
from xlingtox.evaluation.fluency import conditional_perplexity
from xlingtox.models import precision, vectors
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.toxic_tokens import promoted_counts

TEXTS = ["the cat sat on the mat", "la casa"]


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def short(request, tokenizer, tmp_path, monkeypatch):
    """A checkpoint of 16 bits, on a processor that multiplies neither kind, and its dtype."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    families.build("llama").to(request.param).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    return tmp_path / "short", request.param


def test_16_bits_that_are_slow_are_computed_in_32(short, tokenizer, caplog):
    folder, dtype = short
    named = str(dtype).removeprefix("torch.")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for load in (
        lambda **how: HookedLM.load(folder, device="cpu", **how),
        lambda **how: HookedLM.load(model, tokenizer=tokenizer, **how),
    ):
        caplog.clear()
        lm = load()
        assert (lm.dtype, lm.stored_dtype, lm.identity().dtype) == (torch.float32, dtype, "float32")
        assert f"is stored in {named}" in caplog.text
        assert f"dtype=torch.{named} keeps it" in caplog.text
        ids, mask = lm.encode(TEXTS)
        # Rotary frequencies, too, are those of a model that was read in 32 bits.
        assert_close(lm.logits(ids, mask)[mask], raw.forward(plain, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
        caplog.clear()
        obeyed = load(dtype=dtype)
        assert obeyed.dtype == obeyed.stored_dtype == dtype
        assert "is stored in" not in caplog.text


def test_bfloat16_stays_where_the_processor_multiplies_it(short, monkeypatch, caplog):
    folder, dtype = short
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert HookedLM.load(folder, device="cpu").dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    assert ("is stored in" in caplog.text) == (dtype == torch.float16)


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_device_computes_what_is_stored(device, dtype, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert precision.computed_in(dtype, device, "model") == dtype


@pytest.mark.parametrize(
    ("known", "multiplies"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_tile": True, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_the_processor_is_asked(known, multiplies, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(precision.sys, "platform", "linux")
    assert precision.multiplies_bfloat16.__wrapped__() == multiplies
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision.multiplies_bfloat16.__wrapped__()


def test_what_is_baked_keeps_the_numbers_that_were_computed(short, tmp_path):
    """Written in 16 bits, an edit would be rounded."""
    lm = HookedLM.load(short[0], device="cpu")
    edit = Scale(NeuronSet.of([(1, 3)]), 0.3)
    ids, mask = lm.encode(TEXTS)
    with edit.on(lm):
        hooked = lm.logits(ids, mask)
    baked = edit.bake(lm, output_dir=tmp_path / "baked")
    assert baked.dtype == baked.stored_dtype == torch.float32
    assert_close(baked.logits(ids, mask)[mask], hooked[mask], atol=1e-5, rtol=1e-5)


class Conversions(TorchDispatchMode):
    """Remembers the shapes of what is converted to 32 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        dtypes = [getattr(value, "dtype", None) for value in (given, result)]
        if isinstance(given, torch.Tensor) and dtypes == [torch.bfloat16, torch.float32]:
            self.shapes.append(tuple(given.shape))
        return result


def test_no_unembedding_in_32_bits_stands_beside_one_in_16(tokenizer, monkeypatch):
    """Tokens are looked up part by part, and the tokens are those of the whole."""
    lm = HookedLM.load(families.build("llama"), tokenizer=tokenizer, dtype=torch.bfloat16)
    neurons = NeuronSet.of([(0, 3), (1, 7), (1, 8)])
    whole = neurons.vectors(lm).float() @ lm.unembedding().float().T
    monkeypatch.setattr(vectors, "_CONVERTED", 10 * lm.d_model)
    with Conversions() as seen:
        top = neurons.promoted_tokens(lm, k=3)
        counts = promoted_counts(lm, neurons.vectors(lm), torch.ones(1, len(lm.unembedding()), dtype=torch.bool))
    assert (10, lm.d_model) in seen.shapes
    assert max(shape[0] for shape in seen.shapes) == 10
    assert top["token_id"].tolist() == whole.topk(3).indices.flatten().tolist()
    assert top["logit"].tolist() == pytest.approx(whole.topk(3).values.flatten().tolist())
    assert counts.tolist() == [[10]] * 3


def in_32_bits() -> int:
    """The bytes of all tensors of 32 bits that are alive."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({t.data_ptr(): t.nbytes for t in tensors if t.dtype == torch.float32}.values())


@pytest.mark.parametrize("family", ["llama"])
def test_nothing_in_32_bits_stays_beside_a_model_in_16(family, tokenizer):
    model = families.build(family).to(torch.bfloat16)
    before = in_32_bits()
    lm = HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16)
    neurons = NeuronSet.of([(0, 3), (1, 7)])
    with Scale(neurons, 0.5).on(lm):
        written = generate(lm, TEXTS, n_samples=2, max_new_tokens=3, progress=False)
    conditional_perplexity(lm, written, progress=False)
    collect_activations(lm, TEXTS, neurons, max_new_tokens=3, progress=False)
    neurons.promoted_tokens(lm, k=3)
    baked = Scale(neurons, 0.5).bake(lm)
    assert baked.dtype == torch.bfloat16
    # The frequencies of rotary positions are in 32 bits, as they must be.
    assert in_32_bits() - before <= 2**10
