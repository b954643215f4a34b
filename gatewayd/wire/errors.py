"""The one tree of exceptions that map to an error envelope (:mod:`.envelope`).

Every failure that a client may see is a :class:`GatewayError`. Its class determines the status, the
type, the code and the end of the exchange. Its message may be shown to anybody: it has no host
names, paths, credentials or Python text. What only the operator may know goes into ``detail``,
which is logged and never sent.
"""

from __future__ import annotations

from typing import ClassVar

from .envelope import code_in, envelope


class GatewayError(Exception):
    """A failure with an HTTP status and an envelope.

    :param message: a sentence for the client.
    :param param: the field of the request that is wrong, if it is one field.
    :param headers: further headers of the answer, with names in lower case.
    :param detail: for the operator's log only.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    #: The value of the :class:`gatewayd.exchange.End` with which the exchange ends.
    end: str = "internal"
    #: Whether a backend may have executed the request. Then the answer tells clients not to retry.
    executed: bool = False
    #: Whether another backend may be asked, because this one cannot have executed the request.
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers
        self.detail = detail

    def body(self) -> bytes:
        """The envelope as JSON."""
        return envelope(self.message, self.type, self.code, self.param)

    def drop_traceback(self) -> None:
        """Drop the traceback, whose frames would keep the reply in memory."""
        self.__traceback__ = self.__context__ = self.__cause__ = None


class Internal(GatewayError):
    """A fault of the gateway itself."""


# -- the client's side: no backend was sent the request ----------------------------------------


class Refused(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    end = "refused"


class BadHTTP(Refused):
    code = "bad_http"


class InvalidJSON(Refused):
    code = "invalid_json"


class InvalidValue(Refused):
    code = "invalid_value"


class Unauthorized(Refused):
    status = 401

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, headers=((b"www-authenticate", b"Bearer"),))
        self.code = code


class Forbidden(Refused):
    status = 403
    type = "permission_error"

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class UnknownURL(Refused):
    status = 404
    code = "unknown_url"


class ModelNotFound(Refused):
    status = 404
    code = "model_not_found"


class ResponseNotFound(Refused):
    status = 404
    code = "response_not_found"


class MethodNotAllowed(Refused):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(Refused):
    status = 408
    code = "request_timeout"


class RequestTooLarge(Refused):
    status = 413
    code = "request_too_large"


class TargetTooLong(Refused):
    status = 414
    code = "request_too_large"


class MessageRefused(Refused):
    """A message of a WebSocket that the client may not send.

    :param close_code: the status code for the Close frame: 1009 if the message is too large.
    """

    code = "bad_http"

    def __init__(self, message: str, close_code: int) -> None:
        super().__init__(message)
        self.close_code = close_code
        if close_code == 1009:
            self.code = "request_too_large"


class UnsupportedMediaType(Refused):
    status = 415
    code = "unsupported_media_type"


class ExpectationFailed(Refused):
    status = 417
    code = "bad_http"


class UpgradeRequired(Refused):
    status = 426
    code = "upgrade_required"


class HeadTooLarge(Refused):
    status = 431
    code = "request_too_large"


class RateLimited(Refused):
    """:param wait: whole seconds after which the client may retry."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, wait: int, headers: list[tuple[bytes, bytes]]) -> None:
        retry = (b"retry-after", b"%d" % max(1, wait))
        super().__init__(message, headers=(retry, *headers))


class Overloaded(Refused):
    status = 503
    type = "server_error"
    code = "overloaded"

    def __init__(self, message: str, *, detail: str = "", wait: int = 1) -> None:
        """:param wait: whole seconds after which the client may retry."""
        super().__init__(message, headers=((b"retry-after", b"%d" % wait),), detail=detail)


class Exhausted(Overloaded):
    """The gateway has no descriptor, memory or port left to connect to a backend.

    This is no failure of the backend. Another backend may have an open connection.
    """

    retryable = True


class Draining(Refused):
    """The daemon is stopping, and a new request is refused."""

    status = 503
    type = "server_error"
    code = "draining"

    def __init__(self, message: str = "The gateway is shutting down.") -> None:
        super().__init__(message, headers=((b"retry-after", b"1"),))


class MetricsUnavailable(Overloaded):
    """The files through which the workers share their metrics were removed."""

    code = "metrics_unavailable"


class NotStarted(Overloaded):
    """The settings have a mistake, so no gateway runs behind systemd's socket."""

    code = "not_started"


class Drained(Draining):
    """The reply did not end within ``drain`` seconds after the stop."""

    end = "drained"
    executed = True


# -- the backend's side ------------------------------------------------------------------------


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"
    end = "backend_error"
    executed = True


class Unreachable(UpstreamError):
    """No connection could be made, so the request cannot have been executed."""

    code = "upstream_unreachable"
    end = "backend_unreachable"
    executed = False
    retryable = True


class UnknownHost(Unreachable):
    code = "upstream_dns"


class TLSFailed(Unreachable):
    code = "upstream_tls"


class ConnectTimeout(Unreachable):
    status = 504
    code = "upstream_timeout"


class ConnectionReset(UpstreamError):
    """The backend closed the connection after the request was sent, without a complete head."""

    code = "upstream_reset"


class BadReply(UpstreamError):
    """The backend's answer is not valid HTTP or JSON, or is not of the kind that was asked for."""

    code = "upstream_bad_response"


class AuthRefused(UpstreamError):
    """The backend does not accept the gateway's own credentials."""

    code = "upstream_auth"


class Truncated(UpstreamError):
    """The reply broke off before its end."""

    code = "upstream_reset"
    end = "backend_truncated"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"
    end = "backend_timeout"


class BackendClosed(UpstreamError):
    """The backend closed a WebSocket because of a fault of its own, and said so."""


class BackendFailed(UpstreamError):
    """An error that the backend reported, in place of its reply or within it.

    :param payload: the backend's envelope, to be passed on byte for byte; None if it sent none.
    :param status: from the backend's status line or its error. The client gets the same.
    """

    def __init__(
        self,
        message: str,
        payload: bytes | None = None,
        status: int = 502,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, headers=headers)
        self.payload = payload
        self.status = status
        if status < 500:
            self.end = "refused"  # the backend refused the client's request
        self.executed = status >= 500 and status != 503
        self.retryable = status in (429, 503)
        if payload is not None:
            self.code = code_in(payload) or self.code

    def body(self) -> bytes:
        return super().body() if self.payload is None else self.payload
