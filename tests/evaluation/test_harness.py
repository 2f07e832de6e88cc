"""Tasks of lm-evaluation-harness: a HookedLM gets what lm-eval's own class for Hugging Face models gets."""

import copy
from types import SimpleNamespace

import datasets
import harness_tasks
import numpy as np
import pytest
import torch
import transformers
from conftest import tiny
from families import randomised
from toys import value_or_refusal

from xlingtox.data import Chat
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import harness_model, side_effects
from xlingtox.evaluation.harness import LoadedTasks, check_asked, language_of_name
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

lm_eval = pytest.importorskip("lm_eval")
huggingface = pytest.importorskip("lm_eval.models.huggingface")
instance = pytest.importorskip("lm_eval.api.instance")

EDIT = Offset(NeuronSet.of([(1, 3), (2, 7), (3, 100)]), -40.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the tasks, whose data are cached next to them."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        yield harness_tasks.write(folder)


@pytest.fixture(scope="module")
def loaded(files):
    return LoadedTasks(files)


@pytest.fixture(scope="module")
def mini():
    return HookedLM.load("mini")


@pytest.fixture(scope="module")
def plain(mini, loaded):
    return loaded.run(mini, seed=0, progress=False)


def requests(kind, *arguments):
    return [instance.Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def theirs(model, tokenizer, batch_size=3):
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def test_plain_is_what_lm_evals_own_class_gets(mini, loaded, plain):
    own = theirs(mini.unwrapped(), mini.tokenizer, batch_size=20)
    found = lm_eval.evaluate(lm=own, task_dict={"tasks": dict(loaded._tasks)}, bootstrap_iters=0)
    assert {key[0] for key in plain.metrics} == {"translation", "last_word", "text"}
    for (task, name, code), metric in plain.metrics.items():
        samples = [sample for sample in found["samples"][task] if sample["doc"]["language"] == code]
        assert metric.items == tuple(sorted(f"{task} {sample['doc_id']}" for sample in samples))
        values = {f"{task} {sample['doc_id']}": sample[name.split()[0]] for sample in samples}
        if task == "text":
            assert metric.values == pytest.approx([-values[item][0] for item in metric.items], abs=1e-3)
            assert metric.counts == tuple(values[item][1] for item in metric.items)
            assert not metric.higher_is_better
        else:
            assert metric.values == tuple(values[item] for item in metric.items)
            assert metric.higher_is_better
    assert plain.metrics["translation", "acc", "es"].chance == pytest.approx(1 / 3)
    assert len(plain.metrics["last_word", "exact_match (first word)", "en"].values) == 14
    assert (plain.left_out, plain.n_cut) == ((), 0)


def test_baked_is_hooked(mini, loaded, plain):
    with EDIT.on(mini):
        hooked = loaded.run(mini, seed=0, progress=False)
    baked = loaded.run(EDIT.bake(mini), seed=0, progress=False)
    for key, metric in hooked.metrics.items():
        assert metric.values == pytest.approx(baked.metrics[key].values, abs=1e-3)
    assert not np.allclose(*(side.metrics["text", "word_perplexity", "en"].values for side in (plain, hooked)), atol=1)


def test_a_strong_edit_is_worse_and_a_row_tells_it(mini, files, plain):
    effects = side_effects(mini, (mini, EDIT), tasks=files[:1], progress=False)
    table = effects.to_frame().set_index(["measure", "language"])
    assert table.before["translation: acc", "en"] == np.mean(plain.metrics["translation", "acc", "en"].values)
    assert table.n["translation: acc"].tolist() == [14, 13, 13]
    assert (table.verdict["translation: acc"] == "worse").any()
    assert effects.settings["versions"]["translation"] == "1.0"
    # The other way round, the model before only guesses, and that is said.
    turned = side_effects((mini, EDIT), mini, tasks=files[:1], limit=9, progress=False)
    assert any("so this task cannot show that it got worse" in sentence for sentence in turned.warnings)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_kind_of_request(name, tokenizer):
    """Texts longer than the context, empty ones, spaces at the end, and a choice of one token."""
    model = tiny(name)
    long = "the cat sat on the mat and the dog ran away from the house " * 6
    own, ours = theirs(model, tokenizer), harness_model(HookedLM.load(model, tokenizer=tokenizer), progress=False)
    asked = [
        ("", "the cat"),
        ("the cat ", "sat"),
        ("the cat", " sat"),
        (long, " a house"),
        ("the", " d"),
        ("the", " m"),
    ]
    expected = own.loglikelihood(requests("loglikelihood", *asked), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", *asked))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.n_cut == 1
    texts = [("the cat",), (long,)]
    rolling = ours.loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    assert rolling == pytest.approx(
        own.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True), abs=1e-2
    )
    settings = {"until": ["e", "\n"], "max_gen_toks": 8, "do_sample": False}
    contexts = [("the cat", settings), (long, settings), ("la casa", {**settings, "until": []})]
    answers = ours.generate_until(requests("generate_until", *contexts))
    assert answers == own.generate_until(requests("generate_until", *contexts), disable_tqdm=True)
    assert not any("e" in answer for answer in answers[:2])


def test_likelihoods_are_those_of_a_plain_pass(model, tokenizer, lm):
    ids = torch.tensor([tokenizer("the cat sat")["input_ids"]])
    n = ids.shape[1] - len(tokenizer("the")["input_ids"])
    with torch.no_grad():
        chances = model(ids).logits[0].double().log_softmax(-1)
    expected = sum(float(chances[i - 1, ids[0, i]]) for i in range(ids.shape[1] - n, ids.shape[1]))
    ((found, greedy),) = harness_model(lm, progress=False).loglikelihood(requests("loglikelihood", ("the", " cat sat")))
    assert found == pytest.approx(expected, abs=1e-5)
    assert isinstance(greedy, bool)


def test_drawn_answers_depend_on_the_seed_and_the_repeat(lm):
    request = requests("generate_until", ("the cat", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6}))[0]
    one, other = harness_model(lm, progress=False).generate_until([request, request])
    assert [one, other] == harness_model(lm, progress=False).generate_until([request, request])
    assert one != other
    assert harness_model(lm, seed=1, progress=False).generate_until([request]) != [one]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_beams": 4}, "the task writes its answers with num_beams=4"),
        ({"max_gen_toks": 64}, "the task writes up to 64 tokens, and the model's context has 64"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_answers_that_cannot_be_written(lm, settings, line):
    model = harness_model(lm, progress=False)
    _, refusal = value_or_refusal(lambda: model.generate_until(requests("generate_until", ("the cat", settings))))
    assert line in refusal


def test_the_chat_template_is_the_tokenizers(lm, tokenizer):
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    other.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    model = harness_model(HookedLM.load(lm.unwrapped(), tokenizer=other), progress=False)
    assert model.apply_chat_template([{"role": "user", "content": "hello"}]) == "[hello]:"
    assert model.chat_template(True) == other.chat_template


def test_languages_of_names():
    names = [
        "belebele_spa_Latn",
        "global_mmlu_de",
        "arc_challenge_mt_de",
        "hellaswag",
        "arc_easy",
        "flores_en-es_de_fr",
    ]
    assert [language_of_name(name) for name in names] == ["es", "de", "de", None, None, None]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("task: a\ndoc_to_text: !function code.run\n", "would run Python code"),
        ("task: a\nclass: Any\n", "is no single task"),
        ("group: a\ntask: [b, c]\n", "is no single task"),
        ("- a\n", "is no task"),
        ("task: a\nmetric_list: [{metric: of_a_stranger}]\n", "wants the metric"),
        ("task: a\nmetric_list: [{metric: acc, hf_evaluate: true}]\n", "wants the metric"),
        ("include: wrong.yaml\n", "includes itself"),
        (harness_tasks.CHOICE.replace("translation.jsonl", "none.jsonl"), "cannot be loaded"),
        (harness_tasks.CHOICE.replace("multiple_choice", "guessing"), "cannot be loaded"),
        (b"\xff\xfe", "no text in UTF-8"),
    ],
)
def test_files_that_are_no_tasks(files, content, line):
    path = files[0].parent / "wrong.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    _, refusal = value_or_refusal(lambda: LoadedTasks([path]))
    assert line in refusal


