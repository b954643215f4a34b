"""Keys of conversations: equal for all requests of one, different for two."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.wire.affinity import MAX_SENT, PROMPT_BYTES, of_document, of_session

TEXT = st.text(max_size=40)
SYSTEM = {"role": "system", "content": "You are helpful. " * 100}


def key(by_user: bool = False, by_prompt: bool = True, **members: Any) -> int | None:
    return of_document(json.dumps(members).encode(), by_user, by_prompt)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# -- what a client sends -------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=MAX_SENT))
def test_a_key_that_a_client_sends_is_hashed(sent: bytes) -> None:
    found = of_session(sent)
    assert found is not None and 0 <= found < 2**64
    assert of_session(sent) == found != of_session(sent + b"x" if len(sent) < MAX_SENT else b"x")


@pytest.mark.parametrize("sent", [b"", b"x" * (MAX_SENT + 1)])
def test_a_key_that_is_empty_or_too_long_is_not_used(sent: bytes) -> None:
    assert of_session(sent) is None


def test_a_prompt_cache_key_is_as_good_as_a_header_and_comes_before_all_else() -> None:
    for by_user in (False, True):
        for by_prompt in (False, True):
            found = key(by_user, by_prompt, prompt_cache_key="c1", user="u", messages=[user("x")])
            assert found == of_session(b"c1")


@pytest.mark.parametrize("value", ["", None, 1, ["a"], "x" * (MAX_SENT + 1)])
def test_a_prompt_cache_key_that_is_not_usable_is_left_out(value: Any) -> None:
    assert key(prompt_cache_key=value, prompt="p") == key(prompt="p") is not None
    assert key(by_prompt=False, prompt_cache_key=value, prompt="p") is None


@pytest.mark.parametrize(
    "members",
    [
        {"safety_identifier": "u1", "user": "other"},
        {"user": "u1"},
        {"metadata": {"user_id": "u1"}},
    ],
    ids=["safety_identifier", "user", "metadata"],
)
def test_the_user_is_a_key_if_the_operator_wants_it(members: dict[str, Any]) -> None:
    conversation: dict[str, Any] = {"messages": [user("x")]}
    assert key(True, True, **members, **conversation) == of_session(b"u1")
    assert key(True, False, **members, **conversation) == of_session(b"u1")
    assert key(False, True, **members, **conversation) == key(**conversation)
    assert key(False, False, **members, **conversation) is None


@pytest.mark.parametrize("metadata", [None, "x", ["u1"], {}, {"user_id": 7}])
def test_without_a_usable_user_the_head_of_the_conversation_is_the_key(metadata: Any) -> None:
    assert key(True, metadata=metadata, prompt="p") == key(prompt="p")


# -- the head of a conversation ------------------------------------------------------------------

STARTS: dict[str, Any] = {
    "chat": lambda text: {"messages": [SYSTEM, user(text)]},
    "parts": lambda text: {"messages": [SYSTEM, user([{"type": "text", "text": text}])]},
    "greeting": lambda text: {"messages": [SYSTEM, reply("How can I help?"), user(text)]},
    "messages": lambda text: {"system": SYSTEM["content"], "messages": [user(text)]},
    "input": lambda text: {"instructions": "Be brief.", "input": text},
    "items": lambda text: {"input": [user([{"type": "input_text", "text": text}])]},
    "prompt": lambda text: {"prompt": text},
    "tokens": lambda text: {"prompt": [ord(character) for character in text]},
}


@given(st.sampled_from(sorted(STARTS)), TEXT.filter(bool), TEXT.filter(bool))
def test_two_conversations_have_two_keys_although_they_share_a_system_prompt(
    kind: str, one: str, other: str
) -> None:
    start = STARTS[kind]
    assert key(model="m", **start(one)) == key(model="m", **start(one)) is not None
    assert (key(model="m", **start(one)) == key(model="m", **start(other))) is (one == other)
    assert key(model="m", **start(one)) != key(model="n", **start(one))


@given(
    st.sampled_from(["chat", "parts", "greeting", "messages", "items"]),
    TEXT,
    st.lists(st.tuples(TEXT, TEXT), max_size=6),
    st.booleans(),
)
def test_a_conversation_keeps_its_key_over_all_turns(
    kind: str, first: str, turns: list[tuple[str, str]], stream: bool
) -> None:
    members = STARTS[kind](first)
    found = key(model="m", **members)
    name = "input" if "input" in members else "messages"
    for answer, question in turns:
        members = {**members, name: [*members[name], reply(answer), user(question)]}
        assert key(model="m", stream=stream, n=1, **members) == found


def test_a_prompt_keeps_its_key_when_it_grows_beyond_what_counts() -> None:
    prompt = "x" * PROMPT_BYTES
    assert key(prompt=prompt) == key(prompt=prompt + "\nAnd then?")
    assert key(prompt="a" + prompt) != key(prompt="b" + prompt)


@given(st.permutations(["model", "messages", "temperature", "tools"]), st.booleans())
def test_white_space_and_the_order_of_members_do_not_matter(order: list[str], spaces: bool) -> None:
    whole = {
        "model": "m",
        "messages": [{"content": [{"text": "hi", "type": "text"}], "role": "user"}],
        "temperature": 0.7,
        "tools": [{"messages": [user("not this one")]}],
    }
    document = json.dumps({name: whole[name] for name in order}, indent=2 if spaces else None)
    assert of_document(document.encode(), False, True) == key(model="m", messages=[user("hi")])


def test_a_mark_for_the_cache_of_a_provider_does_not_matter() -> None:
    """Clients of Anthropic's API move the mark from message to message."""
    mark = {"cache_control": {"type": "ephemeral"}}
    marked = key(
        system=[{"type": "text", "text": "s", **mark}],
        messages=[user([{"type": "text", "text": "hi", **mark}])],
    )
    assert marked == key(system="s", messages=[user("hi")])


