"""Which paths and methods have a handler, and the errors for the others."""

from __future__ import annotations

import pytest

from tests.memory import Answer, FakeBackend, Gateway, completion, echo_gateway, settings

JSON_TYPE = "application/json"


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1", "/v1/chat/completions//", "//v1/models", "/v1%2fmodels", "/v1/../healthz"),
        *("/v1/models;x", "/%ff", "/v1/models%00", "/HEALTHZ"),
    ],
)
def test_a_path_is_matched_exactly_or_is_a_404(path: str) -> None:
    answer = Answer(echo_gateway().request("GET", path))
    assert (answer.status, answer.code) == (404, "unknown_url")


def test_a_method_that_a_route_does_not_take_is_a_405_with_allow() -> None:
    answer = Answer(echo_gateway().request("GET", "/v1/chat/completions"))
    assert (answer.status, answer.header("allow")) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/messages", "/v1/messages"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models//", "/v1/models"),
        ("//v1//models", "/v1/models"),
        ("/v1/healthz", "/healthz"),
        ("/v1/completions/x", None),
        ("/", None),
        ("/v1" * 1000 + "/models", None),
    ],
)
@pytest.mark.parametrize("root", ["", "/llm"])
def test_a_404_suggests_the_path_of_a_route_that_is_similar(
    path: str, meant: str | None, root: str
) -> None:
    gateway = Gateway(FakeBackend(), settings=settings(gateway_root_path=root))
    for requested in {path, root + path} - {root + (meant or "")}:
        answer = Answer(gateway.request("GET", requested))
        assert (answer.status, answer.code) == (404, "unknown_url")
        hint = answer.json["error"]["message"].partition(" Did you mean ")[2]
        assert hint == (f"{root}{meant}?" if meant else "")


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/api/generate?key=secret", "/api/generate"),
        ("/v1/sk-0123456789abcdef0123456789", "/v1/*"),
        ('/x%0a"y/z', "/*/z"),
        ("/a" * 1000, "/a" * 100),
    ],
)
def test_only_plain_parts_of_an_unknown_path_are_logged(path: str, logged: str) -> None:
    gateway = echo_gateway()
    assert Answer(gateway.request("GET", path)).status == 404
    assert gateway.ended[0].detail == logged


@pytest.mark.parametrize("root", ["", "/llm"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 200) for path in ("/v1/models/", "/models", "/models/", "/healthz/")),
        *(("GET", path, 200) for path in ("/health", "/v1/health", "/ping", "/version")),
        ("GET", "/v1/chat/completions/", 405),
        *(("POST", path, 415) for path in ("/chat/completions", "/v1/chat/completions/")),
        *(("POST", path, 415) for path in ("/responses/", "/v1/responses/input_tokens")),
    ],
)
def test_a_path_may_have_another_name_or_a_slash_at_its_end(
    method: str, path: str, status: int, root: str
) -> None:
    gateway = Gateway(FakeBackend(), settings=settings(gateway_root_path=root))
    for _ in range(2):  # found, and found again
        assert Answer(gateway.request(method, root + path)).status == status


def test_the_other_name_of_an_endpoint_is_logged_and_asked_as_the_first() -> None:
    backend = FakeBackend()
    gateway = Gateway(backend)
    body = b'{"messages":[{"role":"user","content":"hi"}]}'
    client = gateway.request("POST", "/chat/completions/", body, {"Content-Type": JSON_TYPE})
    assert backend.calls[0].call.path == "/v1/chat/completions"
    backend.calls[0].whole(completion())
    assert Answer(client).status == 200 and gateway.ended[0].route == "/v1/chat/completions"
