"""What several processes do together, and one alone, in the tests of processes: a script that `accelerate launch` runs.

`python in_processes.py TASK CHECKPOINT FOLDER`. The task `calls` writes the results of public calls, `study` a study.
`study-killed` is a study in which the last process kills itself in the middle, and `errors` raises errors.
"""

import dataclasses
import os
import signal
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "study")]

import test_stages  # noqa: E402
from toys import HashScorer  # noqa: E402

import xlingtox as xt  # noqa: E402
from xlingtox import files, processes  # noqa: E402
from xlingtox.matrix import matrix  # noqa: E402
from xlingtox.models import batching, generation, journal  # noqa: E402
from xlingtox.study.models import ModelSource  # noqa: E402

PROMPTS = [xt.data.Prompt(code, text) for code, texts in test_stages.SUBJECTS.items() for text in texts]
SAID = [(code, texts[0]) for code, texts in test_stages.SUBJECTS.items() if code != "ru"]
SCORER = HashScorer(*test_stages.CODES)


def calls(lm, folder):
    """Save what public calls return, made from several batches of up to three rows."""
    batching._MOST_ROWS["cpu"] = 3
    folder.mkdir(exist_ok=True)
    neurons = xt.NeuronSet.of([(0, 1), (0, 5), (1, 7)])
    sizes = {"max_new_tokens": 4, "progress": False}
    made = {
        "generate.json": xt.generate(lm, PROMPTS, n_samples=2, **sizes),
        "parted.json": xt.generate(lm, PROMPTS[:3], n_samples=8, **sizes),
        "activations.safetensors": xt.collect_activations(lm, PROMPTS, neurons, **sizes),
        "retrieval.safetensors": xt.bilingual_retrieval(
            lm, test_stages.MATERIALS.parallel, pivot="en", batch_size=5, progress=False
        ),
        "compare.json": xt.compare(
            lm,
            xt.Offset(neurons, -2.0).bake(lm, output_dir=folder / "baked"),
            PROMPTS,
            neurons=neurons,
            scorer=SCORER,
            held_out=test_stages.MATERIALS.held_out,
            n_samples=2,
            n_random=2,
            output_dir=folder / "texts",
            **sizes,
        ),
        "doses.json": xt.dose_response(
            lm,
            neurons,
            [0.0, -1.0],
            PROMPTS,
            scorer=SCORER,
            held_out=test_stages.MATERIALS.held_out,
            n_random=2,
            n_samples=2,
            **sizes,
        ),
    }
    baked = xt.HookedLM.load(folder / "baked")
    made["attribution.safetensors"] = xt.attribute(
        lm, baked, PROMPTS, groups={"three": neurons}, n_samples=2, seed=1, **sizes
    )
    # Three edits share a batch of one prompt each; two prompts fill it.
    edits = [xt.Offset(neurons, value / 2) for value in range(1, 6)]
    for n in (1, 2):
        written = xt.generate_under(lm, edits, PROMPTS[:n], greedy=True, **sizes)
        made |= {f"under-{n}-{i}.json": one for i, one in enumerate(written)}
    means = xt.models.mean_states(lm, [prompt.text for prompt in PROMPTS], [0, 2], batch_size=4, progress=False)
    labelled = test_stages.MATERIALS.labelled
    experts = xt.localize.by_auroc(lm, labelled, batch_size=7, progress=False)
    probe = xt.Probe.fit(lm, labelled, progress=False)
    judges = {"hash": SCORER, "probe": xt.scoring.ProbeScorer(lm, probe, languages=test_stages.CODES, progress=False)}
    compared = xt.frontier(
        lm,
        PROMPTS,
        labelled=labelled,
        scorer=judges,
        held_out=test_stages.MATERIALS.held_out,
        methods=[xt.methods.Ablation(k=20), xt.methods.Prefix("the dog\n")],
        n_samples=1,
        **sizes,
    )
    # Tuning has tests of its own: here each tuned model is a baked one.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matrix, "tune", tuned)
        made["matrix.safetensors"] = xt.transfer_matrix(
            lm,
            [{**pair, "prompt": text, "language": code} for code, text in SAID for pair in test_stages.MATERIALS.pairs],
            PROMPTS,
            scorer=SCORER,
            output_dir=folder / "matrix",
            neurons=neurons,
            held_out=test_stages.MATERIALS.held_out,
            n_samples=2,
            **sizes,
        )
    pieces = xt.top_tokens(xt.read_tokens(lm, PROMPTS, neurons, batch_size=3, **sizes))
    with journal.using(journal.Journal(folder / "texts.sqlite", folder / "numbers.sqlite")):
        kept = [xt.generate(lm, PROMPTS, n_samples=2, **sizes) for _ in range(2)]
    assert kept[0] == kept[1] == made["generate.json"]
    ends = xt.evaluation.ending_probability(lm, PROMPTS, batch_size=5, progress=False)
    if processes.is_main():
        for name, result in made.items():
            result.save(folder / name)
        files.write_tensors(folder / "means.safetensors", {"means": means})
        files.write_json(folder / "experts.json", {"neurons": experts.neurons, "scores": experts.scores})
        files.write_text(folder / "pieces.json", pieces.to_json())
        files.write_text(folder / "frontier.json", "\n".join(compared.to_frame(judge).to_json() for judge in judges))
        files.write_text(folder / "ends.json", repr({code: np.asarray(row).tolist() for code, row in ends.items()}))


