"""A process that writes text with vLLM or nnsight, in a Python environment of its own; `growth.py` starts it.

It imports nothing of ours. It reads requests from its standard input, a JSON object a line, and answers each with one:
`{"seconds": processor time, "tokens": the new tokens of each row}`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]
Rows = list[list[int]]


def vllm_writer(folder: str, threads: int) -> Callable[[Request], Rows]:
    """Write with vLLM's engine in this process."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=96,
        max_num_seqs=128,
        # Else a prompt that was read once is not read again in the next round.
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def write(request: Request) -> Rows:
        sampling = {"temperature": 0.9, "top_p": 0.8, "n": request["n_samples"], "seed": 0}
        if request["greedy"]:
            sampling = {"temperature": 0.0}
        parameters = SamplingParams(max_tokens=request["new"], detokenize=False, **sampling)
        prompts: Any = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        answers = engine.generate(prompts, parameters, use_tqdm=False)
        return [list(sample.token_ids) for answer in answers for sample in answer.outputs]

    return write


def nnsight_writer(folder: str, threads: int) -> Callable[[Request], Rows]:
    """Write with nnsight, and read the neurons of a few layers at each step where the request names them."""
    import torch
    from nnsight import LanguageModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.pad_token_id = 0
    tokenizer.pad_token_id = 0
    wrapped = LanguageModel(model, tokenizer=tokenizer)
    in_gpt2 = hasattr(model, "transformer")

    def neurons_of(layer: int) -> Any:
        """Return the input of the down-projection."""
        if in_gpt2:
            return wrapped.transformer.h[layer].mlp.c_proj.input
        return wrapped.model.layers[layer].mlp.down_proj.input

    def write(request: Request) -> Rows:
        ids = torch.tensor(request["prompts"]).repeat_interleave(request["n_samples"], 0)
        sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 0}
        if request["greedy"]:
            sampling = {"do_sample": False}
        options = {"max_new_tokens": request["new"], **sampling}
        layers = request["layers"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with wrapped.generate(**options) as tracer:
            with tracer.invoke(inputs):
                read = list().save()  # noqa: C408
                if layers:
                    with tracer.iter[:]:
                        for layer in layers:
                            read.append(neurons_of(layer)[:, -1])
            with tracer.invoke():
                written = wrapped.generator.output.save()
        assert len(read) == (written.shape[1] - ids.shape[1]) * len(layers)
        return written[:, ids.shape[1] :].tolist()

    return write


WRITERS = {"vllm": vllm_writer, "nnsight": nnsight_writer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=WRITERS)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    # What the libraries print on standard output goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    write = WRITERS[given.engine](given.folder, given.threads)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        began = time.process_time()
        tokens = write(json.loads(line))
        print(json.dumps({"seconds": time.process_time() - began, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
