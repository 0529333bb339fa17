"""A model's own modules for CPUs: the same results up to rounding, in fewer passes over memory.

transformers writes a norm as six operations with temporaries in float32; PyTorch has it as one. oneDNN, which computes
the products, takes weights in the order in which it reads them and applies what follows a product before it stores it:
PyTorch's compiler calls these functions, but compiling a model takes longer than most runs. On one core:

                                             transformers    here
    a norm of 1,024 tokens, bfloat16         2.3 ms          0.25 ms
    a gated layer, 1,024 tokens, bfloat16    16.1 ms         11.2 ms
    a product of 32 rows, 576 to 1,536       0.22 ms         0.13 ms
    the same in float32, on an AMD EPYC      0.76 ms         0.32 ms

No model is known by name: what a substitute computes is compared with what the module computes.
`benchmarks/local_throughput.py` pays for it; docs/performance.md ("A local model") has the figures of whole runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import Linear, Module
from torch.nn.functional import gelu, relu, rms_norm, silu

Forward = Callable[[torch.Tensor], torch.Tensor]
Packed = Mapping[Module, Forward]

TOLERANCES = {torch.bfloat16: 2**-6, torch.float32: 2**-18}  # By the model's type, of the largest number.
PACKED_SHARE = 0.3  # The part of the free memory that weights in oneDNN's order may take.
ACTIVATIONS: dict[tuple[str, str], Forward] = {  # oneDNN's names.
    ("swish", ""): silu,
    ("gelu", "none"): gelu,
    ("gelu", "tanh"): partial(gelu, approximate="tanh"),
    ("relu", ""): relu,
}


def speed_up(model: Any, free_bytes: int) -> int:
    """Compute what the modules of a model on a CPU compute in faster ways.

    Args:
        model: the loaded model.
        free_bytes: memory that is free.

    Returns:
        How much of it is taken now.
    """
    if model.device.type != "cpu" or model.dtype not in TOLERANCES or not torch.backends.mkldnn.is_available():
        return 0
    plain = [module for module in model.modules() if _is_plain(module, model.dtype)]
    linear = [module for module in plain if type(module) is Linear]
    taken = int(sum(module.weight.nbytes for module in linear))
    if taken > PACKED_SHARE * free_bytes:
        linear, taken = [], 0
    with torch.inference_mode():
        packed = {module: torch.ops.mkldnn._reorder_linear_weight(module.weight) for module in linear}
        for module in plain:
            forward = _norm(module) or _gated(module, packed)
            if forward is not None and _agree(module, forward):
                module.forward = forward
        for module, weight in packed.items():
            module.forward = partial(_product, weight, module.bias)
    return taken


def plain_again(model: Any) -> None:
    """Undo `speed_up`, whose substitutes hold copies of the weights that the model has had."""
    for module in model.modules():
        vars(module).pop("forward", None)


def _is_plain(module: Any, dtype: torch.dtype) -> bool:
    """Whether a module computes from one tensor what its class says: there are no hooks, and no other tensor types."""
    return (
        not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and len(inspect.signature(module.forward).parameters) == 1
        and all(
            type(weight) is torch.nn.Parameter and weight.dtype == dtype and weight.device.type == "cpu"
            for weight in module.parameters()
        )
    )


def _product(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _norm(module: Any) -> Forward | None:
    """The root-mean-square norm that a module may be."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    return partial(_rms_norm, weight, epsilon)


def _rms_norm(weight: torch.Tensor, epsilon: float, states: torch.Tensor) -> torch.Tensor:
    return rms_norm(states, weight.shape, weight, epsilon)


def _gated(module: Any, packed: Mapping[Module, torch.Tensor]) -> Forward | None:
    """The gated layer that a module may be, by the names that transformers gives to the parts of one."""
    products: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = _activation(getattr(module, "act_fn", None))
    if activation is None or any(product not in packed for product in products):
        return None
    gate, up, down = ((packed[product], product.bias) for product in products)

    def gated(states: torch.Tensor) -> torch.Tensor:
        name, algorithm = activation
        opened = torch.ops.mkldnn._linear_pointwise(states, *gate, name, [], algorithm)
        return _product(*down, torch.ops.mkldnn._linear_pointwise(states, opened, *up, "mul"))

    return gated


def _activation(function: Any) -> tuple[str, str] | None:
    """What oneDNN calls a function of each number; None if it does not know it."""
    if not callable(function):
        return None
    points = torch.linspace(-8, 8, 101)
    found = function(points)
    return next((name for name, known in ACTIVATIONS.items() if torch.allclose(known(points), found, atol=1e-6)), None)


def _agree(module: Any, forward: Forward) -> bool:
    """Whether a module and a substitute for it give the same, up to rounding, for a few made-up tokens."""
    weight = next(module.parameters())
    # Numbers around 1, because a norm that subtracts the mean would look alike for numbers around 0.
    states = torch.randn(2, 4, weight.shape[-1], generator=torch.Generator().manual_seed(0)).add_(1).to(weight.dtype)
    expected, got = module(states), forward(states)
    difference = (got - expected).abs().max() <= TOLERANCES[weight.dtype] * expected.abs().max()
    return got.dtype == expected.dtype and got.shape == expected.shape and bool(difference)