def tuned(lm, pairs, **options):
    """Return another model for other pairs."""
    return xt.Scale(xt.NeuronSet.all(lm), zlib.crc32(repr(pairs[0]).encode()) / 2**32).bake(lm)


def study(source, folder):
    """Do a short study, in batches of up to two rows."""
    batching._MOST_ROWS["cpu"] = 2
    settings = dataclasses.replace(test_stages.SETTINGS, stages=("intervene", "attribute"), amplifications=(0.0,))
    test_stages.run(ModelSource(source), folder, settings=settings)


def study_killed(source, folder):
    """Do a study, in which the last process kills itself at its fifth batch of text."""
    decode, n_batches = generation.decode, [0]

    def until_killed(*arguments, **options):
        n_batches[0] += 1
        if n_batches[0] == 5 and processes._group().index == processes._group().count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(*arguments, **options)

    generation.decode = until_killed
    try:
        study(source, folder)
    except processes.ProcessLost as error:
        sys.stdout.write(f"lost: {error} {processes.claim_last_word()}\n")
        sys.stdout.flush()
        sys.exit(3)


def errors(folder):
    """Check what errors do: those of the main process and those of another reach all."""
    index, count = processes.index(), processes.count()
    assert processes.gathered(index) == list(range(count))
    assert processes.from_main(lambda: (index, processes.count())) == (0, 1)
    for raised in (ValueError("no such folder"), xt.scoring.UnscoredError("two are left", unscored=2)):

        def fail(error=raised):
            raise error

        # An error that cannot be sent as it is arrives as one of the nearest built-in kind.
        kind = next(base for base in type(raised).__mro__ if base.__module__ == "builtins")
        with pytest.raises(kind, match=str(raised)):
            processes.from_main(fail)
    batches = xt.models.batches.Batches(None, "fails", [])

    def fail_in_last(items):
        if 5 in items:
            raise ValueError("five is too many")
        return [-item for item in items]

    with pytest.raises(ValueError, match="five is too many"):
        batches.each(list(range(6)), 1, fail_in_last, lambda items, result: None)

    def too_many(items):
        if len(items) > 1 and processes._group().index == count - 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(items)

    seen = []
    batches.each(list(range(8)), 2, too_many, lambda items, result: seen.extend(result))
    assert seen == list(range(8)), seen
    processes.wait_for_all()
    if processes.is_main():
        (folder / "errors.ok").write_text(str(count))


def main():
    task, checkpoint, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    if "calls" in task:
        errors(folder)
        calls(xt.HookedLM.load(checkpoint), folder / "calls")
    if "study" in task:
        (study_killed if "killed" in task else study)(checkpoint, folder / "study")


if __name__ == "__main__":
    main()
