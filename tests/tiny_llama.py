"""A tiny random Llama checkpoint with a byte-level tokenizer, for tests of local models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def build(folder: Path, **config_overrides: Any) -> Path:
    """Write the checkpoint into `folder`; `config_overrides` go to LlamaConfig. Equal calls write equal files.

    A token is one byte, and a text starts with BOS. There is no pad token, as in Llama's own tokenizers. Weights
    are wide, so that what it says depends on the prompt.
    """
    tokenizer = _tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **config_overrides,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers_alone(folder: Path, prompts: Sequence[str], new: int, **options: Any) -> list[str]:
    """What transformers itself generates for each prompt, greedily and one at a time, in `new` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    made = []
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
        made.append(tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    return made


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: number for number, token in enumerate([BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_one_text(folder: Path, words: Sequence[str], template: str, plain: Sequence[str] = ()) -> Path:
    """Write a checkpoint that generates these words, each once, behind a prompt that ends with `[assistant]`.

    Its layers add nothing, so that the next token depends on the last one alone. Tokens are words; those in `plain`
    are added to the vocabulary, and decoding keeps them.
    """
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([BOS, EOS, "[assistant]", "?", *words]))}
    raw = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, unk_token="?")
    tokenizer.add_tokens(list(plain))
    tokenizer.chat_template = template
    size = 8 * -(-len(vocabulary) // 8)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=vocabulary[EOS],
        bos_token_id=vocabulary[BOS],
    )
    model = LlamaForCausalLM(config)
    chain = [vocabulary[word] for word in ("[assistant]", *words, EOS)]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for last, following in itertools.pairwise(chain):
            model.lm_head.weight[following, last] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
