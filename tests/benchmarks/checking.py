"""What the check of types costs: `collect_activations` on the miniature with and without it, in alternating order.

Run with `python tests/benchmarks/checking.py [rounds]`. It prints the median of the rounds' ratios of processor time,
and what the check of the call's own arguments takes alone.
"""

import inspect
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import xlingtox as xt
from xlingtox.checking import checked


def guards() -> Iterator[tuple[Any, str, Any, Any]]:
    """Where each check stands: the owner, the name there, the check, and what is behind it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "xlingtox":
            continue
        classes = [held for held in vars(module).values() if inspect.isclass(held) and held.__module__ == name]
        for owner in (module, *classes):
            for attribute, held in list(vars(owner).items()):
                kind = type(held) if isinstance(held, classmethod | staticmethod) else lambda plain: plain
                call = getattr(held, "__func__", held)
                if inspect.isfunction(call) and hasattr(call, "__checked__"):
                    yield owner, attribute, held, kind(call.__checked__)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(rounds: int) -> None:
    lm = xt.HookedLM.load("mini")
    prompts = xt.mini.prompts(n=2)
    neurons = xt.NeuronSet.of([(layer, index) for layer in range(lm.n_layers) for index in range(25)])
    places = list(guards())

    def work() -> None:
        xt.collect_activations(lm, prompts, neurons, progress=False)

    def switch(on: bool) -> None:
        for owner, attribute, check, bare in places:
            setattr(owner, attribute, check if on else bare)

    work()
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for on in (True, False) if turn % 2 else (False, True):
            switch(on)
            times[on].append(seconds(work))
    switch(True)
    bare, guarded = (statistics.median(times[on]) for on in (False, True))
    ratio = statistics.median(on / off for on, off in zip(times[True], times[False], strict=True))
    print(f"{len(places)} checks; collect_activations of {len(prompts)} prompts, {rounds} rounds, processor time")
    print(f"without {1000 * bare:.1f} ms, with {1000 * guarded:.1f} ms; median of the rounds' ratios {ratio:.4f}")

    call = xt.collect_activations.__checked__  # type: ignore[attr-defined]
    spent = alone(call, lm, prompts, neurons)
    print(f"the check of its four arguments alone: {1e6 * spent:.1f} us, {100 * spent / bare:.3f} % of the call")


def alone(call: Any, *args: Any) -> float:
    """Seconds that a call's arguments take to be checked: a call of the same arguments that does nothing."""
    empty: Any = types.FunctionType((lambda *args, **kwargs: None).__code__, call.__globals__, call.__name__)
    empty.__annotations__, empty.__signature__ = call.__annotations__, inspect.signature(call)
    guard = checked(empty)
    guard(*args, progress=False)
    n = 2000
    return seconds(lambda: [guard(*args, progress=False) for _ in range(n)]) / n


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
