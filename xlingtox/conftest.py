"""Give the examples in docstrings the names that they begin with. Only pytest reads this file."""

from collections.abc import Iterator
from typing import Any

import pytest

import xlingtox as xt


@pytest.fixture(scope="session")
def example_values() -> dict[str, Any]:
    lm = xt.HookedLM.load("mini")
    prompts = xt.mini.prompts(n=2, languages=["en", "es"])
    probe = xt.Probe.fit(lm, xt.mini.labelled("en", n=200), progress=False)
    candidates = xt.localize.by_cosine(lm, probe, k=100)
    activations = xt.collect_activations(lm, prompts, candidates, max_new_tokens=8, progress=False)
    sources = candidates.where(activations.mean(language="en") > 0)
    names = ("lm", "prompts", "probe", "candidates", "activations", "sources")
    return {"xt": xt} | {name: value for name, value in locals().items() if name in names}


@pytest.fixture(scope="session", autouse=True)
def file_of_log_probs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the reference's log-probabilities out of the user's folder."""
    file = tmp_path_factory.mktemp("reference") / "reference.sqlite"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xlingtox.tuning.reference.default_path", lambda: file)
        yield


@pytest.fixture(autouse=True)
def names_in_examples(request: pytest.FixtureRequest) -> None:
    """Give a docstring's example the model and the results that it begins with."""
    if isinstance(request.node, pytest.DoctestItem):
        namespace = request.getfixturevalue("doctest_namespace")
        namespace.update(request.getfixturevalue("example_values"))
        namespace["tmp_path"] = request.getfixturevalue("tmp_path")
