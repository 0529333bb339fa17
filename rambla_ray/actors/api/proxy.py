"""The HTTP proxy on the way to an endpoint, as the environment names it.

What `no_proxy` excepts is decided here: urllib knows no networks, requests no ports beside an address, and httpx2 no
port that is the scheme's own.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.request import getproxies

from yarl import URL

from rambla_ray.errors import UserError


def proxy_of(url: URL) -> URL | None:
    """The proxy for an endpoint: of its scheme (`https_proxy`), else `all_proxy`; None where it is asked directly.

    `no_proxy` takes host names, which hold for their subdomains, addresses, networks (`10.0.0.0/8`), each with a port
    or without, and `*`. Every variable may be written in upper case.

    Raises:
        UserError: the variable holds no proxy that can be used.
    """
    proxies = getproxies()
    scheme = url.scheme if proxies.get(url.scheme) else "all"
    proxy = proxies.get(scheme, "").strip()
    excepted = re.split(r"[,\s]+", proxies.get("no", ""))
    if not proxy or any(_excepts(entry, url.host or "", url.port) for entry in excepted if entry):
        return None
    return _parsed(proxy, f"{scheme}_proxy")


def _excepts(entry: str, host: str, port: int | None) -> bool:
    name, _, digits = entry.rpartition(":")
    if not digits.isdigit() or (":" in name and not name.endswith("]")):  # There is no port behind the name.
        name, digits = entry, ""
    if digits not in ("", str(port)):
        return False
    name = name.lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(re.sub(r"[\[\]]", "", name), strict=False)
    except ValueError:
        name = name.removeprefix("*").lstrip(".")
        return entry == "*" or host == name or (bool(name) and host.endswith(f".{name}"))


def _parsed(proxy: str, variable: str) -> URL:
    """The proxy as a URL, whose scheme is http where none is given. No message shows it: it may hold a password."""
    if proxy.lower().startswith("socks") and "://" in proxy:
        raise UserError(f"{variable} names a SOCKS proxy, which is not supported; name an HTTP proxy, or unset it")
    try:
        url = URL(proxy if "://" in proxy else f"http://{proxy}")
        is_usable = url.scheme in ("http", "https") and url.host and url.port and url.path in ("", "/")
    except ValueError:
        is_usable = False
    if not is_usable or not proxy.isprintable() or " " in proxy:
        raise UserError(f"{variable} is no URL of a proxy; it is written http://HOST:PORT")
    return url
