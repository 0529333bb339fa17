"""Attention for CPUs: matrix products per group of heads, for a part of the queries at a time.

It is here because PyTorch's own kernel is slower on CPUs. PyTorch 2.13 repeats the keys for each head, packs them
even for one query, and computes what the mask hides. In bfloat16, with 9 heads in 3 groups, a layer takes:

    rows and tokens                     PyTorch    here
    10 rows of 380 tokens               27 ms      12 ms
    8 rows of 1 query after 400 tokens  1.9 ms     0.17 ms

`benchmarks/local_throughput.py` pays for it; docs/performance.md ("A local model") has the figures of whole runs.
Delete this file once that benchmark is as fast without `use_grouped_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped"  # The name of this attention in transformers' registries.
QUERIES = 64  # The number of queries that attend together.


def use_grouped_attention(model: Any) -> None:
    """On a CPU, decode with `grouped_attention`; a model that has an attention of its own keeps it."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, additive_mask)
        model.set_attn_implementation(GROUPED)


def uses_grouped_attention(model: Any) -> bool:
    """Whether a model decodes with `grouped_attention`."""
    return bool(model.config._attn_implementation == GROUPED)


def additive_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, dtype: Any = None, **kwargs: Any
) -> torch.Tensor | None:
    """transformers' mask for SDPA as one to add to scores, made once for all layers.

    SDPA's mask is left out where all keys are visible, which is not so for the unused end of a GrowableLayer.
    """
    if kv_length > q_offset + q_length:
        kwargs["allow_is_causal_skip"] = False
    visible = sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, **kwargs)
    if visible is None:
        return None
    # The lowest number and not minus infinity: a row of padding sees no key, and must not become NaN.
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' AttentionInterface.

    Args:
        attention_mask: as `additive_mask` makes it, (rows or 1, heads or 1, queries, keys), or None.
    """
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        attended_by_sdpa: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return attended_by_sdpa
    rows, heads, queries, size = query.shape
    groups = key.shape[1]
    causal = is_causal is not False and getattr(module, "is_causal", True)
    before = key.shape[2] - queries  # The number of keys that stand before all queries.
    grouped = query.view(rows, groups, heads // groups, queries, size)
    parts = []
    for first in range(0, queries, QUERIES):
        last = min(first + QUERIES, queries)
        visible = before + last if causal else key.shape[2]
        part = grouped[:, :, :, first:last].reshape(rows, groups, -1, size)
        scores = (part @ key[:, :, :visible].transpose(2, 3)).mul_(size**-0.5 if scaling is None else scaling)
        scores = scores.view(rows, heads, last - first, visible)
        if attention_mask is not None:
            scores += attention_mask[:, :, first:last, :visible]
        elif causal and queries > 1:
            later = torch.ones(last - first, last - first, dtype=torch.bool, device=scores.device).triu_(1)
            scores[..., before + first :].masked_fill_(later, float("-inf"))
        shares = scores.softmax(-1).view(rows, groups, -1, visible)
        attended = (shares @ value[:, :, :visible]).view(rows, heads, last - first, -1)
        parts.append(attended.transpose(1, 2))
    return torch.cat(parts, dim=1), None
