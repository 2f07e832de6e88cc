"""Sites of plain Hugging Face models by family, and plain PyTorch hooks at them; nothing here knows xlingtox."""

import families
import torch

SITES = (
    *("neurons", "heads", "pre_activation", "mlp_output", "residual"),
    *("ln1", "ln1_post", "ln2", "ln2_post", "ln_final"),
)

_LLAMA = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "ln_final": "model.norm"}
_SANDWICHED = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
    "ln_final": "model.norm",
}
_COHERE = {"ln1": "input_layernorm", "ln_final": "model.norm"}
_LAYER = {"ln1": "self_attn_layer_norm", "ln2": "final_layer_norm"}
NORMS = {
    "gpt2": {"ln1": "ln_1", "ln2": "ln_2", "ln_final": "transformer.ln_f"},
    "bloom": {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "ln_final": "transformer.ln_f"},
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "gemma2": _SANDWICHED,
    "gemma3": _SANDWICHED,
    "xglm": _LAYER | {"ln_final": "model.layer_norm"},
    "opt": _LAYER | {"ln_final": "model.decoder.final_layer_norm"},
}
"""Where a plain model keeps the norms: in a block, or in the model. Other families are as Llama."""


def sites_of(name):
    norms = NORMS.get(name, _LLAMA)
    return [site for site in SITES if not site.startswith("ln") or site in norms]


def hook(model, name, site, layer, change):
    """Hook a plain model with PyTorch alone; `change` gets `[batch, pos, column]`."""
    layout = families.LAYOUTS[name]
    block = model.get_submodule(layout.block.format(layer))

    def shaped(value):
        return change(value.reshape(2, 5, -1)).reshape(value.shape)

    def after(_, args, out):
        return (shaped(out[0]), *out[1:]) if isinstance(out, tuple) else shaped(out)

    def first_half(_, args, out):
        half = out.shape[-1] // 2
        return torch.cat([shaped(out[..., :half]), out[..., half:]], -1)

    def before(_, args):
        return (shaped(args[0]), *args[1:])

    if site == "residual":
        return block.register_forward_hook(after)
    if site == "neurons":
        return block.get_submodule(layout.down).register_forward_pre_hook(before)
    if site == "heads":
        return block.get_submodule(layout.out).register_forward_pre_hook(before)
    if site == "pre_activation":
        return block.get_submodule(layout.key).register_forward_hook(first_half if name == "phi3" else after)
    if site == "mlp_output":
        return block.get_submodule(layout.down).register_forward_hook(after)
    path = NORMS.get(name, _LLAMA)[site]
    return (model if site == "ln_final" else block).get_submodule(path).register_forward_hook(after)
