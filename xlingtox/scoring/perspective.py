"""Score texts with Google's Perspective API, or with another server that answers in the same way."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pandas as pd
from jaxtyping import Float
from pyrate_limiter import Limiter, Rate

from xlingtox.checking import checked
from xlingtox.languages import CODES
from xlingtox.remote import Key, Problem, Stopped, Temporary, arriving, patiently, response_of, usable_key
from xlingtox.scoring.attributes import ATTRIBUTE, ATTRIBUTES, Answer, OneAttribute, attribute_score, check_attributes
from xlingtox.scoring.cache import Cached
from xlingtox.scoring.protocol import Arrived, UncoveredLanguage, UnscoredError, check_scorable
from xlingtox.text import well_formed

ENDPOINT = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"

LANGUAGES = frozenset({*CODES, "hi-Latn"})
"""The languages of the attributes: the 17, and Hindi in Latin letters."""

_AT_ONCE = 256
"""Texts of which all attributes are asked and kept before the next ones; a killed process loses at most these."""

_KEY = "PERSPECTIVE_API_KEY"
_LONGEST_MESSAGE = 300
"""The most characters of a server's error message that we repeat."""

_MOST_BYTES = 20_480
"""The most bytes of a text, by the API's limits."""

_MOST_THREADS = 32
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
"""Seconds before the second attempt at a text, and the most before a later one."""


