"""A family: the models of one actor that differ in their adapters alone, and load their base once.

Merging is exact: the base's own weights are kept, and one adapter after the other is merged into them. So each answers
as it does alone, to the bit, and computes no more for a token than a model without adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rambla_ray.actors.local.adapters import Adapter
from rambla_ray.actors.local.memory import free_bytes
from rambla_ray.actors.local.merging import merge

CHANGED_BY_MERGING = ("vocab_size", "tie_word_embeddings")  # What it may set in the config of a model.


class Family:
    """What the models of one actor share. All computing is done in one thread, so that one adapter is on at a time.

    Attributes:
        thread: the models' thread, in which `put_on` is called.
        adapters: those of all members, in their order.
        model: the base, loaded by the first member; None until then.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.adapters: list[Adapter | None] = []
        self.model: Any = None
        self._engine: Any = None
        self._merged: Adapter | None = None
        self._modules: dict[str, Any] = {}
        self._config: dict[str, Any] = {}
        self._kept: dict[Any, Any] = {}  # By parameter of the base, its own tensor; in the host's memory.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()

    def adopt(self, model: Any) -> None:
        """Take the base, as it was loaded."""
        self.model = model
        self._modules = dict(model.named_modules())
        self._config = {name: getattr(model.config, name, None) for name in CHANGED_BY_MERGING}

    def engine(self, make: Callable[[], Any]) -> Any:
        """An engine that all members use, made by the first of them."""
        if self._engine is None:
            self._engine = make()
        return self._engine

    def put_on(self, adapter: Adapter, tokens: int | None = None) -> None:
        """Have the model compute with an adapter from now on. Raises Misfit."""
        if self._merged is adapter:
            return
        from rambla_ray.actors.local.cpu_products import pack_weights, unpack_weights

        unpack_weights(self.model)
        self._take_off()
        merge(self.model, adapter.folder, tokens, self._keep)
        pack_weights(self.model, free_bytes("cpu", 1.0))  # It leaves a model on a GPU as it is.
        self._merged = adapter

    def terms(self, adapter: Adapter | None) -> dict[str, Any]:
        """What the engine of a member takes from the family; see `ModelContext`."""
        return {"turn": self.turn, **({"begin": partial(self.put_on, adapter)} if adapter else {})}

    def turn(self) -> asyncio.Lock:
        """The right to answer in batches, which the members have in the order in which they ask for it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._turn = loop, asyncio.Lock()
        return self._turn

    def _keep(self, parameter: Any, own: Any) -> None:
        self._kept.setdefault(parameter, own.to("cpu"))

    def _take_off(self) -> None:
        """Give the base its own weights and modules back."""
        self._merged = None
        for name, value in self._config.items():
            setattr(self.model.config, name, value)
        for name, module in self._modules.items():
            outer, _, own = name.rpartition(".")
            if name and getattr(self._modules[outer], own) is not module:
                setattr(self._modules[outer], own, module)
        for parameter, tensor in self._kept.items():
            parameter.data = tensor.to(parameter.device)
