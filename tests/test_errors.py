"""The tree of errors: each maps to one answer and one end."""

import json
import re
from typing import Any

import pytest

from gatewayd.exchange import End
from gatewayd.wire import errors
from gatewayd.wire.envelope import is_envelope
from gatewayd.wire.errors import BackendFailed, GatewayError


def tree(root: type[GatewayError]) -> list[type[GatewayError]]:
    return [root, *(error for child in root.__subclasses__() for error in tree(child))]


ERRORS = tree(GatewayError)

#: Further arguments of the classes that need more than a message.
ARGUMENTS: dict[type[GatewayError], tuple[Any, ...]] = {
    errors.Unauthorized: ("invalid_api_key",),
    errors.Forbidden: ("model_not_allowed",),
    errors.MessageRefused: (1009,),
    errors.RateLimited: (7, [(b"x-ratelimit-limit-requests", b"1")]),
}

STATUSES = {
    "invalid_request_error": {400, 401, 404, 405, 408, 413, 414, 415, 417, 426, 429, 431},
    "permission_error": {403},
    "server_error": {500, 503},
    "upstream_error": {502, 504},
}


@pytest.fixture(params=ERRORS, ids=lambda cls: cls.__name__)
def error(request: pytest.FixtureRequest) -> GatewayError:
    cls: type[GatewayError] = request.param
    return cls("A sentence.", *ARGUMENTS.get(cls, ()))


def test_the_tree_was_found() -> None:
    assert {errors.BadHTTP, errors.Drained, errors.UnknownHost, BackendFailed} < set(ERRORS)


def test_every_error_has_a_status_of_its_type(error: GatewayError) -> None:
    assert error.status in STATUSES[error.type]


def test_every_error_has_a_code_and_says_how_the_exchange_ended(error: GatewayError) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert End(error.end) not in (End.COMPLETE, End.CLIENT_GONE)


def test_every_body_is_an_envelope_with_all_four_keys(error: GatewayError) -> None:
    assert is_envelope(error.body())
    assert json.loads(error.body()) == {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": None,
            "code": error.code,
        }
    }


def test_a_detail_is_never_sent(error: GatewayError) -> None:
    error.detail = "10.0.0.7"
    assert b"10.0.0.7" not in error.body()


def test_a_refused_request_was_never_executed(error: GatewayError) -> None:
    if error.end in (End.REFUSED, End.BACKEND_UNREACHABLE):
        assert not error.executed
    if error.end in (End.BACKEND_TIMEOUT, End.BACKEND_TRUNCATED, End.DRAINED):
        assert error.executed


def test_an_error_is_retryable_only_if_the_request_was_not_executed(error: GatewayError) -> None:
    assert not (error.retryable and error.executed)
    assert error.retryable or error.end != End.BACKEND_UNREACHABLE


def test_a_client_that_may_retry_is_told_when(error: GatewayError) -> None:
    retry_after = dict(error.headers).get(b"retry-after", b"")
    assert retry_after.isdigit() is (error.status in (429, 503))


def test_a_401_says_how_to_authenticate(error: GatewayError) -> None:
    assert ((b"www-authenticate", b"Bearer") in error.headers) is (error.status == 401)


@pytest.mark.parametrize(("wait", "said"), [(7, b"7"), (1, b"1"), (0, b"1"), (-3, b"1")])
def test_retry_after_is_never_zero(wait: int, said: bytes) -> None:
    headers = [(b"x-ratelimit-limit-requests", b"5")]
    error = errors.RateLimited("Too many.", wait, headers)
    assert error.headers == ((b"retry-after", said), *headers)


def test_a_504_is_a_timeout_and_a_502_is_not(error: GatewayError) -> None:
    assert (error.status == 504) is (error.code == "upstream_timeout")


def test_the_wrong_field_is_in_the_envelope() -> None:
    error = errors.InvalidValue("No.", param="messages[0].role")
    assert json.loads(error.body())["error"]["param"] == "messages[0].role"


# -- what a backend reported ---------------------------------------------------------------------


def test_a_backends_envelope_is_the_body_byte_for_byte() -> None:
    payload = b'{ "error":{"message":"x","code":1.0}}'
    assert BackendFailed("Ours.", payload).body() == payload


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        (b',"code":"context_length_exceeded"', "context_length_exceeded"),
        (b',"code":503', "503"),
        (b',"code":null', "upstream_error"),
        (b"", "upstream_error"),
    ],
)
def test_a_backends_code_is_the_one_for_the_log(code: bytes, logged: str) -> None:
    assert BackendFailed("It failed.", b'{"error":{"message":"x"%b}}' % code).code == logged


@pytest.mark.parametrize(
    ("status", "end", "executed", "retryable"),
    [
        (400, End.REFUSED, False, False),
        (429, End.REFUSED, False, True),
        (500, End.BACKEND_ERROR, True, False),
        (503, End.BACKEND_ERROR, False, True),
        (529, End.BACKEND_ERROR, True, False),
    ],
)
def test_a_backends_status_decides_the_end(
    status: int, end: End, executed: bool, retryable: bool
) -> None:
    error = BackendFailed("It failed.", None, status, ((b"retry-after", b"7"),))
    assert (error.status, End(error.end)) == (status, end)
    assert (error.executed, error.retryable) == (executed, retryable)
    assert error.headers == ((b"retry-after", b"7"),)
    assert errors.UpstreamError.end == "backend_error", "an instance must not change its class"
