"""Edits as weights: what multiplies neurons and adds to them, written into a checkpoint or a control vector."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.engine import Hook
from xlingtox.folders import writable_folder
from xlingtox.lm import HookedLM
from xlingtox.loading import Loaded

On = Callable[[HookedLM], contextlib.AbstractContextManager[None]]

_LLAMA_LIKE = ("llama", "mistral", "qwen2")
"""Families that are Llama with other settings, and so can be written with its bias on the down-projection."""


def bake(
    lm: HookedLM,
    gains: Mapping[int, Float[Tensor, "d_mlp"]],
    shifts: Mapping[int, Float[Tensor, "d_mlp"]],
    on: On,
    what: Mapping[str, Any],
    output_dir: str | Path | None,
) -> HookedLM:
    """A new model whose neuron `i` of a layer writes `gain[i] * x + shift[i]` where it wrote `x`.

    Args:
        what: the edit in words (`edit`) and in numbers, for the record.
    """
    names = lm.down_projections()
    _check_bakeable(lm)
    pushes = {layer: push for layer, push in _pushes(lm, shifts).items() if bool(push.any())}
    folder = None if output_dir is None else _new_folder(output_dir)
    model, layout = lm.unwrapped(), "as it was"
    if pushes and getattr(model.get_submodule(names[0]), "bias", None) is None:
        before, model = type(model), _with_biases(model, lm.name, _scales(gains))
        layout = "mlp_bias" if type(model) is before else type(model).__name__
    with torch.no_grad():
        for layer, name in enumerate(names):
            down = model.get_submodule(name)
            if layer in gains:
                rows = down.weight if isinstance(down, transformers.pytorch_utils.Conv1D) else down.weight.T
                rows.mul_(gains[layer].to(rows)[:, None])
            if layer in pushes:
                down.bias.copy_(down.bias.double().cpu() + pushes[layer])
    baked = HookedLM.over(Loaded(model, lm.tokenizer, f"{lm.name}, baked ({layout})"))
    _check_same(lm, on, lambda: baked.logits(*_probe(lm)), f"{what['edit']} cannot be baked exactly into {lm.name}")
    if folder is None:
        return baked
    model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    record = dict(what) | {"of": lm.name, "fingerprint": lm.fingerprint(), "written_as": layout}
    (folder / "bake.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return HookedLM.load(folder, dtype=lm.dtype, device=lm.device, trust_remote_code=lm.remote_code)


def _scales(gains: Mapping[int, Tensor]) -> bool:
    """Whether any neuron is multiplied by another number than 1."""
    return any(bool((gain != 1).any()) for gain in gains.values())


def _pushes(lm: HookedLM, shifts: Mapping[int, Tensor]) -> dict[int, Float[Tensor, "d_model"]]:
    """By layer, what its shifts add to the MLP's output, in float64."""
    return {layer: shift @ lm.value_vectors(layer).double().cpu() for layer, shift in shifts.items()}


def _check_bakeable(lm: HookedLM) -> None:
    """Raise ValueError where weights cannot be written into, or where what is hooked is not this edit alone."""
    if lm.quantised:
        raise ValueError(f"{lm.name} is quantised, and its weights take no edit: load it without bits=")
    if lm.hooked:
        raise ValueError(f"hooks or another edit act on {lm.name}: bake outside of them, or bake their sum")


def _new_folder(path: str | Path) -> Path:
    """A folder in which no model lies: of two, a server would mix the files."""
    folder = writable_folder(path)
    held = [name for name in ("config.json", "adapter_config.json") if (folder / name).exists()]
    held += [file.name for file in folder.glob("*.safetensors")]
    if held:
        raise ValueError(f"{folder} holds a model already ({held[0]}): give a new folder")
    return folder


