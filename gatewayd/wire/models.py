"""The list of models, ``{"object": "list", "data": [{"id", "object": "model", ...}]}``.

Source: https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from typing import Any

import msgspec

from . import json
from .errors import BadReply


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


def entry(name: str, created: int, owned_by: str) -> dict[str, Any]:
    """One model that the gateway itself describes."""
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}


def encode_list(entries: list[Any]) -> bytes:
    """Encode the list; entries read from a backend stay as they came."""
    return msgspec.json.encode({"object": "list", "data": entries})


def decode_list(body: bytes, depth: int) -> dict[str, msgspec.Raw]:
    """Read a backend's list into its entries by name, in its order; repeated names once.

    :raises BadReply: it is no such list.
    """
    try:
        models = json.decode(body, _Models, depth)
        return {msgspec.json.decode(raw, type=_Model).id: raw for raw in models.data}
    except (json.NotJSON, msgspec.ValidationError):
        raise BadReply("The backend sent a list of models that is not valid.") from None
