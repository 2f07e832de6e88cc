"""One tuning run: the model that is tuned, its pairs as tokens, and the record that identifies the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from xlingtox import files
from xlingtox.models import adapters, loading
from xlingtox.models.ending import first_token_ends
from xlingtox.models.hooked import HookedLM
from xlingtox.models.precision import cast
from xlingtox.models.tokenizer import tokenizer_rules
from xlingtox.tuning.ends import mean_with_interval, prompt_sample
from xlingtox.tuning.part import TrainedPart, mask_gradients
from xlingtox.tuning.preference_pairs import Pairs, Part, max_tokens
from xlingtox.tuning.recipe import Recipe
from xlingtox.tuning.reference import visited
from xlingtox.tuning.run_folder import RunFolder

_PROMPTS_AT_ONCE = 16
"""Prompts of one batch where the probability of ending at once is measured. A fixed number gives the same bytes."""


class Run:
    """One tuning run. It holds what training needs, and writes the run's record and checkpoints.

    Attributes:
        source: the model as the caller gave it.
        recipe, pairs, tokenizer: what the model is tuned with.
        tokens: the pairs to train on and those for validation; columns `prompt_ids, chosen_ids, rejected_ids`.
        room: the most tokens of prompt and continuation together.
        folder: the folder of the run.
        record: the content of `recipe.json`.
        dtype, stored_dtype, device, remote_code: those of the HookedLM.
    """

    def __init__(
        self,
        source: HookedLM | str | Path,
        lm: HookedLM,
        pairs: Pairs,
        *,
        recipe: Recipe,
        output_dir: str | Path,
        plain_model: Any = None,
        part: TrainedPart | None = None,
    ) -> None:
        """Turn the pairs into tokens, and prepare the record and the folder.

        Args:
            source: the model as the caller gave it.
            lm: the same model, loaded. It is read here and not kept.
            plain_model: the Hugging Face model, if it was loaded for this run only. Nobody else must hold it.
            part: the part that may change; None for the whole model.
        """
        self._plain_model = plain_model
        self.source, self.recipe, self.room, self.pairs = source, recipe, max_tokens(lm, recipe), pairs
        parts: tuple[Part, ...] = ("train",) if pairs.validation is None else ("train", "validation")
        self.tokens = {part: pairs.tokenized(part, lm) for part in parts}
        self.dtype, self.stored_dtype, self.device, self.tokenizer = lm.dtype, lm.stored_dtype, lm.device, lm.tokenizer
        self.remote_code = lm.remote_code
        self._part, self._places = part, {} if part is None else part.places(lm)
        self.record: dict[str, Any] = {
            "recipe": dataclasses.asdict(recipe),
            "model": dataclasses.asdict(lm.identity()),
            "tokenizer": _tokenizer_hash(lm.tokenizer),
            "pairs": len(pairs.train),
            "pairs_hash": _pairs_hash(pairs, "train"),
            "left_out": len(pairs.left_out),
            "validation": 0 if pairs.validation is None else len(pairs.validation),
            "validation_hash": None if pairs.validation is None else _pairs_hash(pairs, "validation"),
            "end_token": dataclasses.asdict(pairs.end_token),
            "trained_part": None if part is None else part.record(),
        }
        self._prompts = prompt_sample(pairs.train["prompt"], recipe.seed)
        self._ending: dict[str, Any] = {"prompts": len(self._prompts), "before": None, "after": None}
        self.folder = RunFolder(output_dir)

    def measure_ending(self, when: Literal["before", "after"], lm: HookedLM) -> None:
        """Measure how likely the model ends its text at once, after a sample of the pairs' prompts."""
        values = first_token_ends(lm, self._prompts, batch_size=_PROMPTS_AT_ONCE)
        self._ending[when] = mean_with_interval(values)

    def begin(self, **details: Any) -> None:
        """Write `recipe.json` of a run that is not finished, in the main process."""
        details |= {"lengths": dataclasses.asdict(self.pairs.lengths), "ending_at_once": self._ending}
        counts = {name: len(getattr(self.pairs, name)) for name in ("cut", "merged", "validation_left_out")}
        self.record |= counts | details
        self.folder.write(self.record, finished=False)

    def finish(self, tuned: HookedLM) -> None:
        """Complete `recipe.json` with what the tuned model does, and remove what was needed only during the run."""
        self.measure_ending("after", tuned)
        self.folder.finish(self.record)

    def visited(self, arguments: Mapping[str, Any], n_rows: int, n_processes: int) -> set[int]:
        """Return the numbers of the rows that training with these settings of TRL visits, of a table of `n_rows`."""
        return visited(
            n_rows,
            per_pass=arguments["per_device_train_batch_size"] * n_processes,
            accumulation=arguments["gradient_accumulation_steps"],
            steps=self.recipe.steps,
            epochs=self.recipe.epochs,
            seed=self.recipe.seed,
            in_order=arguments.get("train_sampling_strategy") == "sequential",
        )

    def take_model(self) -> Any:
        """Return a plain Hugging Face model to tune. It has the source's weights, and nobody else holds it."""
        if self._plain_model is not None:
            model, self._plain_model = self._plain_model, None
            return model
        assert isinstance(self.source, HookedLM)
        model = self.source.unwrapped()
        if self.recipe.lora is None or self.recipe.lora.bits is None:
            return model
        base = self.base(model)
        del model
        # Weights are quantised while they are read from a checkpoint.
        return loading.from_checkpoint(base, bits=self.recipe.lora.bits, trust_remote_code=self.remote_code).model

    def limit(self, model: Any) -> None:
        """Let training change the part of the model that this run is about, and nothing else."""
        if self._part is not None:
            mask_gradients(model, self._places, self._part.kind)

    def release_model(self) -> None:
        """Forget the model that was loaded for this run, if it was not taken."""
        self._plain_model = None

    def base(self, model: Any) -> str:
        """Write the model as it is before tuning as a checkpoint, and return its folder."""

        def write(place: Path) -> None:
            with loading.no_weight_bars():
                model.save_pretrained(place)
            self.tokenizer.save_pretrained(place)

        return str(self.folder.written_once(self.folder.base, write))

    def forget_wrong_base(self) -> None:
        """Remove the name of the base model from the adapter, unless that base is the model that was tuned.

        PEFT writes the path that the model remembers. An edited model, or one with another adapter merged, is not what
        lies at that path.
        """
        if isinstance(self.source, HookedLM) or adapters.adapter_folder(self.source) is not None:
            file = self.folder.adapter / adapters.CONFIG
            files.write_json(file, files.read_json(file) | {"base_model_name_or_path": None, "revision": None})

    def cast_checkpoint(self) -> None:
        """Cast the weights of the checkpoint to the dtype of the source's: sharded ones are saved in 32 bits."""
        if self.stored_dtype == torch.float32:
            return
        config = self.folder.path / "config.json"
        for file in self.folder.path.glob("*.safetensors"):
            tensors = {name: weight.to(self.stored_dtype) for name, weight in load_file(file).items()}
            with files.replacing(file) as partial:
                save_file(tensors, partial, {"format": "pt"})
        files.write_json(config, files.read_json(config) | {"dtype": str(self.stored_dtype).removeprefix("torch.")})

    def merge(self) -> None:
        """Merge the adapter into the unquantised base, and write the checkpoint.

        Raises:
            ValueError: the merged model gives other logits than base and adapter.
        """
        source = self.source
        if isinstance(source, HookedLM):
            base, name = source.unwrapped(), source.name
        else:
            loaded = loading.from_checkpoint(str(source), dtype=self.dtype, device=self.device)
            base, name = loaded.model, loaded.name
        merged = adapters.merge_adapter(base, self.folder.adapter, name)
        cast(merged, self.stored_dtype).save_pretrained(self.folder.path)
        self.tokenizer.save_pretrained(self.folder.path)


def _pairs_hash(pairs: Pairs, part: Part) -> str:
    rows = json.dumps([list(row.values()) for row in getattr(pairs, part)], ensure_ascii=True)
    # The same texts become other tokens if a chat template made them.
    rows += " conversations" if part in pairs.conversations else ""
    return hashlib.sha256(rows.encode("ascii")).hexdigest()[:16]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    rules = json.dumps([tokenizer_rules(tokenizer), special_tokens], sort_keys=True)
    return hashlib.sha256(rules.encode("ascii")).hexdigest()[:16]
