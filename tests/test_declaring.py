"""Declarations: the value without a source, and a backend's own value of a common setting."""

import attrs
import pytest

from gatewayd.settings.declaring import SectionId, Setting, declare, declare_own, setting
from gatewayd.settings.values import seconds


@attrs.frozen
class Common:
    idle: float = setting("120", seconds, "Seconds.")


@attrs.frozen
class Own:
    url: str = declare(Setting(None, str, "A URL."))
    key: str = declare(Setting("", str, "A key.", is_secret=True), "none", repr=False)
    idle: float = declare_own(Common, "timeouts", "idle")


def test_without_a_source_the_value_is_the_parsed_default() -> None:
    assert Common().idle == 120.0
    assert Own("u").idle == 120.0


def test_a_setting_without_a_default_must_be_given() -> None:
    with pytest.raises(TypeError):
        Own()


def test_a_value_that_must_not_be_shown_is_not() -> None:
    assert "none" not in repr(Own("u"))


def test_an_empty_value_of_a_backends_own_leaves_the_common_one() -> None:
    declared: Setting = attrs.fields_dict(Own)["idle"].metadata["setting"]
    assert (declared.default, declared.parse(""), declared.parse("3")) == ("", None, 3.0)
    assert "[timeouts]" in declared.doc


def test_a_section_is_shown_as_it_is_written() -> None:
    assert [str(SectionId("log")), str(SectionId("backend", "gpu1"))] == ["[log]", "[backend gpu1]"]
