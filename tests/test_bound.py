"""What a reload cannot change."""

import re
from pathlib import Path

import attrs
import pytest

from gatewayd.daemon.reload import BOUND, keep_bound
from gatewayd.settings.model import (
    Setting,
    Settings,
)
from tests.inifile import EVERY

ROOT = Path(__file__).parent.parent

DOCS = (ROOT / "docs" / "configuration.rst").read_text()


def test_the_documentation_lists_what_stays_until_a_restart() -> None:
    listed = DOCS.partition("Until a restart these stay")[2].partition("A backend whose")[0]
    found = set(re.findall(r"``\[(\w+)\] (\w+)``", listed))
    bound = {(section, key) for section, keys in BOUND.items() for key in keys}
    assert found == bound | {("gateway", "tls_certificate")}


@pytest.mark.parametrize(("section", "key", "setting"), EVERY)
def test_every_other_setting_changes_with_a_reload(
    section: str, key: str, setting: Setting
) -> None:
    if section.endswith(" NAME"):
        return  # a backend or token is taken over as a whole
    other = attrs.evolve(getattr(Settings(), section), **{key: object()})
    kept, said = keep_bound(Settings(), attrs.evolve(Settings(), **{section: other}))
    stays = key in BOUND.get(section, ()) or key == "tls_certificate"
    assert (kept == Settings()) == stays == bool(said)
