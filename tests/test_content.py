"""What counts as content, the usage in a reply, and errors in place of a reply."""

from __future__ import annotations

import msgspec
import pytest

from gatewayd.wire.content import Usage, has_content, is_empty, latest_usage, reported_error


@pytest.mark.parametrize("value", [b"null", b"false", b"0", b'""', b"[]", b"{}", b"[ ]", b"{\n}"])
def test_a_member_may_be_empty(value: bytes) -> None:
    assert is_empty(msgspec.Raw(value)) and not has_content(msgspec.Raw(value))
    assert not has_content(msgspec.Raw(b'{"content":%b,"role":"assistant","type":"x"}' % value))


@pytest.mark.parametrize("value", [b"true", b"1", b'" "', b"[0]", b'{"a":null}', b"0.5"])
def test_any_other_value_is_content(value: bytes) -> None:
    assert not is_empty(msgspec.Raw(value))
    assert has_content(msgspec.Raw(b'{"content":%b}' % value))


def test_a_later_count_replaces_an_earlier_one_and_keeps_what_it_does_not_report() -> None:
    first = latest_usage(msgspec.Raw(b'{"input_tokens":3,"output_tokens":1}'), None)
    assert first == Usage(3, 1)
    assert latest_usage(msgspec.Raw(b'{"output_tokens":5}'), first) == Usage(3, 5)
    for nothing in (b"null", b"5", b"{}", b'{"output_tokens":-1}', b'{"prompt_tokens":"many"}'):
        assert latest_usage(msgspec.Raw(nothing), first) is first
    assert latest_usage(msgspec.UNSET, first) is first


def test_the_tokens_of_a_message_that_were_in_a_cache_are_tokens_of_its_prompt() -> None:
    usage = b'{"input_tokens":3,"cache_read_input_tokens":40,"cache_creation_input_tokens":%b}'
    assert latest_usage(msgspec.Raw(usage % b"500"), None) == Usage(543, 0)
    assert latest_usage(msgspec.Raw(usage % b"null"), None) == Usage(43, 0)
    assert latest_usage(msgspec.Raw(usage % b'"many"'), None) is None


def test_an_error_under_a_200_may_be_a_text_too() -> None:
    body = b'{"error":"Request failed during generation","error_type":"generation"}'
    assert reported_error(body).message.endswith(": Request failed during generation")
    assert reported_error(b'{"error":"at /srv/x/y"}').message.endswith("without saying which.")
