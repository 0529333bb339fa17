"""Where the files are that come with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED_CONF = _PACKAGE / "conf"  # A wheel holds conf/ inside the package; in a checkout it lies beside it.
SHIPPED_CONF = _INSTALLED_CONF if _INSTALLED_CONF.is_dir() else _PACKAGE.parent / "conf"
