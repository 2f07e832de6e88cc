import math

import numpy as np
import pytest
from datasets import Dataset

from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.fluency import perplexities
from xlingtox.frontiers.strengths import LIMIT, Rise, Search, targets
from xlingtox.neurons.neuron_set import NeuronSet

HELD_OUT = Dataset.from_dict(
    {
        "language": ["en", "es", "en", "en", "es", "en", "es"],
        "text": [
            *("the cat sat", "la casa es", "the dog", "a house and a dog", "el gato duerme", "away from the house"),
            "en la cama",
        ],
    }
)
EDIT = Offset(NeuronSet.of([(0, 3), (1, 5)]), 3.0)


def searched(ratio, wanted=None):
    """The strengths that are chosen where a strength has this ratio, and all that were tried."""
    search = Search(targets([1.05, 1.1, 1.2]) if wanted is None else wanted)
    while tried := search.untried():
        assert not set(tried) & set(search.ratios)
        search.ratios |= {strength: ratio(strength) for strength in tried}
    return search.chosen(), search.ratios


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 8.0])
@pytest.mark.parametrize(
    "rise",
    [
        lambda s: s,
        lambda s: s**2,
        lambda s: s**4,
        lambda s: s**2 - 0.1 * s,  # cheaper than nothing at first
        lambda s: 0.5 * s**2 if s < 1 else math.inf,  # broken at once
    ],
    ids=["linear", "square", "fourth power", "falls first", "breaks"],
)
def test_strengths_lie_where_perplexity_has_risen_as_wanted(rise, scale):
    def ratio(strength):
        return math.exp(min(700.0, 0.4 * rise(strength / scale)))

    strengths, tried = searched(ratio)
    assert len(strengths) == 6
    assert list(strengths) == sorted(strengths)
    assert len(tried) <= 15
    ratios = [ratio(strength) for strength in strengths]
    for wanted in (1.025, 1.05, 1.1, 1.2):
        # Near enough that the ratios at budgets are interpolated between close neighbours.
        nearest = min(ratios, key=lambda value: abs(math.log(value / wanted)))
        assert nearest - 1 == pytest.approx(wanted - 1, rel=0.3)


def test_the_published_strength_is_measured_where_it_lies_within_the_dial():
    cheap, _ = searched(lambda strength: 1 + 0.01 * strength**2)
    assert 1.0 in cheap
    dear, _ = searched(lambda strength: 1 + 10 * strength**2)
    assert 1.0 not in dear
    assert dear[0] == pytest.approx(dear[1] / 2, rel=0.01)


def test_a_dial_that_costs_nothing_goes_to_the_limit():
    strengths, tried = searched(lambda strength: 1 + 1e-4 * strength)
    assert strengths[-1] == LIMIT == max(tried)
    assert len(strengths) == 6
    assert 1.0 in strengths
    partly, _ = searched(lambda strength: min(1.12, 1 + 0.06 * strength))
    assert partly[-1] == LIMIT
    assert any(strength == pytest.approx(0.05 / 0.06, rel=0.05) for strength in partly)


def test_a_dial_that_breaks_at_the_least_strength_ends_there():
    strengths, tried = searched(lambda strength: math.inf)
    assert 0 < strengths[0] < strengths[-1] < 1e-3
    assert len(tried) <= 20


def test_targets_follow_the_budgets():
    assert targets([1.1]) == pytest.approx((1.05, 1.1, 1.2, 1.3, 1.5), abs=0.051)
    assert targets([2.0])[-1] == pytest.approx(2.2)
    assert set(np.round(targets([1.3, 1.02]), 6)) >= {1.02, 1.3}


def test_the_rise_is_that_of_every_second_text_of_each_language(lm):
    rise = Rise(lm, HELD_OUT)
    chosen = HELD_OUT.select([0, 3, 1, 6])
    before = perplexities(lm, chosen, progress=False)
    with EDIT.on(lm):
        after = perplexities(lm, chosen, progress=False)
    expected = np.sqrt(after["en"] / before["en"] * after["es"] / before["es"])
    assert rise.under([EDIT, Offset(EDIT.neurons, 0.0)]) == pytest.approx([expected, 1.0])
    assert rise.of(lm) == 1.0
    # Texts of the other half change nothing.
    texts = [text if i in (0, 3, 1, 6) else "kot kot" for i, text in enumerate(HELD_OUT["text"])]
    other = Dataset.from_dict({"language": HELD_OUT["language"], "text": texts})
    assert Rise(lm, other).under([EDIT]) == rise.under([EDIT])
    assert rise.under([Offset(EDIT.neurons, 1e30)]) == [math.inf]
