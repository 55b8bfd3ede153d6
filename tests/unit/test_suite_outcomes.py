"""How the ends of other people's tests are read and judged."""

from __future__ import annotations

from suites.outcomes import KnownFailure, TestEnd, judge, read_junit, read_known_failures

JUNIT = """<testsuites><testsuite name="a">
  <testcase classname="unit.test_chat" name="test_one[8-x]" time="0.1"/>
  <testcase classname="unit.test_chat" name="test_two"><failure message="assert 1 == 2&#10;more">no</failure></testcase>
  <testcase classname="unit.test_chat" name="test_three"><error>no fixture</error></testcase>
  <testcase classname="test" name="a sentence"><skipped message="slow"/></testcase>
</testsuite></testsuites>"""


def test_ends_are_read_with_their_first_words():
    assert read_junit(JUNIT) == [
        TestEnd(name="unit.test_chat::test_one[8-x]", ended="passed"),
        TestEnd(name="unit.test_chat::test_two", ended="failed", words="assert 1 == 2 more"),
        TestEnd(name="unit.test_chat::test_three", ended="failed", words="no fixture"),
        TestEnd(name="a sentence", ended="skipped", words="slow"),
    ]


def test_known_failures_are_told_from_new_ones():
    known = read_known_failures('[[chat]]\nreason = "not ours"\ntests = ["unit.test_chat::test_two", "*::test_gone"]\n')
    verdict = judge(read_junit(JUNIT), known["chat"])
    assert verdict.known == {"not ours": ["unit.test_chat::test_two"]}
    assert [end.name for end in verdict.failed] == ["unit.test_chat::test_three"]
    assert verdict.outdated == ["*::test_gone"]
    assert not verdict.is_good


def test_listed_test_may_pass_with_some_parameters_as_long_as_it_fails_with_others():
    ends = [TestEnd(name="a::b[1]", ended="passed"), TestEnd(name="a::b[2]", ended="failed")]
    assert judge(ends, [KnownFailure(reason="odd", tests=("a::b[*]",))]).is_good
    assert not judge(ends[:1], [KnownFailure(reason="odd", tests=("a::b[*]",))]).is_good


def test_suite_that_ran_nothing_is_not_good():
    assert not judge([], []).is_good
