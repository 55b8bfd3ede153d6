"""GBNF → Lark: the same texts are in both languages, judged by llguidance byte by byte."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer

from tasks.gbnf import MAX_NESTING, InvalidGrammar, gbnf_to_lark

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value   # members
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
BYTES = LLTokenizer("byte")


def accepts(gbnf: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, gbnf_to_lark(gbnf))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.validate_tokens(data) == len(data) and matcher.consume_tokens(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("gbnf", "texts", "others"),
    [
        ('root ::= [a-z]* "b"', ["b", "abcb"], ["", "abc"]),
        ('root ::= "(" root? ")"', ["()", "((()))"], ["", "(()"]),
        ('root ::= root "x" | "a"', ["a", "axxx"], ["x", "xa"]),
        ('root ::= ("ja" | "nein") | ""', ["ja", "nein", ""], ["jan"]),
        ("root ::= [\\u0041-\\U00000043]{2,3}", ["AB", "CCC"], ["A", "AAAA", "AD"]),
        ("root ::= [日-本] .", ["日\n", "本🙂"], ["a."]),
        ("root ::= [^/\\]-]", ["a", "\n"], ["/", "]", "-", ""]),
        ("root ::= [a-]+", ["-a-"], ["b"]),
        ('root ::= (("a"{2}){2})+', ["aaaa", "aaaaaaaa"], ["aa", "aaaaaa"]),
        ('root ::= (("a" | root)*)*', ["", "aaa"], ["b"]),
        ("root ::= one-two\none-two ::=\n 'x' | \"y\"".replace("'x'", '"x"'), ["x", "y"], ["xy"]),
        ('root ::= "\\x41\\"\\\\\\n/"', ['A"\\\n/'], ["A"]),
        (JSON, ['{"a": [1, -2.5e1, "ü\\u00e9", {}], "b":null}', "{}"], ["[]", '{"a":}', '{"a":"\n"}']),
    ],
)
def test_language_is_that_of_the_grammar(gbnf: str, texts: list[str], others: list[str]):
    assert [text for text in texts if not accepts(gbnf, text)] == []
    assert [text for text in others if accepts(gbnf, text)] == []


@pytest.mark.parametrize(
    ("gbnf", "problem"),
    [
        ("", "no rule named root"),
        ("roots ::= root", "no rule named root"),
        ("root ::= x", "mentions 'x'"),
        ("root = x", "expected ::= in line 1"),
        ('root ::= "a', "without its end in line 1"),
        ('root ::= "a"\nx ::= [a', "without its end in line 2"),
        ("root ::= [b-a]", "ends before it starts"),
        ("root ::= []", "empty class"),
        ('root ::= ("a"', r"expected \)"),
        ('root ::= "a")', "expected the end of the rule"),
        ('root ::= "a"{,2}', "expected {n}"),
        ('root ::= "a"{3,2}', "smaller than the first"),
        ('root ::= "a"{100001}', "at most 100000 repetitions in line 1"),
        ('root ::= "a"{2,999999999}', "at most 100000 repetitions in line 1"),
        ('root ::= "\\q"', "bad escape"),
        ('root ::= "\\ud800"', "bad escape"),
        ("root ::= <think> root", "tokens in a grammar"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, f"at most {MAX_NESTING} parentheses"),
    ],
)
def test_what_is_no_grammar_is_said_with_its_place(gbnf: str, problem: str):
    with pytest.raises(InvalidGrammar, match=problem):
        gbnf_to_lark(gbnf)


def test_grammar_that_is_exponential_as_one_expression_stays_a_set_of_rules():
    doubling = "\n".join(["root ::= a0", *(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(30)), 'a30 ::= "x"'])
    assert len(gbnf_to_lark(doubling)) < 1000
