"""A self-signed certificate for the simulator, made afresh each time."""

import ipaddress
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

_DAYS: Final = 30
_NAME: Final = "localhost"


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for localhost and 127.0.0.1, and its key, into `directory`.

    Returns both paths. Uses the cryptography package, or the openssl command where that is missing;
    raises RuntimeError if neither is there.
    """
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    try:
        _with_cryptography(certificate, key)
    except ImportError:
        _with_openssl(certificate, key)
    return certificate, key


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a TLS context that serves with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _with_cryptography(certificate: Path, key: Path) -> None:
    from cryptography import x509  # noqa: PLC0415 - optional: only a simulator with TLS wants it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _with_openssl(certificate: Path, key: Path) -> None:
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", str(_DAYS), "-subj", f"/CN={_NAME}",
        "-addext", f"subjectAltName=DNS:{_NAME},IP:127.0.0.1",
        "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    try:
        # The arguments are this function's own; openssl is looked up in the caller's PATH on purpose.
        subprocess.run(command, check=True, capture_output=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(
            f"TLS needs the cryptography package or the openssl command: {error}"
        ) from error
