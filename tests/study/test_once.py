"""What several stages of a study need is written and read once."""

import dataclasses
from collections import Counter

from test_stages import CODES, MATERIALS, SETTINGS

from xlingtox.edits import under
from xlingtox.evaluation import text_losses
from xlingtox.models import generation
from xlingtox.neurons import activations
from xlingtox.study import plan, running
from xlingtox.study.settings import Settings

N_PROMPTS = 2 * len(CODES)


def test_no_model_writes_a_text_twice_or_reads_a_held_out_text_twice(lm, tmp_path, monkeypatch):
    samples, losses, greedy = Counter(), Counter(), Counter()
    continued, batch_losses, read_batch = generation.continued, text_losses._batch_losses, activations.read_batch

    def state(model):
        return model.fingerprint(), model.edits_by_digest()

    def counted_continued(model, prompts, numbers, max_new_tokens, sampling, **how):
        assert sampling, "greedy texts are written while neurons are read"
        samples.update(
            (*state(model), edit, prompt, number, sampling["seed"])
            for edit in range(how.get("edits", 1))
            for prompt in prompts
            for number in numbers
        )
        return continued(model, prompts, numbers, max_new_tokens, sampling, **how)

    def counted_losses(model, rows, *, edits=None):
        numbers = edits or [None] * len(rows)
        read = tuple((edit, row.language, *row.ids) for edit, row in zip(numbers, rows, strict=True))
        losses[*state(model), read] += 1
        return batch_losses(model, rows, edits=edits)

    def counted_batch(model, prompts, sets, **how):
        if how["writer"] is None:
            greedy.update((model.fingerprint(), prompt) for prompt in prompts)
        return read_batch(model, prompts, sets, **how)

    for module in (generation, under):
        monkeypatch.setattr(module, "continued", counted_continued)
    monkeypatch.setattr(text_losses, "_batch_losses", counted_losses)
    monkeypatch.setattr(activations, "read_batch", counted_batch)
    monkeypatch.setattr(running, "_first_look", lambda *_, **__: None)
    # With seed 0, the doses would have the random numbers of the comparison.
    stages = ("promoted", "amplify", "compare")
    settings = dataclasses.replace(SETTINGS, seed=1, n_samples=5, dose_samples=2, stages=stages)
    running.run(lm, MATERIALS, output_dir=tmp_path, settings=settings, progress=False)
    assert max(samples.values()) == 1
    assert max(losses.values()) == 1
    by_model = Counter(fingerprint for fingerprint, _ in greedy.elements())
    # The source language's prompts for the sources, a neutral prompt of each language for the doses, and all.
    assert by_model.pop(lm.fingerprint()) == 2 + len(CODES) + N_PROMPTS
    assert list(by_model.values()) == [N_PROMPTS]


def test_as_many_samples_as_the_comparison_will_need():
    few, many = Settings(n_samples=2), Settings(n_samples=25)
    assert plan.samples_of_promoted(many, ["promoted", "compare"]) == 25
    assert plan.samples_of_promoted(many, ["promoted"]) == plan.samples_of_promoted(few, ["compare"]) == 4
