"""The certificate with which the control plane speaks TLS: read once to see that it will do, and how its other processes know it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from multinode.errors import InputError


@dataclass(frozen=True)
class Certificate:
    """Two PEM files: the certificate with those that vouch for it, and its key, which has no password."""

    cert: Path
    key: Path

    def check(self) -> None:
        """Raises InputError where the two cannot be used."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            message = f"{self.cert} and {self.key} are no certificate with its key: {reason}."
            raise InputError(
                message, "--tls-cert and --tls-key are PEM files; the key has no password."
            ) from error
        except OSError as error:
            name = self._unreadable()
            message = f"{name} cannot be read: {error.strerror}."
            raise InputError(message, "--tls-cert and --tls-key name files.") from error

    def _unreadable(self) -> Path:
        try:
            self.cert.read_bytes()
        except OSError:
            return self.cert
        return self.key

    def of_peers(self) -> ssl.SSLContext:
        """For a client that trusts this certificate alone, whatever the name: processes of one control plane share it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.cert)
        return context
