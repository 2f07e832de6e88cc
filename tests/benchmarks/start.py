"""How long it takes to begin: `python tests/benchmarks/start.py [--rounds 5]`.

Each line is the median of some rounds, each in a new process, and its ratio to `import torch, transformers`.
`python -X importtime -c "import xlingtox"` shows where the time of an import goes.
"""

import argparse
import statistics
import subprocess
import sys
import time

STARTS = {
    "import torch, transformers": ["-c", "import torch, transformers"],
    "import xlingtox": ["-c", "import xlingtox"],
    "xlingtox.HookedLM": ["-c", "import xlingtox; xlingtox.HookedLM"],
    "every public name": ["-c", "import xlingtox as xt; [getattr(xt, name) for name in dir(xt)]"],
    "python -m xlingtox --help": ["-m", "xlingtox", "--help"],
    "python -c pass": ["-c", "pass"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, arguments in STARTS.items():
            taken[name].append(seconds(arguments))
    base = statistics.median(taken["import torch, transformers"])
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:<28} {median:6.2f} s   {median / base:5.2f} x")


if __name__ == "__main__":
    main()
