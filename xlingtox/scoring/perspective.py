"""PerspectiveScorer: Google's Perspective API, or a server that speaks as it does."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import tenacity
from jaxtyping import Float
from pyrate_limiter import Limiter, Rate

from xlingtox.checking import checked
from xlingtox.languages import CODES
from xlingtox.scoring.cache import Cached
from xlingtox.scoring.protocol import Arrived, UncoveredLanguage, UnscoredError, check_scorable
from xlingtox.text import well_formed

ENDPOINT = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"

ATTRIBUTE = "TOXICITY"
"""The attribute that the paper scores with."""

LANGUAGES = frozenset({*CODES, "hi-Latn"})
"""Languages of the attribute: the 17, and Hindi in Latin letters."""

_KEY = "PERSPECTIVE_API_KEY"
_LONGEST_MESSAGE = 300
"""Characters of what an error's answer says."""

_LOGGERS = ("httpx2", "httpcore2")
_MOST_BYTES = 20_480
"""Of a comment, by the API's limits."""

_MOST_THREADS = 32
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
"""Seconds between two attempts at a text: the first time, and at most."""

_GIVE_UP_AFTER = 3
"""Texts in a row that failed at every attempt: then the service is down."""


class PerspectiveScorer:
    """The TOXICITY of a text by the Perspective API (Lees et al. 2022, arXiv 2202.11176).

    Calls keep to a rate, and are tried again, at growing intervals, after HTTP 429, 5xx, time-outs, broken connections
    and answers that make no sense. An empty text is sent as one space, as in the paper's code; of a text of more than
    20,480 bytes only the beginning is sent. Texts are sent with `doNotStore`. The API stops at the end of 2026: give
    the `endpoint` of another server with the same answers, or use `PerspectiveReplay` for responses that are stored.
    """

    @checked
    def __init__(
        self,
        *,
        api_key: str | None = None,
        endpoint: str = ENDPOINT,
        queries_per_second: float = 1.0,
        cache: str | Path | None = None,
        attempts: int = 8,
        timeout: float = 20.0,
        progress: bool = True,
    ) -> None:
        """
        Args:
            api_key: or the environment variable PERSPECTIVE_API_KEY. It is sent as a header, and written nowhere: a
                scorer with a key cannot be pickled.
            queries_per_second: of this scorer; at most 1,000.
            cache: the file that keeps every score, as in `Cached`; None: the user's own.
            attempts: at a text, before it counts as failed.
            timeout: seconds that the server may be silent.

        Raises:
            ValueError: no key, or another argument that makes no sense.
            OSError: the file of scores cannot be written.
        """
        # A line break at the end, as files have it, would be quoted with the key in an error of the HTTP library.
        key = (os.environ.get(_KEY, "") if api_key is None else api_key).strip()
        if not key or not (key.isascii() and key.isprintable()):
            raise ValueError(f"no usable API key: set the environment variable {_KEY}, or give api_key")
        if not endpoint.startswith(("https://", "http://")) or "?" in endpoint or "@" in endpoint:
            raise ValueError("the endpoint is no plain address: expected http(s)://host/path, with the key as api_key")
        if not 0 < queries_per_second <= 1000:
            raise ValueError(f"queries_per_second is {queries_per_second}: expected more than 0, at most 1000")
        if attempts < 1 or not timeout > 0:
            raise ValueError(f"attempts is {attempts}, timeout {timeout}: expected at least 1, and more than 0 seconds")
        self._key = _Key(key)
        self._endpoint, self._timeout, self._attempts = endpoint, timeout, attempts
        self._threads = min(_MOST_THREADS, math.ceil(queries_per_second))
        # One call at a time, evenly spaced; the library would otherwise add a safety margin to every wait.
        self._rate = Limiter(Rate(1, max(1, round(1000 / queries_per_second))), buffer_ms=0)
        self._cached = Cached(self, path=cache, progress=progress)

    @property
    def name(self) -> str:
        return "Perspective"

    @property
    def revision(self) -> str:
        """The attribute, and the endpoint where it is not Google's; the API does not say which model answered."""
        return ATTRIBUTE if self._endpoint == ENDPOINT else f"{ATTRIBUTE} {self._endpoint}"

    @property
    def languages(self) -> frozenset[str]:
        return LANGUAGES

    def __repr__(self) -> str:
        return f"PerspectiveScorer(endpoint={self._endpoint!r})"

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Scores from the cache, and from the API for what is not there.

        Raises:
            UncoveredLanguage: a language that the API does not know for this attribute, by our list or its answer.
            UnscoredError: some texts failed at every attempt, or the API refused them; all others are in the cache,
                so that scoring again goes on with what is left.
        """
        return self._cached.score(texts, languages)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Scores as they arrive, past the cache; raises as `score` does, after all that could be scored."""
        check_scorable(self, texts, languages)
        problems: list[Exception] = []
        in_a_row = 0
        todo = iter(range(len(texts)))
        running: dict[Future[float], int] = {}
        given_up = threading.Event()
        with (
            self._key.out_of_logs(),
            httpx2.Client(auth=self._key, timeout=self._timeout) as client,
            ThreadPoolExecutor(self._threads) as pool,
        ):
            try:
                while True:
                    room = 0 if given_up.is_set() else 2 * self._threads - len(running)
                    for i in islice(todo, room):
                        running[pool.submit(self._asked, client, texts[i], languages[i], given_up)] = i
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        i = running.pop(future)
                        try:
                            score = future.result()
                        except (_Passing, _Refused, _Unsupported, _Stopped, CancelledError) as problem:
                            problems.append(problem)
                            in_a_row += isinstance(problem, _Passing)
                            if in_a_row >= _GIVE_UP_AFTER or isinstance(problem, _Stopped):
                                given_up.set()
                                _cancel(running)
                        else:
                            in_a_row = 0
                            yield [i], np.array([score])
            finally:
                given_up.set()
                _cancel(running)
        if problems:
            raise _error(problems, len(texts), untried=sum(1 for _ in todo))

    def _asked(self, client: httpx2.Client, text: str, language: str, given_up: threading.Event) -> float:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(given_up),
            wait=_pause,
            sleep=tenacity.sleep_using_event(given_up),
            reraise=True,
        )
        return again(self._ask, client, text, language)

    def _ask(self, client: httpx2.Client, text: str, language: str) -> float:
        self._rate.try_acquire("Perspective")
        asked = {
            "comment": {"text": _sent(text)},
            "languages": [language],
            "requestedAttributes": {ATTRIBUTE: {}},
            "doNotStore": True,
        }
        try:
            response = client.post(self._endpoint, json=asked)
        except httpx2.TimeoutException:
            raise _Passing("timed out") from None
        except httpx2.TransportError as error:
            raise _Passing(f"connection failed: {type(error).__name__}") from None
        except httpx2.DecodingError:
            raise _Passing("answered nonsense") from None
        if response.status_code == 200:
            return _value(response)
        raise self._problem(response)

    def _problem(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        if status in (408, 429) or status >= 500:
            after = response.headers.get("retry-after", "")
            return _Passing(f"HTTP {status}", float(after) if after.isdecimal() else 0.0)
        message, kinds = _complaint(response)
        # What a server says may repeat what it was sent.
        shown = self._key.hidden_in(message)[:_LONGEST_MESSAGE]
        said = f"HTTP {status}: {shown}" if shown else f"HTTP {status}"
        if "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE" in kinds or "does not support request languages" in message:
            return _Unsupported(said)
        wrong_key = status == 400 and ("API_KEY_INVALID" in kinds or "API key" in message)
        return _Stopped(said) if wrong_key or status < 400 or status in (401, 403, 404) else _Refused(said)


class _Key(httpx2.Auth):
    """The key, for the requests alone: never part of an address, which logs and errors quote."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["X-Goog-Api-Key"] = self._key
        yield request

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a PerspectiveScorer holds an API key, which is not pickled or copied: make another one")

    def hidden_in(self, said: str) -> str:
        for written in (self._key, repr(self._key)[1:-1]):
            said = said.replace(written, "***")
        return said

    @contextlib.contextmanager
    def out_of_logs(self) -> Iterator[None]:
        """While calls are made: a server may send the key back, and the HTTP library logs all that it gets."""

        def hide(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.hidden_in(record.getMessage()), ()
            return True

        # Of a logger, and not of those below it: a filter sees what is logged there alone.
        loggers = [logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(_LOGGERS)]
        for logger in loggers:
            logger.addFilter(hide)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(hide)


class _Passing(Exception):
    """What another attempt may cure."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _Refused(Exception):
    """The API does not take this text."""


class _Unsupported(Exception):
    """The API does not take this language."""


class _Stopped(Exception):
    """The API takes nothing from us: a wrong key or address."""


def _pause(state: tenacity.RetryCallState) -> float:
    jitter = tenacity.wait_random(0, _FIRST_WAIT)
    grown = (tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT) + jitter)(state)
    problem = state.outcome.exception() if state.outcome else None
    return max(grown, min(getattr(problem, "after", 0.0), _LONGEST_WAIT))


