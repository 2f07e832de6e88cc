import numpy as np
import pytest
import raw
import torch
from families import build

from xlingtox import mini
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import knowledge_margins, knowledge_margins_under
from xlingtox.evaluation.knowledge import _false_sources
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

PARALLEL = {
    "en": ["the cat sat", "the dog ran away", "the house is big", "a mat"],
    "es": ["el gato duerme", "un perro", "la casa es grande", "una cama"],
    "de": ["eine katze", "das ist ein hund", "ein haus", "im haus"],
}


def nats_per_token(model, tokenizer, source, target):
    """The mean loss of a translation's tokens in one pass of the plain model over one text."""
    start, ids = tokenizer(source)["input_ids"], tokenizer(f"{source} {target}")["input_ids"]
    assert ids[: len(start)] == start
    chances = raw.forward(model, torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -np.mean([float(chances[i - 1, ids[i]]) for i in range(len(start), len(ids))])


def margins_by_hand(model, tokenizer, parallel, code, seed=0):
    sources, targets = parallel["en"], parallel[code]
    false = _false_sources(sources, targets, seed)
    assert len(false) == len(targets)
    return [
        nats_per_token(model, tokenizer, sources[other], targets[i])
        - nats_per_token(model, tokenizer, sources[i], targets[i])
        for i, other in false.items()
    ]


def test_margins_equal_the_plain_models(family, tokenizer):
    found = knowledge_margins(family.lm, PARALLEL, progress=False)
    assert list(found) == ["es", "de"]
    for code, margins in found.items():
        assert margins == pytest.approx(margins_by_hand(family.model, tokenizer, PARALLEL, code), abs=1e-4)


def test_margins_under_edits_are_those_of_each_edit_alone(family):
    edits = [Offset(NeuronSet.of([(0, 3), (1, 7)]), amount) for amount in (2.0, -2.0)]
    together = knowledge_margins_under(family.lm, edits, PARALLEL, seed=3, progress=False)
    for edit, found in zip(edits, together, strict=True):
        with edit.on(family.lm):
            alone = knowledge_margins(family.lm, PARALLEL, seed=3, progress=False)
        for code, margins in alone.items():
            assert found[code] == pytest.approx(margins, abs=1e-5)
    assert not np.allclose(together[0]["es"], together[1]["es"], atol=1e-2)


def test_every_source_serves_once_as_a_false_one_of_about_its_length():
    table = mini.parallel(n=100, languages=["en", "ja"])
    sources, targets = list(table["en"]), list(table["ja"])
    false = _false_sources(sources, targets, 0)
    assert list(false) == sorted(false.values()) == list(range(100))
    assert all(i != other for i, other in false.items())
    lengths, others = np.array([len(text) for text in sources]), list(false.values())
    assert np.abs(np.log(lengths / lengths[others])).mean() < 0.1 < np.abs(np.log(lengths / lengths[::-1])).mean()
    assert false == _false_sources(sources, targets, 0) != _false_sources(sources, targets, 1)


def test_no_source_is_false_that_the_sentence_translates_elsewhere():
    """A cat has two translations, and two sources share one."""
    sources, targets = ["a cat", "a cat", "a dog", "the dog"], ["un gato", "una gata", "un perro", "un perro"]
    for seed in range(5):
        false = _false_sources(sources, targets, seed)
        assert {sources[false[i]] for i in (0, 1)} == {"a dog", "the dog"}
        assert {sources[false[i]] for i in (2, 3)} == {"a cat"}


def test_a_model_that_ignores_the_source_knows_nothing(two_word_model):
    """The next word depends on the last word of the source alone, which is the same in all sources."""
    _, lm = two_word_model(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    parallel = {"en": ["w0 w1", "w1 w1", "w0 w0 w1"], "es": ["w0", "w1", "w0 w1"]}
    assert knowledge_margins(lm, parallel, progress=False)["es"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_translation_without_a_false_source_is_left_out(lm):
    """Three sources share a translation, and one false source serves only once."""
    parallel = {"en": ["a cat", "the cat", "cat", "a dog"], "es": ["un gato", "un gato", "un gato", "un perro"]}
    assert len(knowledge_margins(lm, parallel, progress=False)["es"]) == 2


def test_the_miniature_tells_true_from_false_in_every_language_and_not_by_the_sentences_alone():
    lm, n = HookedLM.load("mini"), 24
    table = mini.parallel(n=n)
    found = knowledge_margins(lm, table, progress=False)
    assert len(found) == 16
    # 19 of 24 or more are right by chance in 0.3 % of languages.
    assert {code for code, margins in found.items() if (margins > 0).sum() < 19} == set()
    misplaced = {"en": list(table["en"]), "es": [*table["es"][n // 2 :], *table["es"][: n // 2]]}
    assert abs(knowledge_margins(lm, misplaced, progress=False)["es"].mean()) < 0.5 < found["es"].mean()


def test_pairs_beyond_the_context_are_left_out_and_one_language_needs_some(lm):
    long = {"en": [*PARALLEL["en"], "the cat " * 40], "es": [*PARALLEL["es"], "el gato " * 40]}
    assert 0 < len(knowledge_margins(lm, long, progress=False)["es"]) < 5
    only_long = {"en": ["the cat " * 40, "the dog " * 40], "es": ["el gato " * 40, "el perro " * 40]}
    with pytest.raises(ValueError, match="no pair of parallel sentences in es fits the model's context of 64 tokens"):
        knowledge_margins(lm, only_long, progress=False)


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_margins_in_other_families(tokenizer, name):
    model = build(name)
    found = knowledge_margins(HookedLM.load(build(name), tokenizer=tokenizer), PARALLEL, progress=False)
    assert found["es"] == pytest.approx(margins_by_hand(model, tokenizer, PARALLEL, "es"), abs=1e-4)