def test_tasks_that_cannot_be_run(files):
    with pytest.raises(ValueError, match="tasks is empty"):
        LoadedTasks({})
    with pytest.raises(ValueError, match="comes twice"):
        LoadedTasks([files[0], files[0]])
    with pytest.raises(ValueError, match="limit is 0: expected 1 or more"):
        LoadedTasks(files, limit=0)
    rows = files[0].parent / "translation.jsonl"
    (rows.parent / "nowhere.jsonl").write_text(rows.read_text("utf-8").replace('"language"', '"code"'), "utf-8")
    content = harness_tasks.CHOICE.replace("translation.jsonl", "nowhere.jsonl")
    (path := rows.parent / "nowhere.yaml").write_text(content, "utf-8")
    with pytest.raises(ValueError, match="the language of the task translation is not known"):
        LoadedTasks([path])
    assert LoadedTasks({"de": [path]})._codes == {"translation": "de"}
    path.write_text(content.replace("version: 1.0", "version: 1.0, language: es"), "utf-8")
    assert LoadedTasks([path])._codes == {"translation": "es"}


TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% if enable_thinking is defined and not enable_thinking %}~{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def talker(tokenizer):
    """A Llama with a long context, and a tokenizer with a chat template that ends turns as texts end."""
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    other.chat_template = TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = transformers.LlamaConfig(vocab_size=300, max_position_embeddings=1024, **sizes, **ids)
    return randomised(transformers.LlamaForCausalLM(config)), other


@pytest.fixture(scope="module")
def described(files):
    """Tasks with solved examples and an instruction of their own."""
    paths = []
    for name in ("translation", "last_word"):
        content = files[0].with_name(f"{name}.yaml").read_text("utf-8").replace(f"task: {name}", f"task: asked_{name}")
        content += f"fewshot_split: test\nnum_fewshot: 2\ndescription: Answer about {name}.\n"
        paths.append(files[0].with_name(f"asked_{name}.yaml"))
        paths[-1].write_text(content, "utf-8")
    return LoadedTasks(paths, limit=4)


@pytest.mark.parametrize("chat", [Chat(), Chat(system="Be brief.")])
def test_a_chat_model_is_asked_as_lm_evals_own_class_asks_it(talker, described, chat):
    model, tokenizer = talker
    own = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, enable_thinking=False)
    asked = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": chat.system}
    for task in described._tasks.values():
        task.set_fewshot_seed(seed=0)
    found = lm_eval.evaluate(
        lm=own, task_dict={"tasks": dict(described._tasks)}, limit=4, bootstrap_iters=0, log_samples=True, **asked
    )
    ours = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(described, "_lm_eval", Recording(described._lm_eval, ours))
        described.run(HookedLM.load(model, tokenizer=tokenizer, chat=chat), seed=0, progress=False)
    for name, samples in found["samples"].items():
        for sample, mine in zip(samples, ours[0]["samples"][name], strict=True):
            assert mine["arguments"] == sample["arguments"]
            (context, *_), *_ = sample["arguments"]
            assert context.startswith("<s>Be brief.\n\nAnswer" if chat.system else "<s>Answer")
            assert context.count("<eos><a>") == 3  # two examples, and the item's own turn
            assert context.endswith("<a>~")
            if name == "asked_last_word":
                assert mine["resps"] == sample["resps"]
            else:
                likelihoods = [[pair[0][0] for pair in one["resps"]] for one in (mine, sample)]
                assert likelihoods[0] == pytest.approx([float(value) for value in likelihoods[1]], abs=1e-3)


class Recording:
    """The package lm-eval, whose results are kept."""

    def __init__(self, package, kept):
        self._package, self._kept = package, kept

    def evaluate(self, **how):
        self._kept.append(self._package.evaluate(**how))
        return self._kept[-1]


def test_a_template_without_system_messages_leaves_the_instruction_out(talker, caplog):
    model, tokenizer = talker
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    asked = harness_model(HookedLM.load(model, tokenizer=strict, chat=True), progress=False)
    turn = {"role": "user", "content": "hello"}
    assert asked.apply_chat_template([{"role": "system", "content": "x"}, turn]) == "<u>hello<eos><a>~"
    assert "refuses a system message" in caplog.text
    strict.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="an item of the task cannot be read by the model's chat template: never"):
        asked.apply_chat_template([turn])


def test_thoughts_have_no_place_in_tasks(files, lm):
    thinking = SimpleNamespace(chat=Chat(thinking=True), name="thinker")
    with pytest.raises(ValueError, match="thinker thinks before it answers, and tasks have no place for thoughts"):
        check_asked(thinking)
    check_asked(lm)
