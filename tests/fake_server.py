"""A server that speaks OpenAI's completions API and answers from a local model, with the faults that servers have."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

import xlingtox as xt

KEY = "sk-not-to-be-seen-anywhere"


class FakeServer:
    """A server on a free port of this machine, for a model with room for `n_positions` tokens.

    Attributes:
        faults: a function from the number of a request to what goes wrong with it: "truncate", "reorder", "fewer",
            "drop", an HTTP status, "model", "nonsense", "prompt"; None where nothing does.
        asked: how often each prompt was asked for with each seed.
    """

    def __init__(
        self, lm: xt.HookedLM, *, name: str = "quiet", kind: str = "vllm", faults: Any = None, n_positions: int = 64
    ) -> None:
        self.lm, self.name, self.kind, self.n_positions = lm, name, kind, n_positions
        self.faults = faults or (lambda number: None)
        self.asked: Counter[tuple[Any, ...]] = Counter()
        self.answered: Counter[tuple[Any, ...]] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = self.number = 0
        self.listed = [name]
        self.lock, self.model_lock = threading.Lock(), threading.Lock()

    def __enter__(self) -> FakeServer:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *parts: Any) -> None:
                pass

            def do_GET(self) -> None:
                rows = [
                    {
                        "id": name,
                        "object": "model",
                        "owned_by": fake.kind,
                        "root": "/nowhere",
                        "max_model_len": fake.n_positions,
                    }
                    for name in fake.listed
                ]
                self.reply(200, {"object": "list", "data": rows})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    ids = fake.lm.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
                    self.reply(200, {"tokens": ids, "count": len(ids)})
                    return
                with fake.lock:
                    fake.headers.append(dict(self.headers))
                    fake.bodies.append(body)
                    fake.number += 1
                    number = fake.number
                    fake.in_flight += 1
                    fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
                try:
                    fake.answer(self, body, fake.faults(number))
                finally:
                    with fake.lock:
                        fake.in_flight -= 1

            def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *parts: Any) -> None:
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: Any, body: dict[str, Any], fault: Any) -> None:
        """Answer one request for completions, or do what the fault says."""
        request = (tuple(body["prompt"]), body.get("seed"), body.get("n", 1))
        self.asked[request] += 1
        if isinstance(fault, int):
            key = handler.headers.get("Authorization", "")
            handler.reply(fault, {"error": {"message": f"no: {key}\nand so on"}}, {"Retry-After": "0"})
            return
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        if fault == "nonsense":
            handler.reply(200, b"<html>busy</html>")
            return
        new = body["max_tokens"] // 2 if fault == "truncate" else body["max_tokens"]
        choices = [self.choice(body, i, new) for i in range(body.get("n", 1))]
        if fault == "reorder":
            random.Random(0).shuffle(choices)
        if fault == "fewer":
            choices = choices[:-1]
        total = sum(choice.pop("count") for choice in choices)
        n_read = len(body["prompt"]) + (fault == "prompt")
        if fault is None or fault == "reorder":
            self.answered[request] += 1
        handler.reply(
            200,
            {
                "model": "another" if fault == "model" else body["model"],
                "choices": choices,
                "usage": {"prompt_tokens": n_read, "completion_tokens": total},
            },
        )

    def choice(self, body: dict[str, Any], i: int, new: int) -> dict[str, Any]:
        """Write one sample."""
        lm, ids, temperature = self.lm, tuple(body["prompt"]), body.get("temperature", 1.0)
        seed = None if temperature == 0 else body.get("seed", 0) + i
        with self.model_lock:
            # The model is kept with what it wrote, so that no other gets its number.
            key = id(lm), ids, temperature, seed, new
            if key not in _WRITTEN:
                _WRITTEN[key] = lm, *write(lm, ids, temperature, seed, new)
        _, written, likelihoods = _WRITTEN[key]
        shown = lm.decode_after([ids], [[token for token in written if token not in lm.ends]])[0]
        choice: dict[str, Any] = {"index": i, "text": shown}
        choice["finish_reason"] = "stop" if written[-1] in lm.ends else "length"
        if body.get("return_token_ids"):
            choice["token_ids"] = written
        if body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": likelihoods}
        if body.get("logprobs", 0) > 1:
            choice["logprobs"]["top_logprobs"] = [self.likeliest(ids, body)]
        return {**choice, "count": len(written)}

    @torch.no_grad()
    def likeliest(self, ids: tuple[int, ...], body: dict[str, Any]) -> dict[str, float]:
        """Name the likeliest first tokens, by number where this was asked for."""
        row = torch.tensor([ids])
        with self.model_lock:
            logits = self.lm.only_tokens(self.lm.logits(row, torch.ones_like(row, dtype=torch.bool)))[0, -1]
        values, tokens = logits.log_softmax(-1).topk(body["logprobs"])
        named = body.get("return_tokens_as_token_ids")
        return {
            f"token_id:{token}" if named else self.lm.tokenizer.decode([token]): value
            for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
        }


_WRITTEN: dict[tuple[Any, ...], tuple[Any, ...]] = {}


@torch.no_grad()
def write(
    lm: xt.HookedLM, ids: tuple[int, ...], temperature: float, seed: int | None, new: int
) -> tuple[list[int], list[float]]:
    """Write with plain PyTorch, greedily or with a seed. Return the tokens and their log-likelihoods."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    written: list[int] = []
    likelihoods: list[float] = []
    while len(written) < new and (not written or written[-1] not in lm.ends):
        row = torch.tensor([[*ids, *written]])
        logits = lm.only_tokens(lm.logits(row, torch.ones_like(row, dtype=torch.bool)))[0, -1]
        if generator is None:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        written.append(token)
        likelihoods.append(float(logits.log_softmax(-1)[token]))
    return written, likelihoods
