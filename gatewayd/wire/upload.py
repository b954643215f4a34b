"""Requests whose body is a form: uploads of audio files or images, with the model in a field.

The parser of forms is :mod:`.form`.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from . import form
from .call import Call, Endpoint
from .request import check_model

#: The values of ``stream`` that mean true: the same that FastAPI (vLLM) takes for true.
_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})


#: More results than any server makes for one request.
MOST_RESULTS = 9999


class FormCall(Call, frozen=True):
    """A request whose body is ``multipart/form-data``.

    :param model_field: the form's field ``model``; None if it has none.
    """

    media_type: ClassVar = re.compile(rb"multipart/form-data[ \t]*;[!-~ \t]*", re.IGNORECASE)
    media_type_hint: ClassVar = "Send a form, as 'Content-Type: multipart/form-data'."

    #: The fields that are read.
    members: ClassVar[tuple[str, ...]] = ("model", "stream")

    model_field: form.Field | None = None

    @classmethod
    def parse(cls, endpoint: Endpoint, body: bytes, content_type: bytes, depth: int) -> Call:
        found = form.read(body, form.boundary(content_type), cls.members)
        model, stream, n = found.get("model"), found.get("stream"), found.get("n")
        streams = stream is not None and stream.value.strip().lower() in _TRUE
        return cls(
            endpoint,
            body,
            content_type,
            check_model(model and model.value),
            streams and bool(endpoint.ends),
            choices=1 if n is None else number_of(n.value),
            model_field=model,
        )

    def renamed(self, model: str) -> FormCall:
        field = self.model_field
        assert field is not None, "only a request that names a model can be renamed"
        name = model.encode("utf-8")
        body = self.body[: field.start] + name + self.body[field.end :]
        renamed = form.Field(model, field.start, field.start + len(name))
        return msgspec.structs.replace(self, model=model, body=body, model_field=renamed)


def number_of(text: str) -> int:
    """How many results a field ``n`` asks for.

    A text that servers may read in different ways stands for more than any server makes.
    """
    return max(1, int(text)) if re.fullmatch("[0-9]{1,4}", text) else MOST_RESULTS
