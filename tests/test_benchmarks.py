"""The benchmarks run: tiny numbers through gatewayd, and the arithmetic of the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import affinity, plots, proc, report, run
from benchmarks.peers import PEERS, ROOT, Place


def test_a_short_run_writes_a_table_and_a_json_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--only=gatewayd", "--points=1,3,7", "--seconds=0.2", "--rounds=1"]
    assert run.main([*tiny, f"--out={tmp_path}"]) == 0

    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    measured = document["results"]["gatewayd"]
    for name in ("json", "events_50", "events_300"):
        [result] = measured[name]
        assert result["cpu_us"] > 0, name
    assert measured["events_50"][0]["late_ms"]["p50"] > 0
    [cancelled] = measured["cancel"]
    assert (cancelled["silent"]["never"], cancelled["streaming"]["never"]) == (0, 0)

    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "CPU per JSON request, us" in table
    assert (tmp_path / "events.svg").read_text(encoding="utf-8").startswith("<svg ")


def test_lost_events_and_the_capacity_of_workers_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "file_limit", lambda: 420)
    tiny = ["--only=gatewayd", "--points=9,10", "--seconds=0.2", "--rounds=1"]
    assert run.main([*tiny, f"--out={tmp_path}"]) == 0
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    [many] = document["results"]["gatewayd"]["many"]
    assert (many["streams"], many["lost"], many["silent"]) == (10, 0, 0)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["events", "lost", "0"] in shown
    [_, capacity] = [line for line in shown if line[:4] == ["with", "a", "core", "each"]]
    assert float(capacity[-1]) > 0.5


def test_a_change_is_measured_against_another_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(ROOT / "gatewayd", other / "gatewayd")
    version = other / "gatewayd" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "other-'))
    tiny = ["--only=gatewayd,before", "--points=1", "--seconds=0.2", "--rounds=1"]
    assert run.main([*tiny, f"--against={other}", f"--out={out}"]) == 0
    assert capsys.readouterr().out.splitlines()[5].split() == ["before"]

    place = Place(1, 1, tmp_path, tmp_path, against=other)
    command, environment = PEERS["before"].command(place)
    shown = subprocess.run(
        [*command[:-2], "--version"], env={**os.environ, **environment}, capture_output=True
    )
    assert b"other-" in shown.stdout


def test_a_folder_without_gatewayd_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--only=before", f"--against={tmp_path}", f"--out={tmp_path}"]) == 0
    assert f"left out: before ({tmp_path} is not a checkout of" in capsys.readouterr().err


def test_the_report_gives_medians_and_ratios() -> None:
    document = {
        "date": "2026-11-22",
        "machine": {"processor": "p", "cores": 2, "system": "s", "python": "3", "load_before": 0},
        "rounds": 3,
        "window_seconds": 1,
        "took_seconds": 1,
        "results": {
            "gatewayd": {"json": [{"cpu_us": 30}, {"cpu_us": 90}, {"cpu_us": 20}]},
            "nginx": {"json": [{"cpu_us": 15}, {"error": "it ended"}, {"cpu_us": 15}]},
        },
    }
    ratios, figures = report.text(document).split("the figures")
    assert ratios.split()[-5:] == ["CPU", "per", "JSON", "request", "2.00"]
    assert " ".join(figures.split()) == "gatewayd nginx CPU per JSON request, us 30.0 15.0"


@pytest.mark.parametrize(
    ("figure", "said"), [(None, "-"), (0, "0"), (0.456, "0.46"), (45.67, "45.7"), (4567.8, "4568")]
)
def test_figures_have_the_digits_that_count(figure: float | None, said: str) -> None:
    assert report.number(figure) == said


def test_plots_of_one_figure_are_drawn_too(tmp_path: Path) -> None:
    results = {"gatewayd": {"growth_10": [{"cpu_us": 30}], "growth_100": [{"cpu_us": 30}]}}
    [path] = plots.write({"results": results}, tmp_path)
    assert path.name == "growth-cpu.svg"


def test_every_other_peer_has_an_install_command() -> None:
    ours = {"gatewayd", "before", "bare", "twisted_relay", "klein_treq"}
    assert {name for name, peer in PEERS.items() if not peer.install} == ours


def test_the_saving_of_affinity_is_measured_with_real_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--conversations=4", "--turns=2", "--active=2", "--concurrency=2"]
    assert affinity.main([*tiny, "--modes=one server,session", f"--out={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert sum(results["session"]["requests"].values()) == 8
    for result in results.values():
        first, second = result["cached_by_turn"]
        assert 0 <= first < second < 1
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == capsys.readouterr().out
    assert (tmp_path / "affinity-ttft.svg").read_text(encoding="utf-8").startswith("<svg ")


def test_a_linear_scale_begins_at_zero_and_ends_above_the_highest_value() -> None:
    svg = plots.lines("share", {"a": [(1, 40.0), (2, 83.0)]}, linear=True)
    for mark in ("0", "20", "80", "100"):
        assert f">{mark}</text>" in svg
