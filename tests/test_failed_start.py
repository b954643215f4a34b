"""Clients that wait in systemd's sockets while the start fails."""

from __future__ import annotations

import json
import socket

from gatewayd.daemon.failed_start import refuse_waiting
from gatewayd.daemon.listening import bind


def test_each_waiting_client_gets_a_503_that_it_can_read() -> None:
    with bind("127.0.0.1", 0) as listening:
        clients = [socket.create_connection(listening.getsockname(), 5) for _ in range(3)]
        for client in clients:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n\r\n")
        clients[0].close()
        refuse_waiting([listening.dup().detach()])
        for client in clients[1:]:
            with client, client.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\ncontent-length: %d\r\n" % len(body) in head
            assert "cannot start" in json.loads(body)["error"]["message"]


def test_a_descriptor_that_is_no_listening_socket_is_ignored() -> None:
    with socket.socket() as other:
        refuse_waiting([other.dup().detach(), 99999])
