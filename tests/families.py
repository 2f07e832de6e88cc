"""Small random models of many families, in unusual sizes, and where each keeps its MLP; nothing here knows xlingtox."""

import copy
from typing import Any, NamedTuple

import peft
import torch
import transformers

D_MODEL, N_LAYERS, POSITIONS, VOCABULARY = 32, 3, 64, 300


class Layout(NamedTuple):
    """Paths in a plain Hugging Face model, by layer; `up` is None where gate and up are one matrix."""

    block: str
    down: str
    key: str
    up: str | None = None
    after: str | None = None
    out: str = "self_attn.o_proj"


_LLAMA = Layout("model.layers.{}", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
_SANDWICHED = _LLAMA._replace(after="post_feedforward_layernorm")
_LAYER = Layout("model.layers.{}", "fc2", "fc1", out="self_attn.out_proj")

LAYOUTS: dict[str, Layout] = {
    "gpt2": Layout("transformer.h.{}", "mlp.c_proj", "mlp.c_fc", out="attn.c_proj"),
    "bloom": Layout("transformer.h.{}", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h", out="self_attention.dense"),
    "llama": _LLAMA,
    "llama tied, biased": _LLAMA,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _SANDWICHED,
    "gemma3": _SANDWICHED,
    "xglm": _LAYER,
    "opt": Layout("model.decoder.layers.{}", "fc2", "fc1", out="self_attn.out_proj"),
    "phi3": Layout("model.layers.{}", "mlp.down_proj", "mlp.gate_up_proj", "mlp.gate_up_proj"),
}


def build(name: str) -> Any:
    """A random model."""
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    size = {
        "hidden_size": D_MODEL,
        "intermediate_size": 40,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        **ids,
    }
    grouped = {**size, "num_key_value_heads": 2}
    headed = {**grouped, "head_dim": 8}
    # A window shorter than the texts, on every second layer or on all.
    windowed = {**headed, "sliding_window": 6}
    made: dict[str, Any] = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_inner=40, n_positions=POSITIONS, **ids
            )
        ),
        "bloom": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=4, **ids)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped)),
        "llama tied, biased": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(tie_word_embeddings=True, mlp_bias=True, attention_bias=True, **grouped)
        ),
        "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(use_qk_norm=False, **grouped)),
        "cohere2": lambda: transformers.Cohere2ForCausalLM(transformers.Cohere2Config(sliding_window=6, **grouped)),
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**windowed)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**grouped)),
        "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**headed)),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**windowed)),
        "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**windowed)),
        "xglm": lambda: transformers.XGLMForCausalLM(
            transformers.XGLMConfig(
                d_model=D_MODEL,
                ffn_dim=40,
                num_layers=N_LAYERS,
                attention_heads=4,
                max_position_embeddings=POSITIONS,
                **ids,
            )
        ),
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=D_MODEL,
                ffn_dim=40,
                num_hidden_layers=N_LAYERS,
                num_attention_heads=4,
                max_position_embeddings=POSITIONS,
                word_embed_proj_dim=D_MODEL,
                **ids,
            )
        ),
        "phi3": lambda: transformers.Phi3ForCausalLM(
            transformers.Phi3Config(original_max_position_embeddings=POSITIONS, **grouped)
        ),
    }
    return randomised(made[name]())


def randomised(model: Any, seed: int = 0) -> Any:
    """Weights large enough that logits lie well apart, and no bias or norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if weight.ndim == 1 and "weight" in name else 0.0
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def adapted(model: Any, targets: Any = ("down_proj", "gate_proj", "q_proj"), std: float = 0.3) -> Any:
    """A copy with a random LoRA adapter beside its weights."""
    torch.manual_seed(0)
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=list(targets)))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.normal_(std=std)
    return lora.eval()


def d_mlp(name: str) -> int:
    return 4 * D_MODEL if name == "bloom" else 40


def block(model: Any, name: str, layer: int) -> Any:
    return model.get_submodule(LAYOUTS[name].block.format(layer))


def down(model: Any, name: str, layer: int) -> Any:
    return block(model, name, layer).get_submodule(LAYOUTS[name].down)


def out(model: Any, name: str, layer: int) -> Any:
    """The output projection of attention."""
    return block(model, name, layer).get_submodule(LAYOUTS[name].out)


def _rows(model: Any, name: str, layer: int, path: str) -> torch.Tensor:
    """`[neuron, d_model]`: a Linear keeps it so, GPT-2's Conv1D transposed."""
    weight: torch.Tensor = block(model, name, layer).get_submodule(path).weight.detach()
    return weight.T if name == "gpt2" else weight


def values(model: Any, name: str, layer: int) -> torch.Tensor:
    return _rows(model, name, layer, LAYOUTS[name].down).T


def keys(model: Any, name: str, layer: int) -> torch.Tensor:
    return _rows(model, name, layer, LAYOUTS[name].key)[: len(values(model, name, layer))]


def ups(model: Any, name: str, layer: int) -> torch.Tensor | None:
    path = LAYOUTS[name].up
    return None if path is None else _rows(model, name, layer, path)[-len(values(model, name, layer)) :]
