"""Baking: write an edit that scales and shifts activations into a model's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from xlingtox import files, processes
from xlingtox.edits.affine import Affine, NoPlace, logits_of_random_tokens, tolerance
from xlingtox.edits.biases import with_biases
from xlingtox.edits.carriers import carriers
from xlingtox.edits.control_vectors import control_vectors
from xlingtox.files import appearing, writable_folder
from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import Loaded, from_checkpoint
from xlingtox.models.reload_check import first_changed_weight

On = Callable[[HookedLM], AbstractContextManager[None]]
"""The method `on` of an edit."""

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
    _check_bakeable(lm)
    folder = None if output_dir is None else processes.from_main(partial(_new_folder, output_dir))
    model = lm.unwrapped()
    try:
        carrying = carriers(lm, model, affine)
        model, layout = with_biases(model, {one.module: one.words for one in carrying if one.needs_bias(model)})
    except NoPlace as error:
        what = "an offset" if error.of_a_shift else "a factor"
        instead = _alternative(lm, affine, may_scale=error.of_a_shift)
        raise ValueError(f"{what} cannot be baked into {lm.name}: {error}. {instead}") from error
    for carrier in carrying:
        carrier.write(model)
    baked = HookedLM.over(Loaded(model, lm.tokenizer, f"{lm.name}, baked ({layout})", chat=lm.chat))
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
    read = from_checkpoint(
        str(folder), dtype=lm.dtype, device=lm.device, trust_remote_code=lm.remote_code, chat=lm.chat
    )
    read.model.config._name_or_path = read.model.name_or_path = read.tokenizer.name_or_path = name
    return dataclasses.replace(read, name=name)


def _alternative(lm: HookedLM, affine: Affine, *, may_scale: bool) -> str:
    """Say what can be done about an edit that has no place in the weights.

    Args:
        may_scale: whether factors have a place, as far as is known. On the residual stream they have none.
    """
    may_scale = may_scale and all(site != "residual" for site, _ in affine.gains)
    try:
        control_vectors(lm, affine)
    except ValueError:
        return "Run it with edit.on(lm)" + (", or scale only" if may_scale else "")
    return "Use control_vectors(lm)" + (", or scale instead" if may_scale else "")


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
