"""A chat template is a program of others. Here it is run once within bounds of time and size, before it is used.

transformers renders templates in jinja2's sandbox, which keeps them from files and from Python's insides, and limits
one `range`. It limits neither loops inside each other nor a text that doubles with each turn, and it computes what is
constant while it compiles. Here each operation that can make much of little is looked at before it is done, and
Python's own tracing, which sees every line of the compiled template, ends it when its time is over. An own process
with limits would do it, too; it would cost seconds of imports for each model, and a fork beside torch's threads.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_S = 5.0  # A template may compute so long for one message, in seconds of this thread on a CPU.
LARGEST = 10_000_000  # No value that it computes has more characters, items or bits.
MOST_WORK = 100 * LARGEST  # No step multiplies sizes beyond this.
LONGEST_TEMPLATE = 1_000_000  # It has no more characters itself.

# Functions, filters and methods of texts that pad what they are given to a width.
_PADS = frozenset({"center", "ljust", "rjust", "zfill", "indent", "batch", "slice", "wordwrap", "tojson", "to_bytes"})
_MULTIPLIES = frozenset({"replace", "join", "indent", "expandtabs", "format", "format_map"})
_FORMATS = frozenset({"format", "format_map"})
_WIDE = re.compile(r"\d{7}")  # A width in a format.
_WIDE_IF_ASKED = re.compile(r"\*|:[^}]*\{")  # A width that comes with the values.


class Excess(ValueError):
    """A template that computes too long or too much. The message is a predicate."""


class _TooMuch(BaseException):
    """The same while it is rendered: jinja2 and templates cannot catch it."""


def refuse_endless(
    template: str, strftime: Callable[[str], str], variables: Mapping[str, Any], longest_s: float = LONGEST_S
) -> None:
    """Render a template as transformers would, to see that it ends. What else may be wrong shows when it is used.

    Args:
        template: its source.
        strftime: that of the day that it is to the template.
        variables: what it is given.
        longest_s: seconds of this thread on a CPU that it may take.

    Raises:
        Excess: it does not end in time, or computes a value that is larger than `LARGEST`.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise Excess(f"is longer than {LONGEST_TEMPLATE:,} characters")
    try:
        environment = _Bounded.like_transformers()
        environment.globals["strftime_now"] = strftime
        with _deadline(longest_s):
            environment.from_string(template).render(**variables)
    except _TooMuch as error:
        raise Excess(str(error)) from None
    except Exception:  # noqa: BLE001 - a template is a program, and raises what its author left in it
        return


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises `_TooMuch` at the first line of Python after so many seconds of computing in this thread."""
    before, earliest, end = sys.gettrace(), time.monotonic() + seconds, time.thread_time() + seconds

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > earliest and time.thread_time() > end:  # The second clock is ten times as slow to read.
            raise _TooMuch(f"computes for more than {seconds:g} s for one message")
        return None if frame.f_code.co_filename == __file__ else trace  # What is here is bounded by itself.

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class _Bounded(ImmutableSandboxedEnvironment):
    """transformers' environment, with a look at each operation that can make much of little."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    @classmethod
    def like_transformers(cls) -> _Bounded:
        """An environment with the options, filters and functions of the one that transformers compiles with."""
        from transformers.utils import chat_template_utils

        theirs = chat_template_utils._compile_jinja_template("").environment
        own = cls(
            trim_blocks=theirs.trim_blocks,
            lstrip_blocks=theirs.lstrip_blocks,
            extensions=[type(extension) for extension in theirs.extensions.values()],
            finalize=_measured,
        )
        own.filters = {name: _watched(name, function) for name, function in theirs.filters.items()}
        own.tests, own.globals = dict(theirs.tests), dict(theirs.globals)
        return own

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Folded(self).visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_binop(operator, left, right)
        return _measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # as jinja2 has it
        method = getattr(__obj, "__wrapped__", __obj)  # The sandbox wraps `format`.
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        _check_call(name, [*([owner] if isinstance(owner, str | int) else ()), *args, *kwargs.values()])
        return _measured(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of an output. Raises `_TooMuch`."""
        kept, size = [], 0
        for part in parts:
            size += len(part)
            _refuse_above(size, LARGEST)
            kept.append(part)
        return "".join(kept)


class _Folded(NodeTransformer):
    """Joins by `~` become a filter, which is watched; what is constant is computed here, and not by the compiler."""

    def __init__(self, environment: _Bounded) -> None:
        self._environment = environment

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        place = {"lineno": node.lineno, "environment": self._environment}
        return nodes.Filter(nodes.List(node.nodes, **place), "join", [], [], None, None, **place)

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        visited = super().generic_visit(node, *args, **kwargs)
        if not isinstance(visited, nodes.BinExpr) or visited.operator not in self._environment.intercepted_binops:
            return visited
        try:
            left, right = visited.left.as_const(), visited.right.as_const()
            value = self._environment.call_binop(None, visited.operator, left, right)
            return nodes.Const.from_untrusted(value, visited.lineno, self._environment)
        except Exception:  # noqa: BLE001 - it is no constant, or one that cannot be computed, which is seen when it is run
            return visited


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given, and what it returns."""

    passed = getattr(function, "jinja_pass_arg", None)  # jinja2 then puts something of its own before the value.

    def watched(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, [*args[int(passed is not None) :], *kwargs.values()])
        return _measured(function(*args, **kwargs))

    watched.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return watched


def _check_binop(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        counts = [_bits(side) if isinstance(left, int) and isinstance(right, int) else side for side in (left, right)]
        numbers = [abs(side) for side in counts if isinstance(side, int)]
        sizes = [len(side) for side in counts if isinstance(side, Sequence)]
        _refuse_above(sum(numbers) if len(numbers) == 2 else sum(numbers) * sum(sizes), LARGEST)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _refuse_above(_bits(left) * abs(right), LARGEST)
    elif operator == "%" and isinstance(left, str):
        _check_call("format", [left, right])


def _check_call(name: str, given: Sequence[Any]) -> None:
    """Refuse a call that would make too much of what it is given."""
    sizes = [_deep_size(value) for value in given]
    numbers = [abs(value) for value in _flat(given[1:]) if isinstance(value, int)]
    pads = name in _PADS
    if name in _FORMATS:
        text = given[0] if given and isinstance(given[0], str) else ""
        if _WIDE.search(text):
            raise _too_large()
        pads = bool(_WIDE_IF_ASKED.search(text))
    elif name in _MULTIPLIES:
        sizes += numbers
    if pads:
        _refuse_above(max(numbers, default=0), LARGEST)
    if name in _MULTIPLIES and sizes:
        _refuse_above(sizes[0] * max(sizes[1:], default=1), MOST_WORK)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """Values, and what stands in the tuples among them: `%` takes its values as one."""
    for value in values:
        yield from value if isinstance(value, tuple) else (value,)


def _measured(value: Any) -> Any:
    """A value, unless it is too large."""
    _refuse_above(_bits(value) if isinstance(value, int) else _deep_size(value), LARGEST)
    return value


def _deep_size(value: Any) -> int:
    """The characters and items of a value and of what is inside of it."""
    if isinstance(value, str):
        return len(value)
    size, rest = 0, [value]
    while rest:
        inner = rest.pop()
        size += len(inner) if isinstance(inner, str | bytes | range) else 1
        _refuse_above(size, LARGEST)
        if isinstance(inner, Mapping):
            rest.extend(inner.values())
        elif isinstance(inner, list | tuple | set | frozenset):
            _refuse_above(size + len(inner), LARGEST)
            rest.extend(inner)
    return size


def _bits(number: int) -> int:
    return int(number).bit_length()


def _refuse_above(size: int, most: int) -> None:
    if size > most:
        raise _too_large()


def _too_large() -> _TooMuch:
    return _TooMuch(f"computes a text, list or number of more than {LARGEST:,} characters, items or bits")
