"""How the process of a worker is started."""

from __future__ import annotations

from gatewayd.daemon import spawning
from gatewayd.daemon.worker import WORKER_NUMBER


def test_a_worker_is_twistd_in_the_foreground_with_the_options_of_its_supervisor() -> None:
    expected = ["--nodaemon", "--pidfile=", "--reactor", "poll", "gatewayd"]
    assert spawning.command(["--reactor", "poll"])[-5:] == expected


def test_settings_and_variables_of_systemd_are_not_inherited() -> None:
    inherited = {
        "LANG": "C",
        "PORT": "1",
        "BACKEND_URL": "http://a",
        "GATEWAYD_BACKEND_A_API_KEY": "secret",
        "LISTEN_FDS": "1",
        "WATCHDOG_PID": "1",
        "WATCHDOG_USEC": "1",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "XPORT": "kept",
    }
    made = spawning.environment(inherited, 1, "/tmp/shared", "/tmp/shared/notify-1")
    assert made.pop("PYTHONPATH")
    assert made == {
        "LANG": "C",
        "XPORT": "kept",
        "PROMETHEUS_MULTIPROC_DIR": "/tmp/shared",
        "NOTIFY_SOCKET": "/tmp/shared/notify-1",
        "WATCHDOG_USEC": "2000000",
        WORKER_NUMBER: "1",
    }


def test_the_sockets_and_the_lock_follow_the_standard_descriptors() -> None:
    assert spawning.descriptors(True, [7, 9], 8) == {0: "w", 1: 1, 2: 2, 3: 7, 4: 9, 5: 8}
    assert spawning.descriptors(False, [7], 8) == {0: "w", 1: "r", 2: "r", 3: 7, 4: 8}
