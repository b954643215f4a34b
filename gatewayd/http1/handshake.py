"""The handshake of a WebSocket: what a client asks for, and what a backend accepted.

The client's key, version and extensions reach the backend as they came, so the backend's answer to
them is good for the client too. A browser cannot set ``Authorization`` on a WebSocket. OpenAI's
clients present their API key as a subprotocol instead, ``openai-insecure-api-key.KEY``. The gateway
reads it there and never passes it on.

Sources: RFC 6455, section 4; https://platform.openai.com/docs/guides/realtime-websocket
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence

import msgspec

from gatewayd.wire.errors import BadHTTP, BadReply, UpgradeRequired

from .head import Fields, list_of
from .writing import header_lines

VERSION = b"13"

_KEY_PROTOCOL = b"openai-insecure-api-key."
#: Subprotocols that identify the caller, like the headers of these names. None of them crosses.
_ABOUT_CALLER = (_KEY_PROTOCOL, b"openai-organization.", b"openai-project.")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(rb"[ -~]{1,255}")
#: Appended to the client's key before it is hashed.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_UPGRADE = ((b"upgrade", b"websocket"), (b"sec-websocket-version", VERSION))


def asks_for_websocket(fields: Fields) -> bool:
    """Whether a request asks to switch to a WebSocket, rightly or wrongly."""
    return b"websocket" in list_of(fields.get(b"upgrade", ()))


def presented_key(fields: Fields) -> bytes | None:
    """The API key among the subprotocols of a request for a WebSocket; None if there is none."""
    if b"upgrade" not in fields:
        return None
    keys = [p for p in _elements(fields, b"sec-websocket-protocol") if p.startswith(_KEY_PROTOCOL)]
    return keys[0].removeprefix(_KEY_PROTOCOL) or None if len(keys) == 1 else None


class Handshake(msgspec.Struct, frozen=True):
    """What a client asked for, as the backend gets it.

    :param key: the value of ``Sec-WebSocket-Key``.
    :param protocols: the subprotocols offered, without those that identify the caller.
    :param extensions: the value of ``Sec-WebSocket-Extensions``; empty for none.
    :param beta: the value of ``OpenAI-Beta``; empty for none.
    """

    key: bytes
    protocols: tuple[bytes, ...] = ()
    extensions: bytes = b""
    beta: bytes = b""

    @classmethod
    def of(cls, version: bytes, fields: Fields) -> Handshake:
        """Read the handshake from a GET request without a body.

        :param version: of HTTP, such as ``HTTP/1.1``.
        :raises UpgradeRequired: the request asks for no WebSocket, or for another version.
        :raises BadHTTP: the handshake is not valid.
        """
        if not asks_for_websocket(fields):
            raise UpgradeRequired("This URL is for a WebSocket only.", headers=_UPGRADE)
        if version == b"HTTP/1.0":
            raise _bad("A WebSocket requires HTTP/1.1.")
        if b"upgrade" not in list_of(fields.get(b"connection", ())):
            raise _bad("A WebSocket requires the header 'Connection: Upgrade'.")
        if fields.get(b"sec-websocket-version") != [VERSION]:
            raise UpgradeRequired("Only version 13 of WebSocket is known.", headers=_UPGRADE)
        keys = fields.get(b"sec-websocket-key", ())
        if len(keys) != 1 or not _is_key(keys[0]):
            raise _bad("A WebSocket requires one Sec-WebSocket-Key, 16 bytes in base64.")
        protocols = _elements(fields, b"sec-websocket-protocol")
        if not all(map(_TOKEN.fullmatch, protocols)) or len(set(protocols)) < len(protocols):
            raise _bad("The subprotocols are not a list of different tokens.")
        beta = b", ".join(fields.get(b"openai-beta", ()))
        return cls(
            key=keys[0],
            protocols=tuple(p for p in protocols if not p.startswith(_ABOUT_CALLER)),
            extensions=b", ".join(fields.get(b"sec-websocket-extensions", ())),
            beta=beta if _PRINTABLE.fullmatch(beta) else b"",
        )

    def header_lines(self) -> bytes:
        """The lines of the request to the backend that belong to the handshake."""
        fields = [
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", VERSION),
            (b"Sec-WebSocket-Key", self.key),
        ]
        if self.protocols:
            fields.append((b"Sec-WebSocket-Protocol", b", ".join(self.protocols)))
        if self.extensions:
            fields.append((b"Sec-WebSocket-Extensions", self.extensions))
        if self.beta:
            fields.append((b"OpenAI-Beta", self.beta))
        return header_lines(fields)

    def accepted(self, reply: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Check a backend's reply with status 101; return its fields that cross to the client.

        :param reply: the header fields, with names in lower case.
        :raises BadReply: the reply does not accept this handshake.
        """
        fields = Fields(reply)
        accept = accept_of(self.key)
        if fields.get(b"sec-websocket-accept") != [accept]:
            raise BadReply("The backend's reply does not accept the WebSocket.")
        crossing = [(b"sec-websocket-accept", accept)]
        if chosen := fields.get(b"sec-websocket-protocol", []):
            if len(chosen) > 1 or chosen[0] not in self.protocols:
                raise BadReply("The backend chose a subprotocol that was not offered.")
            crossing.append((b"sec-websocket-protocol", chosen[0]))
        if extensions := fields.get(b"sec-websocket-extensions", []):
            chosen_extensions = b", ".join(extensions)
            if not _names(extensions) <= _names([self.extensions]):
                raise BadReply("The backend chose an extension that was not offered.")
            if not _PRINTABLE.fullmatch(chosen_extensions):
                raise BadReply("The backend's choice of extensions is not valid.")
            crossing.append((b"sec-websocket-extensions", chosen_extensions))
        return crossing


def accept_of(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that answers a ``Sec-WebSocket-Key``."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _bad(message: str) -> BadHTTP:
    return BadHTTP(message, headers=((b"sec-websocket-version", VERSION),))


def _is_key(value: bytes) -> bool:
    try:
        return len(value) == 24 and len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def _elements(fields: Fields, name: bytes) -> list[bytes]:
    """The elements of a field that is a list with commas, without empty ones."""
    elements = b",".join(fields.get(name, ())).split(b",")
    return [element for each in elements if (element := each.strip(b" \t"))]


def _names(extensions: Sequence[bytes]) -> set[bytes]:
    """The names in a list of extensions, whose parameters are not looked at."""
    return {each.partition(b";")[0].strip(b" \t") for each in list_of(extensions)}
