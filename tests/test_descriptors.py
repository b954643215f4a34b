"""How file descriptors are shared out."""

from __future__ import annotations

import resource

import pytest

from gatewayd.daemon import descriptors
from gatewayd.daemon.descriptors import FEWEST, RESERVE, for_clients, raise_limit
from gatewayd.daemon.listening import CannotStart
from tests.memory import settings


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits of a system: the soft one, which may be raised, and the hard one."""
    limits = [1024, 1024]

    def set_limits(_: int, wanted: tuple[int, int]) -> None:
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return limits


@pytest.mark.parametrize(
    ("limit", "connections", "in_flight", "clients"),
    [
        (65536, 10000, 1000, 10000),
        (4096, 10000, 1000, 4096 - RESERVE - 1000),
        (1024, 10000, 1000, (1024 - RESERVE) // 2),
        (1024, 100, 1000, 100),
        (1024, 10000, 10, 1024 - RESERVE - 10),
        (FEWEST, 10000, 1000, (FEWEST - RESERVE) // 2),
        (resource.RLIM_INFINITY, 10000, 1000, 10000),
    ],
)
def test_clients_get_the_descriptors_that_backends_do_not_need(
    system: list[int], limit: int, connections: int, in_flight: int, clients: int
) -> None:
    system[0] = limit
    given = settings(limits_connections=str(connections), limits_in_flight=str(in_flight))
    assert for_clients(given) == clients
    assert len(descriptors.warnings(given)) == (clients < connections)


def test_each_backend_may_also_be_checked_and_listed(system: list[int]) -> None:
    backends = {"backend_a_url": "http://a", "backend_b_url": "http://b"}
    assert for_clients(settings(limits_in_flight="10", **backends)) == 1024 - RESERVE - 16


@pytest.mark.parametrize(
    ("hard", "raised"), [(1024, 1024), (9000, 9000), (resource.RLIM_INFINITY, 1 << 20)]
)
def test_the_limit_is_raised_to_what_is_allowed(system: list[int], hard: int, raised: int) -> None:
    system[1] = hard
    raise_limit()
    assert system == [raised, hard]


def test_if_raising_the_limit_is_forbidden_the_limit_stays(
    system: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "setrlimit", forbidden)
    system[1] = 4096
    raise_limit()
    assert descriptors.limit() == 1024


def test_too_few_descriptors_end_the_start_with_one_line(system: list[int]) -> None:
    system[:] = [40, FEWEST - 1]
    with pytest.raises(CannotStart, match=f"at most {FEWEST - 1} open files"):
        raise_limit()
