"""LoRA adapters for the tiny Llama, made with peft, and the same merged and saved as full checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ["q_proj", "v_proj", "down_proj"]


def train(base: Path, folder: Path, seed: int = 1, merged: Path | None = None, **config: Any) -> Path:
    """An adapter whose weights are drawn, as if they had been trained, in `folder`; its merged model in `merged`."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers what is deprecated there.
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        given = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, "init_lora_weights": False, **config}
        adapted = get_peft_model(model, LoraConfig(**given))
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "modules_to_save" in name:
                    weight.add_(torch.randn_like(weight) * 0.3)
        adapted.save_pretrained(folder)
        if merged is not None:
            adapted.merge_and_unload().save_pretrained(merged)
            AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    return folder
