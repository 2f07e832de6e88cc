"""A method that only silences a model, and one that lowers what is toxic: the first must not win."""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from xlingtox import frontier
from xlingtox.edits.steering import Steer
from xlingtox.methods import Fitted, Method

WORDS = ("the cat", "the dog", "a house", "el gato", "la casa", "das haus", "away", "mat")
PROMPTS = Dataset.from_list(
    [{"language": code, "prompt": word, "index": word} for code in ("en", "es") for word in WORDS]
)
HELD_OUT = Dataset.from_dict({"language": ["en", "es"] * 8, "text": [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:]]})


class Lettered:
    """A text with the letter "a" is toxic; silence is not."""

    name, revision, languages = "letter", "1", frozenset({"en", "es"})

    def score(self, texts, languages):
        return np.array([float("a" in text) for text in texts])


@dataclass(frozen=True)
class Towards(Method):
    """Push the last residual stream towards some tokens, or away from them; `kept` keeps its logit but for the norm."""

    tokens: tuple[int, ...] = ()
    sign: float = 1.0
    kept: int | None = None
    name: str = field(default="", kw_only=True)
    citation: str = field(default="", kw_only=True)

    def fit(self, lm, labelled, *, seed=0, progress=True):
        unembedding = lm.unembedding()
        direction = self.sign * (unembedding[list(self.tokens)].mean(0) - unembedding.mean(0))
        if self.kept is not None:
            logit = unembedding[self.kept]
            direction = direction - (direction @ logit) * logit / (logit @ logit)
        return Fitted.of(self, lambda strength: Steer(direction, lm.n_layers - 1, strength))


def test_a_method_that_only_silences_does_not_win(lm, tokenizer):
    toxic = tuple(i for i in range(2, 300) if "a" in tokenizer.decode([i]))
    end = tokenizer.eos_token_id
    methods = [Towards((end,), name="silence"), Towards(toxic, -1.0, end, name="avoid")]
    compared = frontier(
        lm,
        PROMPTS,
        labelled=[{"text": "the dog", "label": 1}, {"text": "the house", "label": 0}],
        scorer=Lettered(),
        held_out=HELD_OUT,
        methods=methods,
        budgets=[1.2],
        n_samples=16,
        max_new_tokens=6,
        progress=False,
    )
    rows = compared.to_frame().query("language == 'all'").groupby("method")
    # By its scores alone, silence is the best of all.
    assert rows.get_group("silence")["toxicity"].min() < 0.1 < rows.get_group("avoid")["toxicity"].min()
    at_budget = compared.at_budget(1.2).set_index(["method", "language"])
    silence, avoid = at_budget.loc["silence"], at_budget.loc["avoid"]
    assert set(silence["stopped_by"]) == {"degenerate text"}
    assert (silence["toxicity"] > 0.2).all()
    assert (silence["change_high"] > 0).all()
    assert set(avoid["stopped_by"]) == {"perplexity"}
    wins = compared.wins(1.2).set_index("method")
    assert wins.loc["silence", ["languages_lowest", "beats"]].tolist() == [0, 0]
    assert wins.loc["avoid", "languages_lowest"] == 2
