"""The openai SDK as a client of a gateway or of a backend."""

from __future__ import annotations

import ssl

import openai

from tests.integration.processes import Server


def connect(server: Server, key: str = "any", trust: ssl.SSLContext | bool = True) -> openai.OpenAI:
    """A client that waits 30 seconds, does not repeat requests, and uses no proxy.

    :param trust: which certificates it trusts; True for those of the system.
    """
    return openai.OpenAI(
        base_url=server.url + "/v1",
        api_key=key,
        max_retries=0,
        timeout=30,
        http_client=openai.DefaultHttpxClient(trust_env=False, verify=trust),
    )