@checked
@dataclass(frozen=True)
class ControlVectors:
    """A constant for each block's output, `[d_model]`, by layer (0 is the first block)."""

    vectors: Mapping[int, Float[Tensor, "d_model"]]

    @checked
    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Any:
        """Run the model with the vectors added to its blocks' outputs.

        Raises:
            ValueError: they are not of the model's width, or of a layer that it has not.
        """
        for layer, vector in self.vectors.items():
            if not 0 <= layer < lm.n_layers:
                raise ValueError(f"there is a vector of layer {layer}: {lm.name} has layers 0 to {lm.n_layers - 1}")
            if vector.shape != (lm.d_model,):
                raise ValueError(
                    f"layer {layer} has a vector of {list(vector.shape)}: {lm.name} has d_model {lm.d_model}"
                )

        def adding(vector: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda state: state + vector.to(state)

        with lm.hooks(residual={layer + 1: adding(vector) for layer, vector in self.vectors.items()}):
            yield

    @checked
    def save(self, path: str | Path) -> None:
        """Write safetensors, `layer.N` a block."""
        named = {f"layer.{layer}": vector.contiguous() for layer, vector in self.vectors.items()}
        save_file(named, Path(path).expanduser())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> ControlVectors:
        found = load_file(Path(path).expanduser())
        return cls({int(name.removeprefix("layer.")): vector for name, vector in found.items()})

    @checked
    def save_gguf(self, path: str | Path, architecture: str) -> None:
        """Write a control vector for llama.cpp, which steers every block but the first.

        Args:
            architecture: llama.cpp's name of the model's family, as `llama` or `gpt2`.

        Raises:
            ValueError: the first block has a vector, or the package gguf is missing.
        """
        if 0 in self.vectors:
            raise ValueError(
                "llama.cpp cannot steer the first block, and this edit does: save() writes it, edit.bake may"
            )
        try:
            import gguf
        except ImportError as error:
            raise ValueError("a GGUF file needs the package gguf: pip install gguf") from error
        writer = gguf.GGUFWriter(str(Path(path).expanduser()), "controlvector")
        writer.add_string("controlvector.model_hint", architecture)
        writer.add_uint32("controlvector.layer_count", len(self.vectors))
        for layer, vector in sorted(self.vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def control_vectors(lm: HookedLM, gains: Mapping[int, Tensor], shifts: Mapping[int, Tensor]) -> ControlVectors:
    """The shifts of a layer as one vector at its block's output, if that is the same."""
    if _scales(gains):
        raise ValueError("only offsets are constant vectors: a scaled or held neuron writes what depends on the token")
    shifts = {layer: shift for layer, shift in sorted(shifts.items()) if bool(shift.any())}
    if not shifts:
        raise ValueError("the offsets cancel: no vector is left")
    found = ControlVectors({layer: push.float() for layer, push in _pushes(lm, shifts).items()})
    _check_constant(lm, shifts, found)
    return found


def _check_constant(lm: HookedLM, shifts: Mapping[int, Tensor], found: ControlVectors) -> None:
    """Raise ValueError unless the vectors do what the shifts do, both made so large that it shows in any precision."""
    plain, strength = lm.logits(*_probe(lm)).float(), 1.0

    def shifted(shift: Tensor) -> Hook:
        return lambda value: value + strength * shift.to(value)

    while True:
        with lm.hooks(post={layer: shifted(shift) for layer, shift in shifts.items()}):
            hooked = lm.logits(*_probe(lm)).float()
        if float((hooked - plain).abs().max()) > 0.5 * float(plain.abs().max()) or strength > 1e6:
            break
        strength *= 4
    with ControlVectors({layer: strength * vector for layer, vector in found.vectors.items()}).on(lm):
        gap = float((hooked - lm.logits(*_probe(lm)).float()).abs().max())
    if not gap <= _slack(lm) * float(hooked.abs().max()):
        raise ValueError(
            f"{lm.name} has a norm or a scale after its MLP: no constant fits (logits differ by {gap:.2g})"
        )


def _probe(lm: HookedLM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.unembedding().shape[0], (2, 8), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _check_same(lm: HookedLM, on: On, other: Callable[[], Tensor], complaint: str) -> None:
    with on(lm):
        hooked = lm.logits(*_probe(lm)).float()
    gap = float((hooked - other().float()).abs().max())
    if not gap <= _slack(lm) * float(hooked.abs().max()):
        raise ValueError(f"{complaint} (logits differ by {gap:.2g})")


def _slack(lm: HookedLM) -> float:
    """What rounding may come to, as a share of the logits."""
    return {torch.float32: 1e-4, torch.float64: 1e-4}.get(lm.dtype, 5e-2)


def _with_biases(model: Any, name: str, scaled: bool) -> Any:
    """The model written as a Llama with biases of zero on its MLPs.

    Raises:
        ValueError: its family is not a Llama with other settings.
    """
    config = model.config
    windowed = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kind = config.model_type
    if kind not in _LLAMA_LIKE or (windowed is not None and windowed < config.max_position_embeddings):
        reason = "its attention has a sliding window" if kind in _LLAMA_LIKE else f"{kind} has no bias there"
        raise ValueError(
            f"an offset cannot be baked into {name}: the down-projection has no bias, and {reason}. "
            + ("Run it with edit.on(lm), or scale only" if scaled else "Use control_vectors(lm), or scale instead")
        )
    weights = model.state_dict()
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("model_type", "architectures", "transformers_version", "mlp_bias", "attention_bias")
        and not key.startswith("_")
    }
    biased = "model.layers.0.self_attn.q_proj.bias" in weights
    # Made in its own precision: casting would round the rotary frequencies too.
    as_llama = transformers.LlamaConfig(**settings, mlp_bias=True, attention_bias=biased)
    make: Any = transformers.AutoModelForCausalLM.from_config
    llama = make(as_llama, dtype=model.dtype).to(model.device)
    missing, unexpected = llama.load_state_dict(weights, strict=False)
    strange = [key for key in missing if not key.endswith(".bias")] + list(unexpected)
    if strange:
        raise ValueError(f"an offset cannot be baked into {name}: as a Llama it would lack {strange[0]}")
    own = dict(llama.named_parameters())
    with torch.no_grad():
        for key in missing:
            own[key].zero_()
    llama.generation_config = model.generation_config
    return llama.eval()
