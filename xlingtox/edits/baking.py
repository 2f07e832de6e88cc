"""Baking: write an edit that scales and shifts neurons or heads into a model's weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from xlingtox import files, processes
from xlingtox.edits.affine import Affine, logits_of_random_tokens, tolerance
from xlingtox.edits.control_vectors import control_vectors
from xlingtox.files import appearing, writable_folder
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import Loaded, from_checkpoint
from xlingtox.models.reload_check import first_changed_weight
from xlingtox.models.sites import Site

On = Callable[[HookedLM], AbstractContextManager[None]]
"""The method `on` of an edit."""

_LLAMA_LIKE = ("llama", "mistral", "qwen2")
"""Families that are Llama with other settings. They can be written as a Llama with biases on its projections."""

_BIASES: dict[Site, tuple[str, str]] = {
    "neurons": ("mlp_bias", "down-projection"),
    "heads": ("attention_bias", "output projection"),
}
"""Site to the setting that gives some families biases on the projection behind it, and to that projection in words."""

_MODEL_FILES = ("config.json", "adapter_config.json")
"""Files that show that a folder holds a model."""


def bake(lm: HookedLM, affine: Affine, *, on: On, record: Mapping[str, Any], output_dir: str | Path | None) -> HookedLM:
    """Return a new model in which `gain * x + shift` is passed on in place of `x`.

    Args:
        on: the edit's own `on`, with which the new model is compared.
        record: the edit in words (`edit`) and in numbers, for `bake.json`.
        output_dir: a new or empty folder for the checkpoint, or None for a model in memory.

    Raises:
        ValueError: the edit has no exact place in this model's weights, or the folder is not empty.
        OSError: the folder cannot be written.
    """
    names = {site: places.projection_names(lm, site) for site in sorted({site for site, _ in affine.gains})}
    _check_bakeable(lm)
    folder = None if output_dir is None else processes.from_main(partial(_new_folder, output_dir))
    pushes = {place: push for place, push in affine.pushes(lm).items() if bool(push.any())}
    model, layout = lm.unwrapped(), "as it was"
    sites = {site: names[site] for site, layer in pushes if _bias(model, names[site][layer]) is None}
    if sites:
        before = type(model)
        try:
            model = _with_biases(model, sites)
        except ValueError as error:
            raise ValueError(
                f"an offset cannot be baked into {lm.name}: {error}. {_alternative(lm, affine)}"
            ) from error
        settings = ", ".join(_BIASES[site][0] for site in sites)
        layout = settings if type(model) is before else type(model).__name__
    with torch.no_grad():
        for (site, layer), gain in affine.gains.items():
            module = model.get_submodule(names[site][layer])
            rows = module.weight if isinstance(module, transformers.pytorch_utils.Conv1D) else module.weight.T
            rows.mul_(gain.to(rows)[:, None])
            if (push := pushes.get((site, layer))) is not None:
                module.bias.copy_(module.bias.double().cpu() + push)
    baked = HookedLM.over(Loaded(model, lm.tokenizer, f"{lm.name}, baked ({layout})"))
    _check_same(lm, baked, on=on, complaint=f"{record['edit']} cannot be baked exactly into {lm.name}")
    if folder is None:
        return baked
    record = dict(record) | {"of": lm.name, "fingerprint": lm.fingerprint(), "written_as": layout}
    rereads: list[HookedLM] = []

    def write() -> None:
        with appearing(folder) as partial_folder:
            model.save_pretrained(partial_folder)
            lm.tokenizer.save_pretrained(partial_folder)
            files.write_json(partial_folder / "bake.json", record)
            read = _read(partial_folder, lm, name=str(folder))
            reread = HookedLM.over(read)
            altered = first_changed_weight(model.state_dict().items(), read.model)
            why = (
                f"when it is read again, {altered} is not what was written" if altered else "what is read again differs"
            )
            complaint = f"{record['edit']} cannot be baked into a checkpoint of {lm.name}: {why}"
            if altered:
                raise ValueError(f"{complaint}: bake it in memory, without a folder")
            _check_same(lm, reread, on=on, complaint=complaint)
            rereads.append(reread)

    # Of several processes the main one writes the checkpoint, and the others read it.
    processes.from_main(write)
    return rereads[0] if rereads else HookedLM.over(_read(folder, lm, name=str(folder)))


def _read(folder: Path, lm: HookedLM, *, name: str) -> Loaded:
    """Read a checkpoint as the model that it was made of was read."""
    read = from_checkpoint(str(folder), dtype=lm.dtype, device=lm.device, trust_remote_code=lm.remote_code)
    read.model.config._name_or_path = read.model.name_or_path = read.tokenizer.name_or_path = name
    return dataclasses.replace(read, name=name)


def _alternative(lm: HookedLM, affine: Affine) -> str:
    """Say what can be done about an offset that has no place in the weights."""
    try:
        control_vectors(lm, affine)
    except ValueError:
        return "Run it with edit.on(lm), or scale only"
    return "Use control_vectors(lm), or scale instead"


def _check_bakeable(lm: HookedLM) -> None:
    """Raise ValueError where weights cannot be changed, or where other hooks act on the model."""
    if lm.quantised:
        raise ValueError(f"{lm.name} is quantised, and its weights cannot be edited: load it without bits=")
    if lm.hooked:
        raise ValueError(f"hooks or another edit act on {lm.name}: bake outside of them, or bake their sum")


def _new_folder(path: str | Path) -> Path:
    """Return the path of a folder that does not exist or is empty, in a place that can be written.

    Raises:
        ValueError: the folder is not empty. A server would mix the files of two models in it.
        OSError: the path is a file, or its place cannot be written.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        writable_folder(folder)
        names = sorted(file.name for file in folder.iterdir())
        models = [name for name in names if name in _MODEL_FILES or name.endswith(".safetensors")]
        if models:
            raise ValueError(f"{folder} holds a model already ({models[0]}): give a new folder")
        if names:
            raise ValueError(f"{folder} is not empty ({names[0]}): give a new folder")
    writable_folder(folder.absolute().parent)
    return folder


