"""How much is imported before it is needed: next to nothing."""

import subprocess
import sys

import pytest

import xlingtox as xt

HEAVY = ("torch", "transformers", "transformer_lens", "trl", "peft", "datasets", "pandas", "numpy", "plotly", "sklearn")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a new process has imported after `code`."""
    asked = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules), sep=' ')"
    ended = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=600)
    return set(ended.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_by("import xlingtox as xt; dir(xt)") == set()


def test_the_help_is_shown_without_a_model() -> None:
    shown = "import contextlib, io, xlingtox.cli\nwith contextlib.suppress(SystemExit), "
    shown += "contextlib.redirect_stdout(io.StringIO()): xlingtox.cli.main(['--help'])"
    assert loaded_by(shown) == set()


@pytest.mark.parametrize("name", ["HookedLM", "tuning", "study"])
def test_what_few_need_waits_until_it_is_asked_for(name: str) -> None:
    assert loaded_by(f"import xlingtox; xlingtox.{name}") & {"transformer_lens", "trl", "peft"} == set()


def test_dir_lists_the_public_names_alone() -> None:
    assert dir(xt) == sorted(xt.__all__)
    assert all(getattr(xt, name) is not None for name in dir(xt))
    with pytest.raises(AttributeError, match="no attribute 'HokedLM'"):
        xt.HokedLM  # noqa: B018
