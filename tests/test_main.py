"""The commands that run beside the daemon; ``reload`` is in test_reload_command.py."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.memory import FakeBackend, Gateway, settings


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gatewayd", *arguments], capture_output=True, text=True, check=False
    )


def test_the_token_command_makes_a_token_that_the_settings_accept() -> None:
    made = run("token", "carol")
    assert made.returncode == 0
    token, section, line = made.stdout.splitlines()
    assert section == "[token carol]" and re.fullmatch(r"gw-[\w-]{43}", token)
    digest = line.removeprefix("sha256 = ")
    backend = FakeBackend()
    gateway = Gateway(backend, settings=settings(token_carol_sha256=digest))
    gateway.chat(headers={"Authorization": f"Bearer {token}"})
    assert len(backend.calls) == 1
    assert token not in made.stderr


@pytest.mark.parametrize("arguments", [[], ["token"], ["token", "no name"], ["other"]])
def test_a_wrong_name_for_the_token_command_prints_its_usage(arguments: list[str]) -> None:
    made = run(*arguments)
    assert made.returncode == 2 and "usage: gatewayd" in made.stderr and not made.stdout
