"""gatewayd by hand: with curl, and with ``examples/try.sh``."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.integration.processes import Gateway, clean_environment, free_port
from tests.programs import needs

pytestmark = needs("curl")

TRY = Path(__file__).parents[2] / "examples" / "try.sh"
HELLO = '{"messages": [{"role": "user", "content": "Hello"}]}'
JSON = ("-H", "Content-Type: application/json")


@attrs.frozen
class Answer:
    """The status, the headers (names in lower case) and the body of an answer."""

    status: int
    headers: list[tuple[str, str]]
    body: str

    def json(self) -> Any:
        """The body; its Content-Type must be JSON."""
        assert self.header("content-type").startswith("application/json")
        return json.loads(self.body)

    def header(self, name: str) -> str:
        """The value of the only header with this name."""
        (value,) = [value for key, value in self.headers if key == name]
        return value


def curl(url: str, *arguments: str) -> Answer:
    """Run curl. The test fails if curl does (no connection, a broken reply)."""
    result = run("curl", "-sS", "-i", "-N", "--noproxy", "*", "--max-time", "30", *arguments, url)
    assert result.returncode == 0, result.stderr
    head, _, body = result.stdout.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return Answer(int(status.split()[1]), [(name.lower(), value) for name, value in headers], body)


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command and wait for its end."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        env=clean_environment(),
        check=False,
    )


def test_the_echo_answers(echo: Gateway) -> None:
    answer = curl(f"{echo.url}/v1/chat/completions", *JSON, "-d", HELLO)
    assert answer.status == 200
    completion = answer.json()
    assert completion["id"] == answer.header("x-request-id")
    assert completion["model"] == "echo"
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "Echo: Hello"}


def test_the_echo_streams(echo: Gateway) -> None:
    body = HELLO[:-1] + ', "stream": true}'
    answer = curl(f"{echo.url}/v1/chat/completions", *JSON, "-d", body)
    assert answer.status == 200
    assert answer.header("content-type").startswith("text/event-stream")
    reply, done, rest = answer.body.split("\n\n")
    assert reply.startswith("data: {")
    assert (done, rest) == ("data: [DONE]", "")
    chunk = json.loads(reply.removeprefix("data: "))
    assert chunk["id"] == answer.header("x-request-id")
    assert chunk["choices"][0]["delta"]["content"] == "Echo: Hello"


def test_it_is_healthy(echo: Gateway) -> None:
    answer = curl(f"{echo.url}/healthz")
    assert answer.status == 200
    assert answer.json() == {"status": "ok"}
    assert answer.header("x-request-id")


def test_it_lists_its_models(echo: Gateway) -> None:
    models = curl(f"{echo.url}/v1/models").json()
    assert models["object"] == "list"
    (model,) = models["data"]
    assert (model["id"], model["object"]) == ("echo", "model")
    assert isinstance(model["created"], int)
    assert isinstance(model["owned_by"], str)
    assert curl(f"{echo.url}/v1/models/echo").json() == model


def test_head_has_no_body(echo: Gateway) -> None:
    answer = curl(f"{echo.url}/healthz", "--head")
    assert (answer.status, answer.body) == (200, "")
    assert answer.header("x-request-id")


@pytest.mark.parametrize(
    ("path", "arguments", "status", "code", "param"),
    [
        ("/nowhere", (), 404, "unknown_url", None),
        ("/v1/models/nobody", (), 404, "model_not_found", None),
        ("/v1/chat/completions", (*JSON, "-d", "{}"), 400, "invalid_value", "messages"),
        ("/v1/chat/completions", (*JSON, "-d", "{"), 400, "invalid_json", None),
        ("/v1/chat/completions", (), 405, None, None),
    ],
)
def test_a_refusal_is_an_openai_error(
    echo: Gateway,
    path: str,
    arguments: tuple[str, ...],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    answer = curl(echo.url + path, "-H", "X-Request-ID: mine", *arguments)
    assert answer.status == status
    assert answer.header("x-request-id") == "mine"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if code is not None:
        assert error["code"] == code
        assert param is None or error["param"] == param


@pytest.mark.parametrize("kept", ["a", "trace-1.2_3:4/5+6=7@8~9", "x" * 128])
def test_a_request_id_is_kept(echo: Gateway, kept: str) -> None:
    answer = curl(
        f"{echo.url}/v1/chat/completions", *JSON, "-H", f"X-Request-ID: {kept}", "-d", HELLO
    )
    assert answer.header("x-request-id") == kept
    assert answer.json()["id"] == kept


@pytest.mark.parametrize("replaced", ["two words", "x" * 129, "<script>", "ä"])
def test_an_unusable_request_id_is_replaced(echo: Gateway, replaced: str) -> None:
    answer = curl(
        f"{echo.url}/v1/chat/completions", *JSON, "-H", f"X-Request-ID: {replaced}", "-d", HELLO
    )
    assert answer.status == 200
    given = answer.header("x-request-id")
    assert re.fullmatch(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", given)
    assert answer.json()["id"] == given


@pytest.mark.parametrize("name", ["echo", "chat"])
def test_the_example_script_succeeds(name: str, request: pytest.FixtureRequest) -> None:
    gateway: Gateway = request.getfixturevalue(name)
    result = run("bash", str(TRY), gateway.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(b"ok: ") == 3
    assert b"data: [DONE]" in result.stdout


def test_the_example_script_fails_if_nothing_listens() -> None:
    result = run("bash", str(TRY), f"http://127.0.0.1:{free_port()}")
    assert result.returncode != 0
    assert b"FAILED: " in result.stderr
