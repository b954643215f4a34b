"""Requests for images, and the reader of a stream of images.

A stream has partial images, if the client asked for them, and each finished image. The event of the
last finished image ends it well. Servers take an edit as a form or as JSON.

Sources: https://platform.openai.com/docs/api-reference/images-streaming,
https://docs.nano-gpt.com/api-reference/endpoint/image-edits (edits as JSON)
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from .call import Call, Endpoint
from .events import EventReader
from .request import JSON_TYPE, JSONCall, check_model, check_stream, parse_object
from .upload import MOST_RESULTS, FormCall


class ImageCall(JSONCall, frozen=True):
    """A request for images as JSON."""

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> ImageCall:
        fields = parse_object(body, depth)
        return cls(
            endpoint,
            body,
            JSON_TYPE,
            check_model(fields.get("model")),
            check_stream(fields.get("stream")),
            choices=_images(fields.get("n")),
        )


class EditCall(FormCall, frozen=True):
    """A request for an edit as a form. One as JSON is parsed to an :class:`ImageCall`."""

    media_type: ClassVar = re.compile(
        b"%b|%b" % (JSONCall.media_type.pattern, FormCall.media_type.pattern), re.IGNORECASE
    )
    media_type_hint: ClassVar = "Send a form, as 'Content-Type: multipart/form-data', or JSON."
    members: ClassVar = (*FormCall.members, "n")

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Call:
        if JSONCall.media_type.fullmatch(content_type):
            return ImageCall.parse(endpoint, body, content_type, depth)
        return super().parse(endpoint, body, content_type, depth)


def _images(n: Any) -> int:
    """How many images a request asks for.

    The backend judges an ``n`` that is no such number. It may read ``"2"`` as 2, so such a stream
    does not end with its first image.
    """
    if n is None:
        return 1
    return int(n) if isinstance(n, (int, float)) and 1 <= n <= MOST_RESULTS else MOST_RESULTS


class ImageReader(EventReader):
    """
    :param images: how many the client asked for.
    """

    def __init__(self, ends: frozenset[str], images: int, depth: int, model: str | None) -> None:
        super().__init__(ends, depth, model)
        self._missing = images

    def read_event(self, name: bytes, payload: bytes) -> bytes | None:
        before, self._ended = self._ended, False
        crossing = super().read_event(name, payload)
        if self._ended:
            self._missing -= 1
        elif not self.content:
            self._ended = before
        return crossing

    def is_complete(self, done: bool, framed: bool = True) -> bool:
        """Whether the last event finished an image, and no further one is missing.

        A backend may make fewer images than it was asked for. Then the framing must mark the end.
        """
        return self._ended and (framed or self._missing <= 0)
