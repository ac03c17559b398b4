"""Addresses: hosts, and the URLs of servers."""

import contextlib
import ipaddress
import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from marketfeed.settings.values import expected

_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})")


def is_loopback(host: str) -> bool:
    """Whether only this host reaches what listens at `host`, an IP address or a name."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    # Python before 3.13 does not see that ::ffff:127.0.0.1 is 127.0.0.1.
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def network_of(address: str) -> str:
    """Whom an IP address belongs to: itself, of IPv6 its /64; what is none stays as it is."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    if (mapped := found.ipv4_mapped) is not None:
        return str(mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _is_host(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    labels = text.removesuffix(".").split(".")
    # A last label of digits alone is a mistyped IPv4 address, not a name.
    good = all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
    return good and len(text) <= 253


def _host(host: object) -> object:
    if isinstance(host, str) and host.isascii() and _is_host(host):
        return host
    raise expected("a host name or an IP address such as 127.0.0.1, without a port")


Host = Annotated[str, BeforeValidator(_host)]
"""An address to listen on."""


def address(*schemes: str, may_have_path: bool = True) -> BeforeValidator:
    """A URL of one of `schemes`, normalised: scheme and host in small letters, no slash at its end.

    User names, passwords, queries and fragments are refused: a URL is no place for a secret.
    """
    what = " or ".join(f"{scheme}://host[:port]" for scheme in schemes)
    if not may_have_path:
        what += " without a path"

    def read(value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
            raise expected(what)
        if "@" in value:
            raise expected(f"{what} and without user:password@")
        try:
            parts = urlsplit(value)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise expected(what) from None
        path = parts.path.rstrip("/")
        good = parts.scheme in schemes and _is_host(host) and (may_have_path or not path)
        if not good or port == 0 or "?" in value or "#" in value:
            raise expected(what)
        host = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}") + path

    return BeforeValidator(read)