class PerspectiveScorer:
    """A scorer that asks the Perspective API for the TOXICITY of a text (Lees et al. 2022, arXiv 2202.11176).

    `attributes` asks for five more, such as INSULT and THREAT, in the same request.

    Every score is kept on disk, as by `Cached`. Requests are spaced by `queries_per_second`. They are repeated at
    growing intervals after HTTP 429, 5xx, time-outs, broken connections and unreadable answers.

    An empty text is sent as one space, as in the paper's code. A text of more than 20,480 bytes is cut at its end.
    Texts are sent with `doNotStore`, which asks Google not to keep them.

    The API stops at the end of 2026. After that, give the `endpoint` of a server that answers in the same way, or use
    `PerspectiveReplay` for stored responses.

    Example:
        This needs a key and the network, so it does not run as a test.

        >>> scorer = xt.scoring.PerspectiveScorer(queries_per_second=1.0)  # doctest: +SKIP
        >>> scorer.score(["you are a fool"], ["en"])  # doctest: +SKIP
        array([0.8...])
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
            api_key: the key; None takes it from the environment variable PERSPECTIVE_API_KEY. It is sent as a header
                and written nowhere. For the same reason a scorer cannot be pickled.
            endpoint: the address of the API, without the key.
            queries_per_second: how many requests this scorer sends in a second, at most 1,000.
            cache: the file that keeps every score; None is the default file of `Cached`.
            attempts: how often a text is tried before it counts as failed.
            timeout: seconds that the server may be silent.
            progress: show a progress bar.

        Raises:
            ValueError: there is no key, or another argument is out of range.
            OSError: the file of scores cannot be written.
        """
        key = usable_key(os.environ.get(_KEY, "") if api_key is None else api_key)
        if key is None:
            raise ValueError(f"no usable API key: set the environment variable {_KEY}, or give api_key")
        if not endpoint.startswith(("https://", "http://")) or "?" in endpoint or "@" in endpoint:
            raise ValueError("the endpoint is no plain address: expected http(s)://host/path, with the key as api_key")
        if not 0 < queries_per_second <= 1000:
            raise ValueError(f"queries_per_second is {queries_per_second}: expected more than 0, at most 1000")
        if attempts < 1 or not timeout > 0:
            raise ValueError(f"attempts is {attempts}, timeout {timeout}: expected at least 1, and more than 0 seconds")
        self._key = Key(key, "X-Goog-Api-Key")
        self._endpoint, self._timeout, self._attempts = endpoint, timeout, attempts
        self._threads = min(_MOST_THREADS, math.ceil(queries_per_second))
        # One call at a time, evenly spaced. Without buffer_ms=0 the library would lengthen every wait.
        self._rate = Limiter(Rate(1, max(1, round(1000 / queries_per_second))), buffer_ms=0)
        self._cached = Cached(self, path=cache, progress=progress)
        self._progress = progress

    @property
    def name(self) -> str:
        return "Perspective"

    @property
    def revision(self) -> str:
        """The attribute, and the endpoint if it is not Google's. The API does not say which model answered."""
        return ATTRIBUTE if self._endpoint == ENDPOINT else f"{ATTRIBUTE} {self._endpoint}"

    @property
    def languages(self) -> frozenset[str]:
        return LANGUAGES

    def __repr__(self) -> str:
        return f"PerspectiveScorer(endpoint={self._endpoint!r})"

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return scores from the file, and ask the API for those that the file does not have.

        Raises:
            UncoveredLanguage: a language that the API does not cover for this attribute, by our list or its answer.
            UnscoredError: some texts failed at every attempt, or the API refused them. The scores of the others are
                kept, so that the next call continues with the rest.
        """
        return self._cached.score(texts, languages)

    @checked
    def attributes(
        self, texts: Sequence[str], languages: Sequence[str], *, names: Sequence[str] = ATTRIBUTES
    ) -> pd.DataFrame:
        """Return the scores of several attributes, with one request for each text; TOXICITY is only one of six.

        Each score is kept on disk under its attribute, so that `score` and this method share those of TOXICITY. A text
        of which any attribute is missing there is asked again for all of `names`.

        Args:
            names: which of `ATTRIBUTES` to ask for.

        Returns:
            One row for each text, in order, and one column for each name.

        Raises:
            ValueError: an unknown name, or none.
            UncoveredLanguage, UnscoredError: as in `score`.

        Example:
            This needs a key and the network, so it does not run as a test.

            >>> scorer = xt.scoring.PerspectiveScorer()  # doctest: +SKIP
            >>> scorer.attributes(["you are a fool"], ["en"]).columns.tolist()  # doctest: +SKIP
            ['TOXICITY', 'SEVERE_TOXICITY', 'IDENTITY_ATTACK', 'INSULT', 'PROFANITY', 'THREAT']
        """
        check_scorable(self, texts, languages)
        asked = check_attributes(names)
        ask = partial(self._answers, names=asked)
        scores = {name: np.empty(len(texts)) for name in asked}
        for start in range(0, len(texts), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            answers: dict[tuple[str, str], Answer] = {}
            memories = {
                name: Cached(OneAttribute(self, name, ask, answers), path=self._cached.path, progress=self._progress)
                for name in asked
            }
            try:
                for name, memory in memories.items():
                    scores[name][rows] = memory.score(texts[rows], languages[rows])
            except (UnscoredError, UncoveredLanguage):
                for memory in memories.values():
                    memory.score([text for _, text in answers], [language for language, _ in answers])
                raise
        return pd.DataFrame(scores)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield scores as they arrive, without the file of scores.

        A failed text does not stop the others, unless the service seems to be down or refuses the key. The errors of
        `score` are raised at the end.
        """
        check_scorable(self, texts, languages)
        for i, answer in self._answers(texts, languages, (ATTRIBUTE,)):
            yield [i], np.array([answer[ATTRIBUTE]])

    def _answers(
        self, texts: Sequence[str], languages: Sequence[str], names: Sequence[str]
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the position and the scores of each text as they arrive; raise for the rest at the end."""
        requests = [_request(text, language, names) for text, language in zip(texts, languages, strict=True)]
        problems: list[Problem] = []
        n_answered = 0
        with self._key.out_of_logs(), httpx2.Client(auth=self._key, timeout=self._timeout) as client:

            def ask(i: int, given_up: threading.Event) -> Answer:
                return patiently(
                    lambda: self._ask(client, requests[i]),
                    attempts=self._attempts,
                    first_wait=_FIRST_WAIT,
                    longest_wait=_LONGEST_WAIT,
                    given_up=given_up,
                )

            with contextlib.closing(arriving(len(texts), ask, problems, threads=self._threads)) as answers:
                for i, answer in answers:
                    n_answered += 1
                    yield i, answer
        if problems:
            raise _error(problems, len(texts), untried=len(texts) - n_answered - len(problems))

    def _ask(self, client: httpx2.Client, request: dict[str, Any]) -> Answer:
        """Ask once, as soon as the rate allows it."""
        self._rate.try_acquire("Perspective")
        response = response_of(lambda: client.post(self._endpoint, json=request))
        if response.status_code == 200:
            return _values(response, request["requestedAttributes"])
        raise self._problem(response)

    def _problem(self, response: httpx2.Response) -> Exception:
        """Return the error that an answer without a score stands for."""
        status = response.status_code
        message, kinds = _error_details(response)
        # A server's message may repeat the request, and with it the key.
        shown = self._key.hidden_in(message)[:_LONGEST_MESSAGE]
        reason = f"HTTP {status}: {shown}" if shown else f"HTTP {status}"
        if "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE" in kinds or "does not support request languages" in message:
            return _Unsupported(reason)
        wrong_key = status == 400 and ("API_KEY_INVALID" in kinds or "API key" in message)
        return Stopped(reason) if wrong_key or status < 400 or status in (401, 403, 404) else _Refused(reason)


class _Refused(Problem):
    """The API refuses this text."""


class _Unsupported(Problem):
    """The API does not cover this language."""


def _sent(text: str) -> str:
    """Return the text as it is sent: not too long, and never empty."""
    data = well_formed(text).encode("utf-8")
    return data[:_MOST_BYTES].decode("utf-8", "ignore") or " "


def _request(text: str, language: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "comment": {"text": _sent(text)},
        "languages": [language],
        "requestedAttributes": {name: {} for name in names},
        "doNotStore": True,
    }


def _values(response: httpx2.Response, names: Iterable[str]) -> Answer:
    try:
        answer = response.json()
        return {name: attribute_score(answer, name) for name in names}
    except (ValueError, RecursionError):
        raise Temporary("answered nonsense") from None


def _error_details(response: httpx2.Response) -> tuple[str, str]:
    """Return the message in an error's answer, and its details as one text."""
    try:
        error = response.json()["error"]
        return str(error.get("message", "")), str(error.get("details", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""


def _error(problems: Sequence[Exception], n: int, untried: int) -> Exception:
    """Return one error that counts all problems by their reasons."""
    outcomes: dict[type[Exception], str] = {
        Temporary: "failed at every attempt",
        _Refused: "refused",
        _Unsupported: "in a language that is not supported",
        Stopped: "given up",
    }
    kinds = [next(kind for kind in outcomes if isinstance(problem, kind)) for problem in problems]
    reasons = Counter(zip(kinds, map(str, problems), strict=True))
    parts = [f"{count} {outcomes[kind]} ({reason})" for (kind, reason), count in reasons.most_common(5)]
    parts += [f"{untried} not tried any more"] if untried else []
    left = reasons.total() + untried
    message = f"Perspective has no score for {left} of {n} texts: {'; '.join(parts)}. The scores of the others are kept"
    if all(isinstance(problem, _Unsupported) for problem in problems):
        return UncoveredLanguage(message)
    return UnscoredError(f"{message}: score again to go on", left)
