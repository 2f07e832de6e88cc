"""Edits as weights: what multiplies neurons and adds to them, written into a checkpoint or a control vector."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.files import appearing, writable_folder
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import fingerprint
from xlingtox.models.loading import Loaded, from_checkpoint
from xlingtox.models.reload_check import first_changed_weight

On = Callable[[HookedLM], contextlib.AbstractContextManager[None]]

_LLAMA_LIKE = ("llama", "mistral", "qwen2")
"""Families that are Llama with other settings, and so can be written with its bias on the down-projection."""

_OF_A_MODEL = ("config.json", "adapter_config.json")


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
    folder = None if output_dir is None else _new_folder(output_dir)
    pushes = {layer: push for layer, push in _pushes(lm, shifts).items() if bool(push.any())}
    model, layout = lm.unwrapped(), "as it was"
    if pushes and getattr(model.get_submodule(names[0]), "bias", None) is None:
        before = type(model)
        try:
            model = _with_biases(model)
        except ValueError as error:
            instead = _instead(lm, gains, shifts)
            raise ValueError(f"an offset cannot be baked into {lm.name}: {error}. {instead}") from error
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
    _check_same(lm, on, baked, f"{what['edit']} cannot be baked exactly into {lm.name}")
    if folder is None:
        return baked
    record = dict(what) | {"of": lm.name, "fingerprint": lm.fingerprint(), "written_as": layout}
    with appearing(folder) as part:
        model.save_pretrained(part)
        lm.tokenizer.save_pretrained(part)
        files.write_json(part / "bake.json", record)
        read = from_checkpoint(str(part), dtype=lm.dtype, device=lm.device, trust_remote_code=lm.remote_code)
        read.model.config._name_or_path = read.model.name_or_path = read.tokenizer.name_or_path = str(folder)
        reread = HookedLM.over(dataclasses.replace(read, name=str(folder)))
        altered = first_changed_weight(model.state_dict().items(), read.model)
        why = f"when it is read again, {altered} is not what was written" if altered else "what is read again differs"
        complaint = f"{what['edit']} cannot be baked into a checkpoint of {lm.name}: {why}"
        if altered:
            raise ValueError(f"{complaint}: bake it in memory, without a folder")
        _check_same(lm, on, reread, complaint)
    return reread


def _instead(lm: HookedLM, gains: Mapping[int, Tensor], shifts: Mapping[int, Tensor]) -> str:
    """What can be done about an offset that has no place in the weights."""
    try:
        control_vectors(lm, gains, shifts)
    except ValueError:
        return "Run it with edit.on(lm), or scale only"
    return "Use control_vectors(lm), or scale instead"


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
    """A folder that is not there yet, or is empty, in a place that can be written.

    Raises:
        ValueError: something lies in it: of two models, a server would mix the files.
        OSError: it is a file, or its place cannot be written.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        writable_folder(folder)
        held = sorted(file.name for file in folder.iterdir())
        models = [name for name in held if name in _OF_A_MODEL or name.endswith(".safetensors")]
        if models:
            raise ValueError(f"{folder} holds a model already ({models[0]}): give a new folder")
        if held:
            raise ValueError(f"{folder} is not empty ({held[0]}): give a new folder")
    writable_folder(folder.absolute().parent)
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

        said = f"control vectors ({fingerprint({str(layer): vector for layer, vector in self.vectors.items()})})"
        with lm.hooks(residual={layer + 1: adding(vector) for layer, vector in self.vectors.items()}, edit=said):
            yield

    @checked
    def save(self, path: str | Path) -> None:
        """Write safetensors, `layer.N` a block."""
        named = {f"layer.{layer}": vector for layer, vector in self.vectors.items()}
        files.write_tensors(path, named)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> ControlVectors:
        """Read vectors that were saved; raises ValueError, with its path, where the file holds none."""
        tensors, _ = files.read_tensors(path)
        with files.understood(path, "control vectors"):
            return cls({int(name.removeprefix("layer.")): vector for name, vector in tensors.items()})

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
        with (
            files.replacing(path) as partial,
            contextlib.closing(gguf.GGUFWriter(str(partial), "controlvector")) as writer,
        ):
            writer.add_string("controlvector.model_hint", architecture)
            writer.add_uint32("controlvector.layer_count", len(self.vectors))
            for layer, vector in sorted(self.vectors.items()):
                writer.add_tensor(f"direction.{layer}", vector.float().cpu().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()


def control_vectors(lm: HookedLM, gains: Mapping[int, Tensor], shifts: Mapping[int, Tensor]) -> ControlVectors:
    """The shifts of a layer as one vector at its block's output, if that is the same."""
    if _scales(gains):
        raise ValueError("only offsets are constant vectors: a scaled or held neuron writes what depends on the token")
    shifts = {layer: shift for layer, shift in sorted(shifts.items()) if bool(shift.any())}
    if not shifts:
        raise ValueError("the offsets cancel: no vector is left")
    if normed := [layer for layer in shifts if lm.mlp_multipliers[layer] is None]:
        raise ValueError(
            f"{lm.name} has a norm after its MLP: no constant fits (in layer {normed[0]}, what an offset adds depends "
            "on the token)"
        )
    pushes = _pushes(lm, shifts)
    found = ControlVectors({layer: (push * (lm.mlp_multipliers[layer] or 0)).float() for layer, push in pushes.items()})
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
        packed = "packed weights" if lm.quantised else str(lm.dtype).removeprefix("torch.")
        raise ValueError(
            f"{lm.name} rounds: in {packed}, neurons that are moved and the vector differ (logits by {gap:.2g}). "
            + ("Load it without bits=" if lm.quantised else "Load it with dtype=torch.float32")
        )


def _probe(lm: HookedLM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.unembedding().shape[0], (2, 8), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _check_same(lm: HookedLM, on: On, other: HookedLM, complaint: str) -> None:
    with on(lm):
        hooked = lm.logits(*_probe(lm)).float()
    gap = float((hooked - other.logits(*_probe(lm)).to(hooked.device).float()).abs().max())
    if not gap <= _slack(lm) * float(hooked.abs().max()):
        raise ValueError(f"{complaint} (logits differ by {gap:.2g})")


def _slack(lm: HookedLM) -> float:
    """What rounding may come to, as a share of the logits."""
    return {torch.float32: 1e-4, torch.float64: 1e-4}.get(lm.dtype, 5e-2)


def _with_biases(model: Any) -> Any:
    """The model with biases of zero on its MLPs: in its own class where that has them, else written as a Llama.

    Raises:
        ValueError: neither is possible, and why.
    """
    weights, text = model.state_dict(), model.config.get_text_config()
    # Made in its own precision: casting would round the rotary frequencies too.
    if hasattr(text, "mlp_bias"):
        config = copy.deepcopy(model.config)
        config.get_text_config().mlp_bias = True
        biased = type(model)._from_config(config, dtype=model.dtype).to(model.device)
    else:
        biased = _as_llama(model.config, model.dtype, "model.layers.0.self_attn.q_proj.bias" in weights)
        biased = biased.to(model.device)
    missing, unexpected = biased.load_state_dict(weights, strict=False)
    strange = [key for key in missing if not key.endswith(".bias")] + list(unexpected)
    if strange:
        raise ValueError(f"with biases it would lack {strange[0]}")
    added = dict(biased.named_parameters())
    with torch.no_grad():
        for key in missing:
            added[key].zero_()
    biased.generation_config = model.generation_config
    return biased.eval()


def _as_llama(config: Any, dtype: torch.dtype, attention_bias: bool) -> Any:
    """A Llama of these sizes, with biases on its MLPs."""
    kind = config.model_type
    windowed = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kind not in _LLAMA_LIKE:
        raise ValueError(f"the down-projection has no bias, and {kind} has no place for one")
    if windowed is not None and windowed < config.max_position_embeddings:
        raise ValueError("the down-projection has no bias, and its attention has a sliding window, which no Llama has")
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("model_type", "architectures", "transformers_version", "mlp_bias", "attention_bias")
        and not key.startswith("_")
    }
    as_llama = transformers.LlamaConfig(**settings, mlp_bias=True, attention_bias=attention_bias)
    make: Any = transformers.LlamaForCausalLM._from_config
    return make(as_llama, dtype=dtype)
