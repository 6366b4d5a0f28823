"""The socket that the family listens on: bound once by the supervisor, inherited by every front end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from ..config import ServerOptions

BACKLOG = 2048


class ListenError(Exception):
    """The address cannot be listened on; the message is one line with the option, the value and the way out."""


def listen(options: ServerOptions) -> socket.socket:
    """A listening socket, Unix or TCP, non-blocking. Raises `ListenError`."""
    listener = listen_unix(options.uds) if options.uds is not None else listen_tcp(options.host, options.port)
    listener.setblocking(False)
    return listener


def listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ListenError(
            f"--host {host}: no such address: give an address of this machine, or 0.0.0.0 for all"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0
            )  # `::` means every interface, IPv4 too
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(refusal(error, host, port)) from None
    return listener


def refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: in use on {host}: stop what listens there, or choose another --port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"--port {port}: needs privileges that this user lacks: choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: not an address of this machine: give one, or 0.0.0.0 for all"
    return f"--host {host} --port {port}: cannot listen ({error.strerror}): choose another"


def listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_abandoned(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except (OSError, ValueError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"--uds {path}: in use: stop what listens there, or choose another path"
            ) from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ListenError(f"--uds {path}: cannot listen there ({reason}): choose another path") from None
    return listener


def remove_abandoned(path: str) -> None:
    """A socket file that nobody listens on is left from a server that was killed."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def url(listener: socket.socket, options: ServerOptions) -> str:
    """What a user types to reach it."""
    if options.uds is not None:
        return f"unix:{options.uds}"
    scheme = "https" if options.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{scheme}://{host}:{port}{options.root_path}"
