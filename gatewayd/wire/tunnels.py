"""The types of a request for a WebSocket and of its endpoint.

The model is named in the query, because messages are not read. Parameters of the query cross by
allow-list, and are encoded anew: so the backend reads exactly what was read here.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import msgspec

from .errors import InvalidValue
from .request import check_model

#: The parameters that cross to a backend, with ``model``. The names are OpenAI's.
_CROSSING = frozenset({"intent", "call_id"})
#: The most parameters of a query.
_MOST = 100


class TunnelEndpoint(msgspec.Struct, frozen=True, eq=False):
    """An endpoint whose WebSockets are relayed to a backend.

    :param path: without the gateway's ``root_path`` and the backend's base URL.
    :param route: what the log and the metrics call it.
    :param models_in_messages: whether each message names its model. Nobody checks that one, so a
        caller that is limited to some models cannot use the endpoint.
    """

    path: str
    route: str
    models_in_messages: bool = False


class TunnelCall(msgspec.Struct, frozen=True):
    """A request for a WebSocket.

    :param model: the model that the query names; None if it names none.
    :param parameters: the others of the query that cross, decoded.
    """

    endpoint: TunnelEndpoint
    model: str | None
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, endpoint: TunnelEndpoint, query: bytes) -> TunnelCall:
        """
        :raises InvalidValue: the query cannot be read, or the name of the model is not valid.
        """
        try:
            text = query.decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST)
        except ValueError:
            raise InvalidValue("The query of the URL cannot be read.") from None
        models = [value for name, value in pairs if name == "model"]
        if len(models) > 1:
            raise InvalidValue("The query names more than one model.", param="model")
        others = tuple(pair for pair in pairs if pair[0] in _CROSSING)
        return cls(endpoint, check_model(models[0] if models else None), others)

    def renamed(self, model: str) -> TunnelCall:
        """The same request for another model."""
        return TunnelCall(self.endpoint, model, self.parameters)

    @property
    def target(self) -> str:
        """The path and the query for a backend."""
        named = () if self.model is None else (("model", self.model),)
        query = urlencode(named + self.parameters)
        return f"{self.endpoint.path}?{query}" if query else self.endpoint.path
