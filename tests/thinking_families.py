"""Tiny checkpoints whose tokenizers and chat templates mark thoughts as those of known families do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_llama
from transformers import AutoTokenizer, LlamaForCausalLM

T = "The answer is yes."  # What a model thinks; what it answers is another choice, or nothing.
TURNS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@dataclass(frozen=True)
class Family:
    """How thoughts are marked.

    Args:
        opens: what opens a thought.
        closes: what closes it.
        special: tokens that decoding drops.
        plain: tokens that it keeps.
        begins: what the chat template ends with; the thought that it may open stands behind it.
        response_template: the tokenizer's.
    """

    opens: str
    closes: str
    special: Sequence[str] = ()
    plain: Sequence[str] = ()
    begins: str = "[assistant]"
    response_template: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """A chat template that opens a thought, or an empty one, where `enable_thinking` is given."""
        return (
            f"{TURNS}{{% if add_generation_prompt %}}{self.begins}"
            f"{{% if enable_thinking is defined %}}{self.opens}{{% if not enable_thinking %}}\n\n{self.closes}"
            "{% endif %}{% endif %}{% endif %}"
        )

    def build(self, folder: Path) -> Path:
        """Write a checkpoint of this family; a token is a byte, or a mark."""
        tiny_llama.build(folder, max_position_embeddings=1024)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(self.plain))
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.special)})
        tokenizer.chat_template = self.template
        if self.response_template:
            tokenizer.response_template = dict(self.response_template)
        tokenizer.save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
        return folder

    def texts(self) -> dict[str, tuple[str, str, str]]:
        """By what is the case: what a model generates, what it thinks in it, and what it answers."""
        o, c = self.opens, self.closes
        return {
            "closed": (f"{o}{T}{c}no", T, "no"),
            "closed with space": (f"{o}\n{T}\n{c}\n\nNo.", T, "No."),
            "unclosed": (f"{o}{T}", T, ""),
            "unclosed, as if it had answered": (f"{o}{T}\n\nAnswer: yes", f"{T}\n\nAnswer: yes", ""),
            "empty": (f"{o}\n\n{c}\n\nno", "", "no"),
            "several": (f"{o}{T}{c}{o}Yes, yes.{c}no", f"{T}\nYes, yes.", "no"),
            "several, the last one unclosed": (f"{o}{T}{c}{o}Yes, yes.", f"{T}\nYes, yes.", ""),
            "none": ("no", "", "no"),
        }

    def texts_behind_open(self) -> dict[str, tuple[str, str, str]]:
        """The same of a model whose prompt has opened a thought."""
        return {
            "closed": (f"{T}{self.closes}no", T, "no"),
            "unclosed": (T, T, ""),
            "closed at once": (f"\n{self.closes}no", "", "no"),
        }


_QWEN = Family("<think>", "</think>", plain=("<think>", "</think>"))
FAMILIES = {
    "Qwen, DeepSeek": _QWEN,
    "GLM": Family("<think>", "</think>", special=("<think>", "</think>")),
    "Mistral": Family("[THINK]", "[/THINK]", special=("[THINK]", "[/THINK]")),
    "gpt-oss": Family(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        begins="<|start|>assistant",
    ),
    "Command": Family(
        "<|START_THINKING|>",
        "<|END_THINKING|><|START_RESPONSE|>",
        special=("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "MedGemma": Family("<unused94>thought\n", "<unused95>", plain=("<unused94>", "<unused95>")),
    "Gemma": Family("<|channel>thought\n", "<channel|>", special=("<|channel>", "<channel|>")),
    "Kimi": Family("◁think▷", "◁/think▷", special=("◁think▷", "◁/think▷")),
    "spelled": Family("<think>", "</think>"),
    "by response template": Family(
        "<reason>",
        "</reason>",
        special=("<reason>", "</reason>"),
        response_template={
            "start_anchor": "[assistant]",
            "fields": {
                "thinking": {
                    "open": "<reason>",
                    "close": "</reason>",
                    "content": "text",
                    "repeats": True,
                    "join": "\n",
                },
                "content": {"close": "</s>"},
            },
        },
    ),
}
