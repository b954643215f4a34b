"""The list of models, ``{"object": "list", "data": [{"id", "object": "model", ...}]}``.

Source: https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from typing import Any

import msgspec

from . import json
from .errors import BadReply

#: More models than anybody lists; each costs time with every list that is put together.
MAX_MODELS = 10_000


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[msgspec.Raw] | None


def entry(name: str, created: int, owned_by: str) -> dict[str, Any]:
    """One model that the gateway itself describes."""
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}


def encode_list(entries: list[Any]) -> bytes:
    """Encode the list; entries read from a backend stay as they came."""
    return msgspec.json.encode({"object": "list", "data": entries})


def decode_list(body: bytes, depth: int) -> dict[str, msgspec.Raw]:
    """Read a backend's list into its entries by name, in its order; repeated names once.

    Entries whose name no request could give are left out. ``"data": null`` is Ollama's empty list.

    :raises BadReply: it is no such list.
    """
    try:
        data = json.decode(body, _Models, depth).data or []
    except (json.NotJSON, msgspec.ValidationError):
        raise BadReply("The backend sent a list of models that is not valid.") from None
    if len(data) > MAX_MODELS:
        raise BadReply("The backend lists too many models.")
    return {name: raw for raw in data if (name := _name(raw)) is not None}


def _name(raw: msgspec.Raw) -> str | None:
    try:
        name = msgspec.json.decode(raw, type=_Model).id
    except msgspec.DecodeError:  # also of what is no object, or has no such id
        return None
    return name if 0 < len(name) <= 256 and name.isprintable() else None
