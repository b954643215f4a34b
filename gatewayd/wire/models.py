"""The list of models, ``{"object": "list", "data": [{"id", "object": "model", ...}]}``.

Source: https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from . import json
from .errors import BadReply
from .request import MAX_MODEL

#: The most models in a backend's list. Each one takes time whenever lists are merged.
MAX_MODELS = 10_000


class _Model(msgspec.Struct):
    id: str


class _Aliases(msgspec.Struct):
    aliases: list[Any] = []


class _Models(msgspec.Struct):
    data: list[msgspec.Raw] | None


_MODELS = msgspec.json.Decoder(_Models)


def entry(name: str, created: int, owned_by: str) -> dict[str, Any]:
    """One entry, for a model that the gateway itself describes.

    :param created: seconds since 1970.
    """
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}


def encode_list(entries: list[Any]) -> bytes:
    """Encode the list. Entries that were read from a backend stay as they came."""
    return msgspec.json.encode({"object": "list", "data": entries})


def decode_list(body: bytes, depth: int) -> dict[str, msgspec.Raw]:
    """Read a backend's list: its entries by name, in the backend's order.

    Entries with a name that no request can have are left out. ``"data": null`` is Ollama's empty
    list.

    :raises BadReply: the body is not such a list, or the list is too long.
    """
    try:
        data = json.decode(body, _MODELS, depth).data or []
    except (json.NotJSON, msgspec.ValidationError):
        raise BadReply("The backend sent a list of models that is not valid.") from None
    if len(data) > MAX_MODELS:
        raise BadReply("The backend lists too many models.")
    return {name: raw for raw in data if (name := _name(raw)) is not None}


def names(entries: Mapping[str, Any]) -> frozenset[str]:
    """The names by which the models of a list can be requested.

    llama.cpp lists a model once, with further names in ``aliases``.
    """
    found = set(entries)
    for entry in entries.values():
        if isinstance(entry, msgspec.Raw) and b'"aliases"' in bytes(entry):
            found.update(filter(_is_name, _aliases(entry)))
        if len(found) > MAX_MODELS:
            break
    return frozenset(found)


def _aliases(raw: msgspec.Raw) -> list[Any]:
    try:
        return msgspec.json.decode(raw, type=_Aliases).aliases[:MAX_MODELS]
    except msgspec.DecodeError:
        return []


def _name(raw: msgspec.Raw) -> str | None:
    try:
        name = msgspec.json.decode(raw, type=_Model).id
    except msgspec.DecodeError:  # also if the entry is no object or has no such id
        return None
    return name if _is_name(name) else None


def _is_name(value: object) -> bool:
    """Whether a request can have this model."""
    return isinstance(value, str) and 0 < len(value) <= MAX_MODEL and value.isprintable()
