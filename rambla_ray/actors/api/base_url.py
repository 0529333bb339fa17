"""The URL of an endpoint, and what may be wrong with it."""

from __future__ import annotations

import ipaddress
import re

from yarl import URL

from rambla_ray.display import one_line

LONGEST_SHOWN = 100  # So many characters of a URL stand in a message.
_NEVER_IN_A_URL = re.compile(r"[\s<>\"{}|\\^`]")  # RFC 3986; letters of other scripts are encoded when it is used.
_ENDS_IN_A_COLON = re.compile(r"[^:/]*://[^/?]*:([/?]|$)")
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE)


def fault_of(base_url: str, name: str = "") -> str:
    """What is wrong with the URL of an endpoint; empty where nothing is.

    One with a password is refused with the rest of the config, by `config.secrets`.

    Args:
        base_url: the URL.
        name: what messages call it; itself when not given, unless a key may be in it.
    """
    may_hold_secret = "@" in base_url or "?" in base_url
    shown = name or ("base_url" if may_hold_secret else f"base_url {one_line(base_url, LONGEST_SHOWN)!r}")
    if not base_url.isprintable() or _NEVER_IN_A_URL.search(base_url):
        return f"{shown} is no URL; it has a space, or another character that no URL has"
    try:
        url = URL(base_url)
        host, port = url.raw_host or "", url.port
    except ValueError:
        return f"{shown} is no URL; a host and its port are written host:8000, and an IPv6 address in brackets"
    if url.user is not None and url.password is None:
        return f"base_url of {host} holds a user name, or a key, whose place is in the environment"
    if url.scheme not in ("http", "https"):
        return f"{shown} is no URL; it begins with https:// or http://"
    if not _is_host(host):
        return f"{shown} is no URL; it names no host that there can be"
    if not port or _ENDS_IN_A_COLON.match(base_url):
        return f"{shown} is no URL; its port is a number from 1 to 65535, or is left out with its colon"
    if "#" in base_url:
        return f"{shown} has a fragment (#), which is never sent; leave it out"
    return ""


def _is_host(host: str) -> bool:
    """Whether a host is an address, or a name that DNS can hold."""
    try:
        ipaddress.ip_address(host.partition("%25")[0])
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]  # That of a name is no number, or it would be a broken address.
        return len(host) <= 253 and bool(_NAME.fullmatch(host)) and not last.isdecimal()
    return True
