"""The dtype in which a model is computed on a CPU if none was asked for."""

import families
import pytest
import raw
import torch
import transformers
from torch.testing import assert_close

from xlingtox.edits.interventions import Scale
from xlingtox.models import precision
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

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
