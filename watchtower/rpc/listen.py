"""Where an API listens."""

from __future__ import annotations

import errno
import socket

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that mean all of the machine's, and under which it is reached from itself."""


class ListenError(Exception):
    """The API cannot listen there; the text is a sentence that says what to do."""


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def raise_if_not_free(host: str, port: int) -> None:
    """gRPC says only that it could not bind, not why: the system says more. Raises ListenError."""
    where = join_address(host, port)
    if not 0 <= port <= 65535:
        raise ListenError(f"The API cannot listen on {where}: a port is a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ListenError(f"The API cannot listen on {where}: there is no such host ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sentence = (
                f"The API cannot listen on {where}: another program uses that port. Stop it, or choose another port."
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            sentence = f"The API cannot listen on {where}: this machine does not have that address."
        elif error.errno == errno.EACCES:
            sentence = f"The API cannot listen on {where}: ports below 1024 need more rights. Choose another port."
        else:
            sentence = f"The API cannot listen on {where}: {error.strerror}."
        raise ListenError(sentence) from error
