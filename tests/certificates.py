"""Certificates of an authority that only the tests believe in."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ledger.config import TlsSettings


class Files(NamedTuple):
    """Where the service finds what TLS needs."""

    certificate: Path
    key: Path
    authorities: Path

    def settings(self, *, is_mutual: bool) -> TlsSettings:
        """The settings that name them."""
        authorities = str(self.authorities) if is_mutual else None
        return TlsSettings(str(self.certificate), str(self.key), authorities)

    def write(self, issued: trustme.LeafCert, authority: trustme.CA) -> None:
        """Put a certificate, its key and the authority that vouches for callers there."""
        replace(self.certificate, b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        replace(self.key, issued.private_key_pem.bytes())
        replace(self.authorities, authority.cert_pem.bytes())


def replace(path: Path, content: bytes) -> None:
    """Put a file of its owner's alone in the place of another, as one step."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.touch(0o600)
    unfinished.write_bytes(content)
    unfinished.rename(path)


def files(directory: Path) -> Files:
    """Files that are not there yet."""
    return Files(directory / "certificate", directory / "key", directory / "authorities")


def credentials(
    authority: trustme.CA, shown: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    """What a caller trusts, and the certificate that it shows."""
    if shown is None:
        return grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    chain = b"".join(pem.bytes() for pem in shown.cert_chain_pems)
    return grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(), shown.private_key_pem.bytes(), chain
    )


def issued(authority: trustme.CA, common_name: str, *uris: str) -> trustme.LeafCert:
    """A certificate with a common name and, if any, alternative names that are URIs."""
    signing = load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = builder.sign(signing, SHA256()).public_bytes(Encoding.PEM)
    return trustme.LeafCert(private, chain, [])
