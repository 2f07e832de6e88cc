"""A local server that plays the Perspective API, faults and all; nothing here knows xlingtox."""

import json
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "AIza-not-a-real-key-0123456789"


def score_of(text: str, language: str, attribute: str = "TOXICITY") -> float:
    """The truth: a number in [0, 1) of six decimals."""
    of_attribute = "" if attribute == "TOXICITY" else f" {attribute}"
    return zlib.crc32(f"{language} {text}{of_attribute}".encode()) % 10**6 / 10**6


def answer_of(score: Any, **others: Any) -> dict[str, Any]:
    scores = {
        name: {"spanScores": [], "summaryScore": {"value": value, "type": "PROBABILITY"}}
        for name, value in {"TOXICITY": score, **others}.items()
    }
    return {"attributeScores": scores, "detectedLanguages": ["en"]}


class Server(ThreadingHTTPServer):
    """Counts calls and answers by language and text; `fault(text, nth_call)` names what goes wrong, or nothing."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fault: Callable[[str, int], str | None] = lambda text, nth: None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.calls: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.closed = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1alpha1/comments:analyze"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, language = asked["comment"]["text"], asked["languages"][0]
        with self.server.lock:
            self.server.times.append(time.monotonic())
            self.server.asked.append(asked)
            self.server.calls[language, text] += 1
            fault = self.server.fault(text, self.server.calls[language, text])
        if self.headers.get("x-goog-api-key") != KEY or "key=" in self.path:
            fault = "stranger"
        if fault is None:
            self.do_well(text, language, asked["requestedAttributes"])
        else:
            getattr(self, f"do_{fault}")(text, language)

    def do_well(self, text: str, language: str, names: Iterable[str] = ("TOXICITY",)) -> None:
        with self.server.lock:
            self.server.answered[language, text] += 1
        answer = answer_of(**{"score": 0.0} | {name: score_of(text, language, name) for name in names})
        answer["attributeScores"] = {name: answer["attributeScores"][name] for name in names}
        self.say(200, answer | {"languages": [language]})

    def do_429(self, *_: str) -> None:
        self.say(429, {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}})

    def do_500(self, *_: str) -> None:
        self.say(500, {"error": {"code": 500, "message": "Internal error"}})

    def do_later(self, *_: str) -> None:
        self.say(429, {}, {"Retry-After": "1"})

    def do_silence(self, *_: str) -> None:
        """Nothing, until the server is closed."""
        self.server.closed.wait()
        self.close_connection = True

    def do_hang_up(self, *_: str) -> None:
        self.close_connection = True

    def do_break(self, *_: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"attributeScores": {"TOXI')
        self.close_connection = True

    def do_garbage(self, text: str, language: str) -> None:
        nonsense = [b"<html>", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 9000, b'{"attributeScores": {}}']
        wrong = [json.dumps(answer_of(value)).encode() for value in (None, "0.5", 1.5, -0.1, True, [0.5], float("nan"))]
        self.say_bytes(200, random.Random(text).choice(nonsense + wrong))

    def do_language(self, text: str, language: str) -> None:
        message = f"Attribute TOXICITY does not support request languages: {language}"
        kind = {"errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}
        self.say(400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": [kind]}})

    def do_refuse(self, *_: str) -> None:
        self.say(400, {"error": {"code": 400, "message": "Comment must be non-empty.", "status": "INVALID_ARGUMENT"}})

    def do_stranger(self, *_: str) -> None:
        sent = self.headers.get("x-goog-api-key")
        self.say(403, {"error": {"code": 403, "message": f"The key {sent} is not enabled."}})

    def do_echo(self, *_: str) -> None:
        """The key in a header, and across the place where a long message is cut."""
        sent = self.headers.get("x-goog-api-key")
        self.say(403, {"error": {"code": 403, "message": "x" * 285 + f"{sent} not enabled"}}, {"X-Echo": sent})

    def do_too_large(self, *_: str) -> None:
        self.say(413, {"error": {"code": 413, "message": "Request Entity Too Large"}})

    def do_nested(self, *_: str) -> None:
        self.say_bytes(400, b'{"error": ' + b"[" * 100_000)

    def do_bad_key(self, *_: str) -> None:
        details = [{"reason": "API_KEY_INVALID"}]
        self.say(400, {"error": {"code": 400, "message": "API key not valid.", "details": details}})

    def do_moved(self, *_: str) -> None:
        self.say(302, {}, {"Location": "http://127.0.0.1:9/elsewhere"})

    def say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.say_bytes(status, json.dumps(answer).encode(), headers)

    def say_bytes(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