def test_the_checksum_that_claude_code_sends_does_not_matter() -> None:
    def request(checksum: str) -> int | None:
        text = f"x-anthropic-billing-header: cc_version=2.1.177; cch={checksum};"
        system = [{"type": "text", "text": text}, {"type": "text", "text": "You are an agent."}]
        return key(system=system, messages=[user("hi")])

    assert request("36ee5") == request("0aaa9") is not None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f-1"}},
        {"type": "input_file", "file_id": "f-1"},
        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
    ],
    ids=lambda part: part["type"],
)
def test_an_image_or_a_file_is_part_of_the_head(part: dict[str, Any]) -> None:
    text = {"type": "text", "text": "What is this?"}
    other = json.loads(json.dumps(part).replace("AAAA", "BBBB").replace("f-1", "f-2"))
    keys = {key(messages=[user([text, *more])]) for more in ([], [part], [other])}
    assert len(keys) == 3 and None not in keys


def test_long_texts_differ_by_their_start_their_end_and_their_length() -> None:
    long = "x" * 100_000
    texts = [long, "y" + long[1:], long[:-1] + "y", long + "x"]
    assert len({key(messages=[user(text)]) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"model": "m"},
        {"messages": None},
        {"messages": "x"},
        {"messages": ["x"]},
        {"messages": [user(["x"])]},
        {"system": [1], "messages": [user("x")]},
        {"input": [1]},
    ],
)
def test_a_request_without_a_conversation_has_no_key(members: dict[str, Any]) -> None:
    assert key(**members) is None


@pytest.mark.parametrize(
    "members", [{"messages": [SYSTEM]}, {"messages": [user(None)]}, {"messages": [{}]}]
)
def test_a_head_without_a_text_of_the_user_is_a_key_too(members: dict[str, Any]) -> None:
    assert key(**members) is not None
