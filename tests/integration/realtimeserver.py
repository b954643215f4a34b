"""A server for WebSockets that does what each message asks for.

It is made with the ``websockets`` library. A text that begins with ``do:`` is an order; JSON is
answered as OpenAI's Realtime API answers it; any other message is sent back.

=================== ==========================================================================
order               what the server does
=================== ==========================================================================
``do:close:CODE``   closes with this status code
``do:die``          closes the connection without a Close frame
``do:half``         sends the beginning of a frame, then does the same
``do:flood:N``      sends N messages of 64 KiB as fast as it can
``do:sleep:S``      reads nothing for S seconds
``do:pings:S``      sends a ping every 0.1 s, and nothing else, for S seconds
=================== ==========================================================================
"""

from __future__ import annotations

import http
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from tests.integration.processes import wait_for

FLOOD = "x" * 65536


class Session:
    """A connection: its request, and how it ended. ``sent`` counts messages of a flood."""

    def __init__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.path = connection.request.path
        self.headers = connection.request.headers
        self.compressed = bool(connection.protocol.extensions)
        self.sent = 0
        self.ended: tuple[int, float] | None = None

    def end(self) -> tuple[int, float]:
        """The status code that ended the connection, and when; 1006 without a Close frame."""
        return wait_for(lambda: self.ended, 5, "the session's end")


class RealtimeServer:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._sessions: dict[str, Session] = {}
        self._tls = tls
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self._server = serve(
            self._talk,
            "127.0.0.1",
            0,
            ssl=self._tls,
            select_subprotocol=_realtime,
            process_request=self._refuse,
            max_size=8 << 20,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.shutdown()

    def session(self, identity: str) -> Session:
        """The session of the request with this id."""
        return wait_for(lambda: self._sessions.get(identity), 5, f"a session of {identity}")

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse the model ``refused`` as an inference server would."""
        if "model=refused" not in request.path:
            return None
        response = connection.respond(
            http.HTTPStatus.UNPROCESSABLE_ENTITY,
            json.dumps({"error": {"message": "not this one", "type": "t", "code": "own"}}),
        )
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    def _talk(self, connection: ServerConnection) -> None:
        session = Session(connection)
        self._sessions[session.headers["X-Request-ID"]] = session
        code = 1006
        try:
            if connection.subprotocol or "model=sdk" in session.path:
                connection.send(json.dumps({"type": "session.created", "event_id": "e0"}))
            for message in connection:
                if isinstance(message, str) and message.startswith("do:"):
                    self._obey(connection, session, message.split(":"))
                elif isinstance(message, str) and message.startswith("{"):
                    for event in _events(json.loads(message)):
                        connection.send(json.dumps(event))
                else:
                    connection.send(message)
            code = connection.close_code or 1006
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 1006
        except OSError:
            pass
        finally:
            session.ended = code, time.monotonic()

    def _obey(self, connection: ServerConnection, session: Session, order: list[str]) -> None:
        match order[1:]:
            case ["close", code]:
                connection.close(int(code), "as ordered")
            case ["die"]:
                connection.socket.shutdown(socket.SHUT_RDWR)
            case ["half"]:
                connection.socket.sendall(b"\x81\x7e\x10\x00begin")
                time.sleep(0.1)
                connection.socket.shutdown(socket.SHUT_RDWR)
            case ["flood", count]:
                for _ in range(int(count)):
                    connection.send(FLOOD)
                    session.sent += 1
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["pings", seconds]:
                end = time.monotonic() + float(seconds)
                while time.monotonic() < end:
                    connection.ping()
                    time.sleep(0.1)


def _realtime(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol("realtime") if "realtime" in offered else None


def _events(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What OpenAI's Realtime API and its Responses API answer."""
    if event["type"] == "session.update":
        yield {"type": "session.updated", "event_id": "e1", "session": event["session"]}
    elif event["type"] == "response.create":
        yield {"type": "response.created", "event_id": "e2", "response": {"id": "r"}}
        for word in ("Hello", " there"):
            yield {
                "type": "response.output_text.delta",
                "event_id": "e3",
                "response_id": "r",
                "item_id": "i",
                "output_index": 0,
                "content_index": 0,
                "delta": word,
            }
        yield {"type": "response.done", "event_id": "e4", "response": {"id": "r"}}
