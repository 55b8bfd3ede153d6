"""Tool calls found in text, whatever the pieces in which it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tool_calls import Arguments, CallBegins, Content, Delta, ToolCallReader

NAMES = frozenset({"get", "get_more"})
GET = '{"name": "get", "arguments": {"city": "Zür\\"i}ch 🙂"}}'
MORE = '{"name": "get_more", "parameters": {"n": [1, {"x": "]}"}]}}'
GET_ARGUMENTS, MORE_ARGUMENTS = '{"city": "Zür\\"i}ch 🙂"}', '{"n": [1, {"x": "]}"}]}'
ONE, TWO = [("get", GET_ARGUMENTS)], [("get", GET_ARGUMENTS), ("get_more", MORE_ARGUMENTS)]

CASES = [
    ("Hello there.", "Hello there.", []),
    ("", "", []),
    (f"<tool_call>\n{GET}\n</tool_call>", "", ONE),
    (f"<tool_call>\n{GET}\n</tool_call>\n<tool_call>\n{MORE}\n</tool_call>", "", TWO),
    (f"Let me see.\n<tool_call>{GET}</tool_call>", "Let me see.", ONE),
    (f"<tool_call>\n{GET}\n</tool_call>\nThat was it.", "That was it.", ONE),
    (f"[TOOL_CALLS] [{GET}, {MORE}]", "", TWO),
    (f"[TOOL_CALLS][{GET[:-1]}, " + '"id": "a}b{c"}]', "", ONE),
    (MORE, "", [("get_more", MORE_ARGUMENTS)]),
    (f"{GET}; {MORE}", "", TWO),
    (f"<|python_tag|>{GET}", "", ONE),
    (f' {{ "tool_calls" : [ {GET},\n{MORE} ] }}', "", TWO),
    (f"\n\n<tool_call>\n{GET}", "", ONE),
    # no calls
    ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
    ('{"name": "get", "arguments": 3}', '{"name": "get", "arguments": 3}', []),
    ('{"name": "get"', '{"name": "get"', []),
    (f"So: {GET}", f"So: {GET}", []),
    ("a <tool_call> is a tag", "a <tool_call> is a tag", []),
    ("a < b and [TOOL", "a < b and [TOOL", []),
    ("<tool_call>", "<tool_call>", []),
    # cut off
    (f"[TOOL_CALLS] [{GET}, {MORE[:12]}", "", ONE),
    (f"<tool_call>\n{GET[:40]}", "", [("get", GET_ARGUMENTS[: 40 - 29])]),
]


def read(pieces: list[str]) -> list[Delta]:
    reader = ToolCallReader(NAMES)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    return deltas + reader.finish()


def meaning(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    content = ""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                content += text
            case CallBegins(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case Arguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return content, calls


@pytest.mark.parametrize(("text", "content", "calls"), CASES)
def test_whole_and_sign_by_sign_mean_the_same(text: str, content: str, calls: list):
    assert meaning(read([text])) == (content, calls)
    assert meaning(read(list(text))) == (content, calls)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 200), max_size=8))
def test_borders_of_the_pieces_change_nothing(case, borders: list[int]):
    text, content, calls = case
    cuts = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    assert meaning(read([text[a:b] for a, b in pairwise(cuts)])) == (content, calls)


@given(st.text(alphabet='{}[]",:\\ \nname<tool_call>argumentsg', max_size=60))
def test_text_is_never_lost(text: str):
    content, calls = meaning(read(list(text)))
    if not calls:
        assert content == text


def test_arguments_stream_as_they_come():
    reader = ToolCallReader(NAMES)
    reader.feed('<tool_call>\n{"name": "get", "arguments": ')
    assert reader.feed('{"ci') == [CallBegins(0, "get"), Arguments(0, '{"ci')]
    assert reader.feed('ty": "Ü') == [Arguments(0, 'ty": "Ü')]


def test_plain_text_is_not_held_back():
    reader = ToolCallReader(NAMES)
    assert reader.feed("Hello") == [Content("Hello")]
    assert reader.feed(" you <") == [Content(" you")]
    assert reader.feed("b>") == [Content(" <b>")]