def _sent(text: str) -> str:
    data = well_formed(text).encode("utf-8")
    return data[:_MOST_BYTES].decode("utf-8", "ignore") or " "


def _value(response: httpx2.Response) -> float:
    try:
        return attribute_score(response.json())
    except (ValueError, RecursionError):
        raise _Passing("answered nonsense") from None


def attribute_score(answer: Any) -> float:
    """The attribute's summary score in an answer of the API.

    Raises:
        ValueError: there is none in [0, 1].
    """
    try:
        value = answer["attributeScores"][ATTRIBUTE]["summaryScore"]["value"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"the response has no {ATTRIBUTE}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"the response has {value!r:.60} as {ATTRIBUTE}: expected a number in [0, 1]")
    return float(value)


def _complaint(response: httpx2.Response) -> tuple[str, str]:
    """What an error's answer says, and its kinds of error as one text."""
    try:
        error = response.json()["error"]
        return str(error.get("message", "")), str(error.get("details", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""


def _cancel(running: Iterable[Future[float]]) -> None:
    for future in running:
        future.cancel()


def _error(problems: Sequence[Exception], n: int, untried: int) -> Exception:
    """All problems in one sentence."""
    how: dict[type[Exception], str] = {
        _Passing: "failed at every attempt",
        _Refused: "refused",
        _Unsupported: "in a language that is not supported",
        _Stopped: "given up",
    }
    reasons = Counter((type(problem), str(problem)) for problem in problems if type(problem) in how)
    untried += len(problems) - reasons.total()
    told = [f"{count} {how[kind]} ({reason})" for (kind, reason), count in reasons.most_common(5)]
    told += [f"{untried} not tried any more"] if untried else []
    left = reasons.total() + untried
    message = f"Perspective has no score for {left} of {n} texts: {'; '.join(told)}. Those of the others are kept"
    if all(isinstance(problem, _Unsupported) for problem in problems):
        return UncoveredLanguage(message)
    return UnscoredError(f"{message}: score again to go on", left)
