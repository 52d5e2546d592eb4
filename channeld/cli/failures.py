"""What goes wrong, in a sentence and an exit status: the one place where that is decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from watchtower.rpc.commandline import (
    ALREADY_EXISTS,
    FAILED,
    INTERRUPTED,
    KEY_REUSED,
    NOT_ALLOWED,
    NOT_ENOUGH,
    NOT_FOUND,
    NOT_KNOWN_YET,
    NOT_NOW,
    OK,
    STATUS_OF_CODE,
    UNAVAILABLE,
    USAGE,
    CliError,
    as_sentence,
    is_from_daemon,
)

if TYPE_CHECKING:
    import grpc

__all__ = [
    "ALREADY_EXISTS",
    "EXIT_STATUSES",
    "FAILED",
    "INTERRUPTED",
    "KEY_REUSED",
    "NOT_ALLOWED",
    "NOT_ENOUGH",
    "NOT_FOUND",
    "NOT_KNOWN_YET",
    "NOT_NOW",
    "OK",
    "UNAVAILABLE",
    "USAGE",
    "CliError",
    "Place",
    "as_sentence",
    "connection_was_lost",
    "from_rpc_error",
    "is_from_daemon",
    "not_running",
]

EXIT_STATUSES = (
    "Exit status: 0 done; 1 failed; 2 wrong usage or a wrong argument; 3 not found; 4 not enough money; "
    "5 the daemon, the peer or layer 1 is away; 6 exists or is paid already; 7 not possible now; "
    "8 the outcome is not known yet; 9 wrong token or certificate; 10 the idempotency key was used for something else; "
    "130 interrupted."
)


class Place(NamedTuple):
    """Where the daemon was looked for; for the sentences."""

    address: str
    tls_cert: Path
    token_file: Path
    start_command: str


def connection_was_lost(error: grpc.RpcError) -> bool:
    """Whether it is open what the daemon did with the request."""
    return error.code().name == "UNAVAILABLE" and not is_from_daemon(error)


def from_rpc_error(error: grpc.RpcError, place: Place) -> CliError:
    """The sentence and the exit status for a call that failed."""
    code, details = error.code().name, error.details() or ""
    if code == "UNAUTHENTICATED":
        return CliError(
            f"The daemon at {place.address} does not accept the token in {place.token_file}.",
            "Name the right file with --token-file, or the right --datadir and --network.",
            NOT_ALLOWED,
        )
    if is_from_daemon(error):
        return CliError(as_sentence(details), _HINTS.get(code, ""), STATUS_OF_CODE.get(code, FAILED))
    if code == "UNAVAILABLE":
        return _unreachable(details, place)
    if code == "DEADLINE_EXCEEDED":
        return CliError(
            f"The daemon at {place.address} did not answer in time.",
            "It may be busy, or something else listens there; its log tells.",
            NOT_KNOWN_YET,
        )
    if code == "UNIMPLEMENTED":
        return CliError(
            f"The daemon at {place.address} does not know this command.",
            "It is older than this channelctl, or something else listens there.",
            UNAVAILABLE,
        )
    if code == "RESOURCE_EXHAUSTED":
        return CliError(f"The message is too large: {details}.", "", USAGE)
    return CliError(f"The call failed: {details or code}.", "", STATUS_OF_CODE.get(code, FAILED))


_HINTS = {
    "INTERNAL": "Nothing else is known here; the daemon's log is the place to look.",
    "ABORTED": "Use a new key, or leave --idempotency-key out.",
}


def not_running(place: Place) -> CliError:
    """Nobody listens."""
    return CliError(
        f"The daemon is not running at {place.address}.",
        f"Start it with `{place.start_command}`, or name another with --rpcserver, --network or --datadir.",
        UNAVAILABLE,
    )


def _unreachable(details: str, place: Place) -> CliError:
    lowered = details.lower()
    if "certificate_verify_failed" in lowered:
        return CliError(
            f"{place.tls_cert} is not the certificate of the daemon at {place.address}.",
            "Name the right file with --tls-cert, or the right --datadir and --network.",
            NOT_ALLOWED,
        )
    if "hostname verification" in lowered:
        return CliError(
            f"The certificate {place.tls_cert} is not for the host in {place.address}.",
            "Add that host to the daemon's configuration, so that its certificate names it.",
            NOT_ALLOWED,
        )
    if "security handshaker" in lowered:
        return CliError(f"{place.tls_cert} is not a certificate.", "Name the right file with --tls-cert.", NOT_ALLOWED)
    if "handshake failed" in lowered:
        return CliError(
            f"What listens at {place.address} is not a channeld daemon: it does not speak TLS.",
            "Name the right address with --rpcserver.",
            UNAVAILABLE,
        )
    if "parse port" in lowered or "resolving" in lowered:
        return CliError(f"There is no host {place.address}.", "Write --rpcserver as host:port.", USAGE)
    if "connection refused" in lowered:
        return not_running(place)
    return CliError(
        f"The connection to the daemon at {place.address} failed: {details.rstrip('.')}.",
        "See whether the daemon runs, and what its log says.",
        UNAVAILABLE,
    )
