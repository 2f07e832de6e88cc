"""Requests to servers: several in flight at a time, repeated while a server is busy, with a key that is not shown."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

import httpx2
import tenacity

T = TypeVar("T")

_BUSY = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed later."""

_GIVE_UP_AFTER = 3
"""After this many requests in a row that failed at every attempt, the server counts as down."""

_LOGGERS = ("httpx2", "httpcore2")


class Problem(Exception):
    """One request has no answer that can be used.

    Attributes:
        shows_failure: whether a few of these in a row mean that the server fails, and not that one request is wrong.
    """

    shows_failure = False


class Temporary(Problem):
    """A failure that another attempt may cure.

    Attributes:
        after: the seconds that the server asks to wait.
        attempts: after how many attempts that end like this one there is no hope; None leaves it to the caller.
    """

    shows_failure = True

    def __init__(self, reason: str, after: float = 0.0, attempts: int | None = None) -> None:
        super().__init__(reason)
        self.after, self.attempts = after, attempts


class Unconnected(Temporary):
    """Nothing answers at the address."""


class Stopped(Problem):
    """The server refuses every request, because the key or the address is wrong."""


def commonest(problems: Iterable[Problem]) -> str:
    """Return the three commonest reasons with their counts; where a server refuses everything, only the reasons why."""
    known = list(problems)
    stopped = [problem for problem in known if isinstance(problem, Stopped)]
    reasons = Counter(str(problem) for problem in stopped or known).most_common(3)
    return "; ".join(f"{reason} ({count} {'time' if count == 1 else 'times'})" for reason, count in reasons)


class Key(httpx2.Auth):
    """A key, sent as a header. It is never part of an address, because logs and errors quote addresses.

    Example:
        >>> from xlingtox.remote import Key
        >>> Key("secret", "Authorization", "Bearer ").hidden_in("Bearer secret is refused")
        'Bearer *** is refused'
    """

    def __init__(self, key: str, header: str, prefix: str = "") -> None:
        self._key, self._header, self._prefix = key, header, prefix

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers[self._header] = f"{self._prefix}{self._key}"
        yield request

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("this holds an API key, which is not pickled or copied: make another one")

    def hidden_in(self, text: str) -> str:
        """Return a text with asterisks in place of the key."""
        for spelling in (self._key, repr(self._key)[1:-1]):
            text = text.replace(spelling, "***")
        return text

    @contextlib.contextmanager
    def out_of_logs(self) -> Iterator[None]:
        """Hide the key in the HTTP library's log lines inside the block: a server may send the key back."""

        def hide(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.hidden_in(record.getMessage()), ()
            return True

        # A filter sees only what is logged to its own logger, so each logger below gets one too.
        loggers = [logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(_LOGGERS)]
        for logger in loggers:
            logger.addFilter(hide)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(hide)


def usable_key(key: str) -> str | None:
    """Return a key without the white space around it; None where no header could hold it.

    With a line break at its end, the HTTP library would quote the key in an error.
    """
    key = key.strip()
    return key if key and key.isascii() and key.isprintable() else None


def response_of(send: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Send one request, and return the server's response.

    Raises:
        Temporary: no response came, or one that asks to come back later.
    """
    try:
        response = send()
    except httpx2.TimeoutException:
        raise Temporary("timed out") from None
    except httpx2.ConnectError as error:
        raise Unconnected(f"connection failed: {type(error).__name__}") from None
    except httpx2.TransportError as error:
        raise Temporary(f"connection failed: {type(error).__name__}") from None
    except httpx2.DecodingError:
        raise Temporary("answered nonsense") from None
    if response.status_code in _BUSY or response.status_code >= 500:
        after = response.headers.get("retry-after", "")
        raise Temporary(f"HTTP {response.status_code}", float(after) if after.isdecimal() else 0.0)
    return response


def patiently(
    ask: Callable[[], T], *, attempts: int, first_wait: float, longest_wait: float, given_up: threading.Event
) -> T:
    """Ask until there is an answer, the attempts run out, or `given_up` is set. Waits grow from one to the next.

    Raises:
        Temporary: the last attempt failed too.
    """

    def pause(state: tenacity.RetryCallState) -> float:
        jitter = tenacity.wait_random(0, first_wait)
        grown = (tenacity.wait_exponential(multiplier=first_wait, max=longest_wait) + jitter)(state)
        problem = state.outcome.exception() if state.outcome else None
        return max(grown, min(getattr(problem, "after", 0.0), longest_wait))

    class Hopeless(tenacity.stop.stop_base):
        def __call__(self, state: tenacity.RetryCallState) -> bool:
            problem = state.outcome.exception() if state.outcome else None
            return state.attempt_number >= min(attempts, getattr(problem, "attempts", None) or attempts)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Temporary),
        stop=Hopeless() | tenacity.stop_when_event_set(given_up),
        wait=pause,
        sleep=tenacity.sleep_using_event(given_up),
        reraise=True,
    )
    return retrying(ask)


def arriving(
    n: int, ask: Callable[[int, threading.Event], T], problems: list[Problem], *, threads: int
) -> Generator[tuple[int, T], None, None]:
    """Make n requests, and yield the number of each and its answer as the answers arrive.

    A request that fails does not stop the others. But after a few in a row that failed at every attempt, or one that
    shows that all will be refused, no more are made.

    Args:
        ask: a function that makes the request of a number. When its event is set, it need not try any longer.
        problems: a list to which failed requests are added. Requests that were not tried any more are not.
        threads: how many requests are in flight at most.
    """
    failures_in_a_row = 0
    remaining = iter(range(n))
    running: dict[Future[T], int] = {}
    given_up = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                room = 0 if given_up.is_set() else 2 * threads - len(running)
                for i in islice(remaining, room):
                    running[pool.submit(ask, i, given_up)] = i
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    i = running.pop(future)
                    try:
                        answer = future.result()
                    except CancelledError:
                        continue
                    except Problem as problem:
                        problems.append(problem)
                        failures_in_a_row += problem.shows_failure
                        if failures_in_a_row >= _GIVE_UP_AFTER or isinstance(problem, Stopped):
                            given_up.set()
                            _cancel(running)
                    else:
                        failures_in_a_row = 0
                        yield i, answer
        finally:
            given_up.set()
            _cancel(running)


def _cancel(running: Iterable[Future[Any]]) -> None:
    for future in running:
        future.cancel()
