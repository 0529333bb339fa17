"""The versions that results may depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache

PACKAGES = ("ray", "torch", "transformers", "openai", "datasets", "scikit-learn", "scipy", "numpy", "pyarrow")


@cache
def versions() -> Mapping[str, str | None]:
    """The versions on this machine of Python and of the packages that results may depend on.

    The version of a package that is not installed is None.
    """
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed
