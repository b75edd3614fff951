"""Self-signed certificates for servers of a test."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def self_signed(
    directory: Path, host: str = "localhost", *, valid: timedelta = timedelta(days=1)
) -> Path:
    """Write `proxy.crt` (for the host and 127.0.0.1) and `proxy.key`; returns the first path.

    It ends in `valid`, which may be negative.
    """
    certificate, key = certificate_for(*dict.fromkeys((host, "127.0.0.1")), valid=valid)
    kept = directory / "proxy.crt"
    kept.write_bytes(certificate)
    (directory / "proxy.key").write_bytes(key)
    return kept


def certificate_for(*hosts: str, valid: timedelta = timedelta(days=1)) -> tuple[bytes, bytes]:
    """A certificate for these names and IPv4 addresses, and its key; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # Of several in one trust store with the same name, OpenSSL would find only the first.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, hosts[0]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)),
        ]
    )
    now = datetime.now(UTC)
    names = [
        x509.IPAddress(IPv4Address(host)) if host[0].isdigit() else x509.DNSName(host)
        for host in hosts
    ]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
