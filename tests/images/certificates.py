"""Certificates for a server, an engine on loopback above all, as ``DOCKER_CERT_PATH`` has them: ca.pem, cert.pem and key.pem; server.pem for its side."""

from __future__ import annotations

import datetime
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = datetime.timedelta(hours=1)


def write_certificates(folder, client_lasts=HOUR, address="127.0.0.1"):
    """Writes an authority, and a certificate of it for each side, both for ``address``; the client's for so long from now."""
    authority = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("authority", authority, authority, HOUR, address, is_authority=True)
    (folder / "ca.pem").write_bytes(_pem(root))
    for name, files, lasts in (
        ("server", ("server.pem", "server.pem"), HOUR),
        ("client", ("cert.pem", "key.pem"), client_lasts),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        made = _pem(_certificate(name, key, authority, lasts, address, is_authority=False))
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for file, data in zip(files, (made, secret), strict=True):
            with open(folder / file, "ab") as stream:
                stream.write(data)


def server_context(folder):
    """TLS of an engine that lets in whom the folder's authority knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.pem")
    return context


def _certificate(name, key, issuer_key, lasts, host, *, is_authority):
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.KeyUsage(
        True, False, False, False, False, is_authority, is_authority, False, False
    )
    address = x509.IPAddress(ipaddress.ip_address(host))
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - HOUR)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)
