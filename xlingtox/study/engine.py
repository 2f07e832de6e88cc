"""Engine: the servers that write a study's continuations, in the place of the model on this machine."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.models.completions import ServerError
from xlingtox.models.hooked import HookedLM
from xlingtox.models.loading import mini_checkpoint
from xlingtox.models.served import Served
from xlingtox.text import first_line


@checked
@dataclass(frozen=True, kw_only=True)
class Engine:
    """The servers that write the continuations of the stage compare. Everything else is done on this machine.

    Attributes:
        url: the address of the server that runs the model before tuning.
        model: the name under which it lists the model; None for the only one that it lists.
        tuned_url: the address of the server that runs the tuned model; None for the same address.
        tuned_model: the name of the tuned model there; None for the only one.
        key_env: the name of the environment variable that holds the key of both, if they ask for one.
        in_flight: how many requests are made at a time.

    Raises:
        ValueError: an address is not plain, or `in_flight` is below 1.

    Example:
        >>> xt.study.Engine(url="http://127.0.0.1:8000/v1").before()
        Served('http://127.0.0.1:8000/v1', model=None)
    """

    url: str
    model: str | None = None
    tuned_url: str | None = None
    tuned_model: str | None = None
    key_env: str | None = None
    in_flight: int = 32

    def __post_init__(self) -> None:
        self._served(self.url, None, None)
        if self.tuned_url is not None:
            try:
                self._served(self.tuned_url, None, None)
            except ValueError as error:
                raise ValueError(f"tuned_{error}") from None

    def before(self) -> Served:
        """Return the server of the model before tuning.

        Raises:
            ValueError: the environment variable of the key is not set.
        """
        return self._served(self.url, self.model, self._key())

    def after(self) -> Served:
        """Return the server of the tuned model.

        Raises:
            ValueError: the environment variable of the key is not set.
        """
        return self._served(self.tuned_url or self.url, self.tuned_model, self._key())

    @property
    def note(self) -> str:
        """A sentence that says which servers write, and what."""
        urls = " and ".join(dict.fromkeys([self.url, self.tuned_url or self.url]))
        return f"A server at {urls} writes the samples of the comparison. The time that it takes is not counted."

    @checked
    def problems(self, lm: HookedLM, prompts: Dataset, *, max_new_tokens: int) -> list[str]:
        """Say what keeps the server from writing for the model before tuning. The tuned model cannot be served yet."""
        try:
            self.after()
            self.before().check(lm, prompts=prompts, max_new_tokens=max_new_tokens)
        except ServerError as error:
            return [str(told(error, self.advice_before(lm)))]
        except ValueError as error:
            return [first_line(error)]
        return []

    @checked
    def advice_before(self, lm: HookedLM) -> str:
        """Say how to serve the model before tuning."""
        source = str(mini_checkpoint()) if lm.name == "mini" else lm.name
        return f"Serve {lm.name}: {command(source, lm, self.url, self.model)}"

    @checked
    def advice_after(self, folder: Path, lm: HookedLM) -> str:
        """Say how to serve the tuned model.

        Args:
            folder: the tuned checkpoint.
            lm: the model before tuning, whose dtype is served.
        """
        url, other = self.tuned_url or self.url, " (or write another address as [engine] tuned_url)"
        where = f"Serve it at {url}{'' if self.tuned_url else other}, and run the study again, which goes on from here"
        return f"The tuned model is in {folder}. {where}: {command(str(folder), lm, url, self.tuned_model)}"

    def _served(self, url: str, model: str | None, key: str | None) -> Served:
        return Served(url, model=model, api_key=key, in_flight=self.in_flight)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        if not (key := os.environ.get(self.key_env)):
            raise ValueError(f"the environment variable {self.key_env} is not set: it holds the key of the server")
        return key


def command(source: str, lm: HookedLM, url: str, model: str | None) -> str:
    """Return the command that serves a checkpoint with vLLM at an address.

    Example:
        >>> from xlingtox.study.engine import command
        >>> command("runs/my model", lm, "http://127.0.0.1:8001/v1", "quiet")
        "vllm serve 'runs/my model' --dtype float32 --port 8001 --served-model-name quiet"
    """
    parts = ["vllm", "serve", source, "--dtype", str(lm.dtype).removeprefix("torch.")]
    if (port := urlsplit(url).port) is not None:
        parts += ["--port", str(port)]
    if model is not None and model != source:
        parts += ["--served-model-name", model]
    return shlex.join(parts)


def told(error: ServerError, advice: str) -> ServerError:
    """Return an error that also says how to serve the right model; one about missing texts says enough itself."""
    if error.n_missing:
        return error
    return ServerError(f"{str(error).rstrip('.?')}. {advice}")
