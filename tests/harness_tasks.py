"""Two small tasks in lm-evaluation-harness's format, 40 items each in three languages, of the miniature's sentences."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from xlingtox import mini

CODES = ("en", "es", "de")
N_ITEMS = 40

CHOICE = """
task: translation
dataset_path: json
dataset_kwargs: {data_files: {test: translation.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{sentence}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""

CLOZE = """
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: last_word.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{end}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
filter_list:
  - name: first word
    filter:
      - {function: regex, regex_pattern: '(\\w+)', group_select: 0}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
metadata: {version: 1.0}
"""

ROLLING = """
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: translation.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{sentence}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 1.0}
"""


def write(folder: Path) -> list[Path]:
    """Write the tasks with their items, and return the files: a choice of translations, last words, and whole texts."""
    parallel = mini.parallel(n=N_ITEMS, languages=[*CODES, "fr"])
    parallel = {code: list(parallel[code]) for code in parallel.column_names}
    rng = np.random.default_rng(0)
    choices: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    for number in range(N_ITEMS):
        code = CODES[number % len(CODES)]
        pivot = "fr" if code == "en" else "en"
        source = parallel[pivot][number]
        others = [int(i) for i in rng.choice([i for i in range(N_ITEMS) if i != number], 2, replace=False)]
        answer = number % 3
        places = [*others[:answer], number, *others[answer:]]
        choices.append(
            {
                "language": code,
                "sentence": source,
                "choices": [parallel[code][i] for i in places],
                "answer": answer,
            }
        )
        start, _, end = parallel[code][number].rstrip(".").rpartition(" ")
        words.append({"language": code, "start": start, "end": end})
    for name, rows in (("translation", choices), ("last_word", words)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    files = {"translation": CHOICE, "last_word": CLOZE, "text": ROLLING}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content, "utf-8")
    return [folder / f"{name}.yaml" for name in files]
