"""The listening socket is bound before anything is started, and an address that cannot be had is one line."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from penstock.server.config import ServerOptions
from penstock.server.family.listening import ListenError, listen, url


def complaint(options: ServerOptions) -> str:
    with pytest.raises(ListenError) as caught:
        listen(options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_port_0_takes_a_free_port_and_the_url_says_which() -> None:
    options = ServerOptions(port=0, root_path="/api")
    with listen(options) as listener:
        port = listener.getsockname()[1]
        assert port != 0
        assert url(listener, options) == f"http://127.0.0.1:{port}/api"
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_in_use_is_named_and_ends_the_command_with_status_1() -> None:
    with listen(ServerOptions(port=0)) as listener:
        port = listener.getsockname()[1]
        assert complaint(ServerOptions(port=port)).startswith(f"--port {port}: in use on 127.0.0.1")
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "serve", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --port {port}: in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    assert complaint(ServerOptions(host=host, port=0)).startswith(f"--host {host}: ")


def test_a_unix_socket_left_by_a_killed_server_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    options = ServerOptions(uds=str(path))
    with listen(options) as listener:
        assert url(listener, options) == f"unix:{path}"
        assert complaint(options) == f"--uds {path}: in use: stop what listens there, or choose another path"
    assert stat.S_ISSOCK(path.stat().st_mode)  # nobody removed it, as after a kill
    listen(options).close()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert complaint(ServerOptions(uds=str(path))).startswith(f"--uds {path}: ")
    assert path.read_text() == "data"


def test_a_socket_path_beyond_the_systems_limit_is_named() -> None:
    assert complaint(ServerOptions(uds="/tmp/" + "x" * 200)).startswith("--uds /tmp/xxx")
