"""Logs that cannot be written: the daemon serves and stops as usual."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.integration.processes import BIN, clean_environment, free_port
from tests.integration.reports import metric

#: Lines of about 600 bytes each: more than the largest pipe can hold.
REQUESTS = 4000
AT_ONCE = 100


def connect(port: int) -> socket.socket:
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise TimeoutError("the gateway does not listen")


def get(connection: socket.socket, path: str, times: int = 1) -> bytes:
    """Send the same request several times at once; return the bytes of all answers."""
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {'i' * 128}\r\n\r\n"
    connection.sendall(head.encode() * times)
    answers = b""
    while answers.count(b"HTTP/1.1 200 OK") < times or not answers.endswith((b"}", b"\n")):
        data = connection.recv(1 << 20)
        assert data, answers
        answers += data
    return answers


def test_a_daemon_whose_standard_output_is_full_serves_and_stops(tmp_path: Path) -> None:
    port = free_port()
    reader, writer = os.pipe()
    with subprocess.Popen(
        [BIN / "twistd", "--nodaemon", "--pidfile=", "gatewayd", "--port", str(port)],
        stdout=writer, cwd=tmp_path, env=clean_environment(),
    ) as daemon:  # fmt: skip
        try:
            with connect(port) as connection:
                for _ in range(REQUESTS // AT_ONCE):
                    get(connection, "/healthz", AT_ONCE)
                page = get(connection, "/metrics")
            assert metric(page, "gatewayd_log_lines_lost_total", log="access") > 0
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(10) == 0
        finally:
            daemon.kill()
    os.close(writer)
    os.close(reader)


def test_a_daemon_whose_access_log_is_a_fifo_without_a_reader_starts_and_stops(
    tmp_path: Path,
) -> None:
    port, fifo = free_port(), tmp_path / "access"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [BIN / "twistd", "--nodaemon", "--pidfile=", "gatewayd", "--port", str(port)],
        stdout=subprocess.PIPE, cwd=tmp_path,
        env={**clean_environment(), "GATEWAYD_LOG_ACCESS": str(fifo)},
    ) as daemon:  # fmt: skip
        try:
            with connect(port) as connection:
                get(connection, "/healthz")
                daemon.send_signal(signal.SIGHUP)
                get(connection, "/healthz")
                with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as lines:
                    get(connection, "/healthz")
                    assert lines.read().count(b'"route":"/healthz"') == 1
            daemon.send_signal(signal.SIGTERM)
            output, _ = daemon.communicate(timeout=10)
        finally:
            daemon.kill()
    assert daemon.returncode == 0
    assert b"no program reads it" in output
