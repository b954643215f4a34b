"""How requests end at a backend, and the state of its health."""

from __future__ import annotations

from gatewayd.routing.health import Health, State
from gatewayd.wire import errors

#: Outcomes that count against the backend.
FAULTS = [
    errors.Unreachable("x"),
    errors.TLSFailed("x"),
    errors.UnknownHost("x"),
    errors.ConnectTimeout("x"),
    errors.ConnectionReset("x"),
    errors.BadReply("x"),
    errors.Truncated("x"),
    errors.UpstreamTimeout("x"),
    errors.BackendFailed("x", status=500),
    errors.BackendFailed("x", status=503),
]

#: Outcomes that do not.
NO_FAULTS = [
    None,
    *(errors.BackendFailed("x", status=status) for status in (400, 404, 413, 422, 429, 501)),
    errors.UnknownURL("x"),
    errors.InvalidValue("x"),
    errors.Drained("x"),
    errors.Internal("x"),
]


def named(problem: errors.GatewayError | None) -> str:
    return "none" if problem is None else f"{type(problem).__name__}-{problem.status}"


def state_of(health: Health) -> State:
    """The state now. mypy narrows an attribute that was compared, but not what a call returns."""
    return health.state
