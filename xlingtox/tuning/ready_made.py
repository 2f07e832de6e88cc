"""Recipes that are ready to use: the paper's two, and one of each method for the shipped miniature."""

from __future__ import annotations

from dataclasses import replace

from xlingtox.tuning.recipe import Lora, Recipe

PAPER_FULL = Recipe(
    batch_size=4,
    learning_rate=1e-5,
    epochs=5,
    warm_up=150,
    max_length=256,
    max_prompt_length=64,
    end_token=True,
    validation_share=0.05,
    patience=10,
)
"""The recipe for mGPT and BLOOM-1.7B (paper, appendix)."""

PAPER_QLORA = replace(PAPER_FULL, epochs=20, batch_size=1, accumulation=4, lora=Lora(), gradient_checkpointing=True)
"""The recipe for the models of 7 and 8 billion parameters (paper, appendix)."""

MINI = Recipe(steps=10, batch_size=16, learning_rate=1e-4, optimizer="adamw_torch", evaluate_every=2, save_every=5)
"""The recipe for the shipped miniature. AdamW replaces the paper's RMSprop, because AdamW harms the English of so
small a model less."""

SFT = replace(MINI, method="sft", steps=40)
"""Supervised fine-tuning of the miniature on the chosen continuations. Ten steps would leave an eighth of the English
toxicity, and forty leave none; so it takes forty, as ORPO does."""

KTO = replace(MINI, method="kto")
"""KTO for the miniature. Ethayarajh et al. 2024 use a beta of 0.1 and equal weights too."""

ORPO = replace(MINI, method="orpo", steps=40)
"""ORPO for the miniature. Hong et al. 2024 weigh the odds ratio by 0.1 for Mistral too, and by 0.2 for Llama-2."""

SIMPO = replace(MINI, method="simpo", beta=2.0, simpo_gamma=1.0)
"""SimPO for the miniature, with the beta and the margin that Meng et al. 2024 give for Llama-3-8B."""

DPO_SFT = replace(MINI, sft_weight=1.0)
"""DPO with the likelihood of the chosen side added, for the miniature. Pang et al. 2024 weigh the two equally too."""
