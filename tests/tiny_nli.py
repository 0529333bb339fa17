"""A tiny random classifier of text pairs with a byte-level tokenizer, for tests of models that compare two texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

CLS, PAD, SEP = "[CLS]", "[PAD]", "[SEP]"
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
POSITIONS = 64


def build(folder: Path, model_type: str = "bert", **config_overrides: Any) -> Path:
    """Write the checkpoint into `folder`; `config_overrides` go to its config. Equal calls write equal files.

    A token is one byte; a pair is `[CLS] a [SEP] b [SEP]`, the second text of token type 1. The tokenizer names no
    longest text. Weights are wide, so that what it says depends on the texts.
    """
    tokenizer = _tokenizer()
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2,
            "initializer_range": 0.5,
            "pad_token_id": tokenizer.pad_token_id,
            "id2label": LABELS,
            "label2id": {name: number for number, name in LABELS.items()},
            **config_overrides,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: number for number, token in enumerate([CLS, PAD, SEP, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=CLS, pad_token=PAD, sep_token=SEP)
