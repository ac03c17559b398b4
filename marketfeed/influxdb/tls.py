"""Whose word an InfluxDB's certificate is taken on: the settings' own authority, or the system's.

An authority that is set through the environment (SSL_CERT_FILE) takes the place of the public ones for the
connections to the exchange, too, which then fail.
"""

import ssl
from functools import cache
from pathlib import Path

from marketfeed.settings.model import InfluxSettings


def trust_of(settings: InfluxSettings) -> ssl.SSLContext | bool:
    """What aiohttp takes as `ssl` for requests to this server: True stands for the system's authorities."""
    return True if settings.ca_file is None else _trust(settings.ca_file)


@cache
def _trust(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))


def with_advice(words: str, settings: InfluxSettings) -> str:
    """An error's words; those of a certificate that is not trusted name the setting."""
    if "certificate verify failed" not in words.lower():
        return words
    trusted = settings.ca_file or "the system's authorities"
    return (
        f"{words} (trusted is {trusted}; influxdb.ca_file names a private authority's certificate)"
    )
