"""Choosing and checking TCP ports before anything is started."""

from __future__ import annotations

import errno
import socket

from app.local.failure import StackError


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now. Another program may still take it first: the server then says so."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int, option: str) -> None:
    """Raises StackError, naming `option`, when a server could not bind to `host`:`port`."""
    if not 0 < port < 65536:
        raise StackError(f"{option} {port} is no port; choose one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as exc:
        raise StackError(f"{host!r} is no address of this machine: {exc.strerror}") from exc
    with socket.socket(family, kind, protocol) as probe:
        # A port that only waits out its last connections is free to a server, so to this probe as well.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                message = f"port {port} on {host} is taken; stop what uses it, or choose another with {option}"
            elif exc.errno == errno.EACCES:
                message = f"port {port} needs more privileges; choose one above 1023 with {option}"
            else:
                message = f"cannot listen on {host}:{port}: {exc.strerror}"
            raise StackError(message) from exc
