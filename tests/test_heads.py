"""Which receiver a reply's head chooses, and which replies are refused."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from gatewayd.backend.interface import PlainReply
from gatewayd.relaying.bodies import Bytes, Document, ErrorDocument
from gatewayd.relaying.events import Events
from gatewayd.relaying.heads import receiver_for
from gatewayd.relaying.receiver import Receiver
from gatewayd.settings.model import LimitSettings
from gatewayd.wire.choices import ChatReader
from gatewayd.wire.errors import AuthRefused, BadReply


@attrs.frozen
class Asked:
    """What the choice depends on, of a request."""

    stream: bool = False
    opaque: bool = False
    any_reply: bool = False

    def is_good(self, status: int) -> bool:
        return status == 200

    def crosses_unread(self, media_type: str) -> bool:
        return self.opaque or media_type == VECTORS


VECTORS = "application/octet-stream"
DOCUMENT, STREAM, OPAQUE = Asked(), Asked(stream=True), Asked(opaque=True)
ANY = Asked(opaque=True, any_reply=True)


def choose(call: Any, media_type: str, status: int = 200) -> Receiver:
    reply = PlainReply(status, media_type, (), body=None)  # type: ignore[arg-type]  # not read here
    reader = None if call.opaque else ChatReader(None, False, 1, 64)
    return receiver_for(reply, call, reader, LimitSettings())


@pytest.mark.parametrize(
    ("call", "media_type", "kind"),
    [
        (DOCUMENT, "application/json", Document),
        (STREAM, "application/json", Document),
        (STREAM, "text/event-stream", Events),
        (DOCUMENT, VECTORS, Bytes),
        (OPAQUE, "audio/mpeg", Bytes),
        (OPAQUE, "text/event-stream", Bytes),
        *((ANY, media_type, Bytes) for media_type in ("", "text/html", "text/event-stream")),
    ],
)
def test_call_and_media_type_choose_the_receiver(
    call: Asked, media_type: str, kind: type[Receiver]
) -> None:
    assert type(choose(call, media_type)) is kind


@pytest.mark.parametrize(
    ("call", "media_type"),
    [
        (DOCUMENT, "text/html"),
        (DOCUMENT, ""),
        (DOCUMENT, "text/event-stream"),
        (STREAM, "text/plain"),
        (OPAQUE, "text/html"),
        (OPAQUE, ""),
    ],
)
def test_a_reply_of_an_unknown_type_is_refused(call: Asked, media_type: str) -> None:
    with pytest.raises(BadReply):
        choose(call, media_type)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 599])
@pytest.mark.parametrize("media_type", ["application/json", "text/html", ""])
def test_an_error_status_is_read_whatever_its_type_is(status: int, media_type: str) -> None:
    assert type(choose(DOCUMENT, media_type, status)) is ErrorDocument


@pytest.mark.parametrize("status", [401, 403])
def test_a_401_or_403_of_a_backend_does_not_reach_the_client(status: int) -> None:
    with pytest.raises(AuthRefused):
        choose(DOCUMENT, "application/json", status)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 304, 399, 600])
def test_a_status_that_a_client_must_not_act_on_is_refused(status: int) -> None:
    with pytest.raises(BadReply) as raised:
        choose(DOCUMENT, "application/json", status)
    assert raised.value.detail == f"status {status}"
