"""The API's certificate: self-signed, made on first start, renewed in time also while the daemon runs.

A certificate that the operator put there (whose issuer is not `ORGANIZATION`) is used as it is and never replaced.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from watchtower.rpc.files import write_private

ORGANIZATION = "channeld self-signed"
VALIDITY = datetime.timedelta(days=397)
RENEW_BEFORE_EXPIRY = datetime.timedelta(days=30)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_BACKDATE = datetime.timedelta(days=1)  # for clients whose clocks are slow

_log = structlog.get_logger(__name__)


class TlsPaths(Protocol):
    """Where certificate and key are, PEM."""

    @property
    def tls_cert(self) -> Path: ...
    @property
    def tls_key(self) -> Path: ...


class TlsError(Exception):
    """The certificate or its key cannot be used; the text is a sentence that says what to do."""


class Certificate:
    """The certificate and key files of a daemon. `hosts` are names and addresses besides the local ones."""

    def __init__(
        self,
        paths: TlsPaths,
        hosts: Iterable[str] = (),
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._cert_path = paths.tls_cert
        self._key_path = paths.tls_key
        self._hosts = tuple(dict.fromkeys(_normal(host) for host in (*_LOCAL_HOSTS, *hosts)))
        self._now = now
        self._expires: datetime.datetime | None = None

    def load_or_make(self) -> tuple[bytes, bytes]:
        """The private key and the certificate, PEM; made anew where missing, expiring or for other hosts.

        Raises `TlsError`.
        """
        if not (self._cert_path.exists() and self._key_path.exists()):
            return self._make()
        key_pem = _read(self._key_path)
        cert_pem = _read(self._cert_path)
        try:
            certificate = x509.load_pem_x509_certificate(cert_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise TlsError(
                f"{self._cert_path} or {self._key_path} is damaged ({error}); "
                "remove both, and the daemon makes new ones when it starts."
            ) from error
        if key.public_key() != certificate.public_key():
            raise TlsError(
                f"{self._key_path} is not the key of {self._cert_path}; put the right one there, or remove both, "
                "and the daemon makes new ones when it starts."
            )
        left = certificate.not_valid_after_utc - self._now()
        if _is_ours(certificate):
            if left < RENEW_BEFORE_EXPIRY or not set(self._hosts) <= _hosts(certificate):
                return self._make()
        elif left <= datetime.timedelta(0):
            raise TlsError(
                f"The certificate {self._cert_path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it, "
                f"or remove it and {self._key_path}, and the daemon makes its own when it starts."
            )
        self._key_path.chmod(0o600)
        self._expires = certificate.not_valid_after_utc
        return key_pem, cert_pem

    def server_credentials(self) -> grpc.ServerCredentials:
        """TLS for the server. Each handshake looks whether the certificate is due, and renews it. Raises `TlsError`."""
        key_pem, cert_pem = self.load_or_make()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            if self._expires is not None and self._expires - self._now() >= RENEW_BEFORE_EXPIRY:
                return None
            try:
                return grpc.ssl_server_certificate_configuration([self.load_or_make()])
            except (TlsError, OSError) as error:
                _log.error("tls_certificate_not_renewed", reason=str(error))
                return None

        return grpc.dynamic_ssl_server_credentials(
            grpc.ssl_server_certificate_configuration([(key_pem, cert_pem)]),
            renewed,  # type: ignore[arg-type]  # the stubs leave out that None means "no change"
        )

    def _make(self) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
                x509.NameAttribute(NameOID.COMMON_NAME, "localhost"),
            ]
        )
        now = self._now()
        self._expires = now + VALIDITY
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(self._expires)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in self._hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        cert_pem = certificate.public_bytes(serialization.Encoding.PEM)
        # The old certificate goes first, so that a crash in between never leaves a pair that does not match.
        self._cert_path.unlink(missing_ok=True)
        write_private(self._key_path, key_pem)
        write_private(self._cert_path, cert_pem)
        _log.info("tls_certificate_made", path=str(self._cert_path), expires=f"{self._expires:%Y-%m-%d}")
        return key_pem, cert_pem


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read ({error.strerror}); make it readable for the daemon.") from error


def _is_ours(certificate: x509.Certificate) -> bool:
    names = certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(name.value == ORGANIZATION for name in names)


def _hosts(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _normal(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()
