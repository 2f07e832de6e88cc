"""Transfer matrices made by hand, or at random with a planted truth."""

import numpy as np

import xlingtox as xt
from xlingtox.models.identity import Identity
from xlingtox.scoring import ScorerIdentity

SIX = ("en", "es", "fr", "de", "ru", "zh")


def matrix(drops, sources=SIX, targets=None, *, base=0.5, n_prompts=8, noise=0.0, shuffled=None, seed=0, **fields):
    """A matrix with these drops, whose prompts scatter around them.

    Args:
        base: the toxicity of the base, of every prompt; or by target.
        noise: the standard deviation of a prompt's drop. Half of it is that of its meaning, in all cells.
        shuffled: drops under shuffled labels; None for no control.
    """
    sources, targets = tuple(sources), tuple(sources if targets is None else targets)
    rng = np.random.default_rng(seed)
    before = np.broadcast_to(np.asarray(base, float)[..., None], (len(targets), n_prompts))
    before = before * rng.uniform(0.7, 1.3, before.shape) if noise else before
    tables = [drops, *([] if shuffled is None else [shuffled])]
    after = []
    for table in tables:
        own, common = (
            rng.normal(size=(len(sources), len(targets), n_prompts)),
            rng.normal(size=(len(sources), 1, n_prompts)),
        )
        scatter = noise * (own + common) / np.sqrt(2)
        after += [*(before * (1 - np.asarray(table, float)[..., None] + scatter))]
    toxicity = np.stack([before, *after])
    toxicity = toxicity.clip(0, 1) if noise else toxicity
    values = {"average_toxicity": toxicity, "degenerate": np.zeros_like(toxicity)}
    return xt.TransferMatrix(
        **{
            "sources": sources,
            "targets": targets,
            "values": values,
            "perplexity": np.full((len(toxicity), len(targets)), 10.0),
            "meanings": np.tile(np.arange(n_prompts), (len(targets), 1)),
            "properties": {},
            "scorer": ScorerIdentity("wordlist", "1", targets),
            "model": Identity("mini", None, "float32", "abc", None),
            "recipe": {"method": "dpo", "learning_rate": 1e-4},
            "has_shuffled": shuffled is not None,
        }
        | fields
    )