def _check_same(lm: HookedLM, baked: HookedLM, *, on: On, complaint: str) -> None:
    """Raise ValueError unless the baked model gives the logits of the model under the edit."""
    with on(lm):
        hooked = logits_of_random_tokens(lm)
    gap = float((hooked - logits_of_random_tokens(baked).to(hooked.device)).abs().max())
    if not gap <= tolerance(lm) * float(hooked.abs().max()):
        raise ValueError(f"{complaint} (logits differ by {gap:.2g})")


def _bias(model: Any, name: str) -> Any:
    """Return the bias of the module of this name, or None where it has none."""
    return getattr(model.get_submodule(name), "bias", None)


def _with_biases(model: Any, sites: Mapping[Site, Sequence[str]]) -> Any:
    """Return the model with more biases, of zero: in its own class where that has them, else as a Llama.

    Args:
        sites: the sites whose projections need biases, each with the names of these projections.

    Raises:
        ValueError: neither is possible; the message says why.
    """
    weights, text_config = model.state_dict(), model.config.get_text_config()
    # The new model is made in the old one's precision. A cast would round the rotary frequencies too.
    if all(hasattr(text_config, _BIASES[site][0]) for site in sites):
        config = copy.deepcopy(model.config)
        for site in sites:
            setattr(config.get_text_config(), _BIASES[site][0], True)
        biased = type(model)._from_config(config, dtype=model.dtype).to(model.device)
    else:
        biases = {_BIASES[site][0]: True for site in sites}
        if "model.layers.0.self_attn.q_proj.bias" in weights:
            biases["attention_bias"] = True
        lacking = next(_BIASES[site][1] for site in sites if not hasattr(text_config, _BIASES[site][0]))
        biased = _as_llama(model.config, model.dtype, biases, lacking=lacking)
        biased = biased.to(model.device)
    missing, unexpected = biased.load_state_dict(weights, strict=False)
    unmatched = [key for key in missing if not key.endswith(".bias")] + list(unexpected)
    if unmatched:
        raise ValueError(f"with biases it would lack {unmatched[0]}")
    for site, names in sites.items():
        if any(_bias(biased, name) is None for name in names):
            raise ValueError(f"the {_BIASES[site][1]} has no bias, and {text_config.model_type} has no place for one")
    parameters = dict(biased.named_parameters())
    with torch.no_grad():
        for key in missing:
            parameters[key].zero_()
    biased.generation_config = model.generation_config
    return biased.eval()


def _as_llama(config: Any, dtype: torch.dtype, biases: Mapping[str, bool], *, lacking: str) -> Any:
    """Return a Llama of the same sizes, with more biases and weights that are still to be loaded.

    Args:
        biases: the settings that give it biases.
        lacking: the projection that has no bias, for the message.

    Raises:
        ValueError: the family is not a Llama with other settings, or its attention has a window, which no Llama has.
    """
    family = config.model_type
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if family not in _LLAMA_LIKE:
        raise ValueError(f"the {lacking} has no bias, and {family} has no place for one")
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(f"the {lacking} has no bias, and its attention has a sliding window, which no Llama has")
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("model_type", "architectures", "transformers_version", "mlp_bias", "attention_bias")
        and not key.startswith("_")
    }
    llama_config = transformers.LlamaConfig(**{**settings, **biases})
    make: Any = transformers.LlamaForCausalLM._from_config
    return make(llama_config, dtype=dtype)
