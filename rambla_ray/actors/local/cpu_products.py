"""Products for CPUs: weights are kept in the order in which oneDNN reads them, and not put into it at each call.

PyTorch's compiler does the same to weights that do not change, but compiling a model takes longer than most runs.
A product on one core of an AMD EPYC takes:

    rows, inputs and outputs           PyTorch    here
    32, 576 and 1,536, bfloat16        0.18 ms    0.14 ms
    1,024, 576 and 1,536, bfloat16     4.9 ms     3.9 ms
    32, 576 and 1,536, float32         0.73 ms    0.30 ms
    1,024, 576 and 1,536, float32      18.9 ms    8.4 ms

`benchmarks/local_throughput.py` pays for it; docs/performance.md ("A local model") has the figures of whole runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import Linear, Parameter

DTYPES = (torch.bfloat16, torch.float32)
PACKED_SHARE = 0.3  # The part of the free memory that weights may take once more.


def pack_weights(model: Any, free_bytes: int) -> int:
    """Let the products of a model on a CPU use weights in oneDNN's order, where memory has room for these, too.

    Args:
        model: the loaded model. Its own weights stay as they are, because some models read them elsewhere.
        free_bytes: memory that is free.

    Returns:
        How much of it is taken now.
    """
    products = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    taken = sum(int(product.weight.nbytes) for product in products)
    if taken > PACKED_SHARE * free_bytes or not torch.backends.mkldnn.is_available():
        return 0
    with torch.inference_mode():
        for product in products:
            packed = torch.ops.mkldnn._reorder_linear_weight(product.weight)
            product.forward = partial(_product, packed, product.bias)
    return taken


def unpack_weights(model: Any) -> None:
    """Undo `pack_weights`, whose products hold copies of the weights that the model has had."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "func", None) is _product:  # Others are somebody else's.
            del module.forward


def _is_plain(product: Linear) -> bool:
    """Whether a product's own numbers lie on the CPU as they are: neither quantised nor fetched by a hook."""
    weight = product.weight
    return (
        type(weight) is Parameter
        and type(weight.data) is torch.Tensor
        and weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and not (product._forward_hooks or product._forward_pre_hooks or "forward" in vars(product))
    )


def _product(packed: torch.Tensor, bias: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")
    return product
