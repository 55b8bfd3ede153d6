"""Text, stop strings, limits and resume of one generation, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import CannotResume, GrammarFailed, InvalidRequest
from tasks.generation import GenerationRequest, SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.text_assembler import TextAssembler, possible_overlap
from workers.engine.vocabulary import LazyPieces, Vocabulary
from workers.messages import Generate, TokenOut

EOG = 256
VOCABULARY = Vocabulary(pieces=(*(bytes([byte]) for byte in range(256)), b""), eog_ids=frozenset({EOG}))


def sequence(forced: bytes = b"", emitted: str = "", context_length: int = 1000, **request) -> Sequence:
    message = Generate(
        key=1,
        request=GenerationRequest(model="m", prompt="?", **request),
        forced_ids=tuple(forced),
        emitted_text=emitted,
    )
    return Sequence(message, (1, 2, 3), VOCABULARY, context_length)


def feed(target: Sequence, tokens: bytes | list[int]) -> list[TokenOut]:
    """Everything that comes out, from the leftover of a resume to the end of the tokens or of the generation."""
    outputs = [target.leftover()]
    for token in tokens:
        if target.finish_reason is not None:
            break
        outputs.append(target.accept(token))
    return [output for output in outputs if output is not None]


def text_of(outputs: list[TokenOut]) -> str:
    return "".join(output.text for output in outputs)


def test_multibyte_character_leaves_whole_and_carries_all_its_ids():
    outputs = feed(sequence(), "aß🙂b".encode())
    assert [output.text for output in outputs] == ["a", "ß", "🙂", "b"]
    assert outputs[2].ids == tuple("🙂".encode())


def test_incomplete_character_at_the_end_becomes_a_replacement_character():
    assert text_of(feed(sequence(max_tokens=2), "🙂".encode()[:2])) == "\ufffd"


def test_stop_string_across_token_borders_is_removed():
    target = sequence(stop=("END",))
    assert text_of(feed(target, b"one E EN END two")) == "one E EN "
    assert target.finish_reason == "stop"
    assert target.done().completion_tokens == len("one E EN END")


def test_only_a_possible_start_of_a_stop_string_is_held_back():
    outputs = feed(sequence(stop=("\nUser:",)), b"a\nUseful")
    assert [output.text for output in outputs] == ["a", "\nUsef", "u", "l"]


def test_stop_string_inside_one_token_cuts_its_text():
    vocabulary = Vocabulary(pieces=(b"before###after",), eog_ids=frozenset())
    target = Sequence(
        Generate(key=1, request=GenerationRequest(model="m", prompt="?", stop=("###",))), (), vocabulary, 10
    )
    output = target.accept(0)
    assert output is not None
    assert output.text == "before"


def test_the_earliest_of_several_stop_strings_wins():
    assert text_of(feed(sequence(stop=("cd", "bcd")), b"abcd")) == "a"


def test_held_text_is_flushed_when_the_limit_ends_the_generation():
    target = sequence(stop=("END",), max_tokens=3)
    outputs = feed(target, b"xEN")
    assert [output.text for output in outputs] == ["x", "EN"]
    assert outputs[-1].ids == tuple(b"EN")
    assert target.finish_reason == "length"


def test_end_token_stops_without_text():
    target = sequence()
    assert text_of(feed(target, [97, EOG, 98])) == "a"
    assert target.finish_reason == "stop"


def test_ignored_end_token_goes_on():
    target = sequence(ignore_eos=True)
    assert text_of(feed(target, [97, EOG, 98])) == "ab"
    assert target.finish_reason is None


def test_full_context_ends_with_length():
    target = sequence(context_length=5)
    assert text_of(feed(target, b"abc")) == "ab"
    assert target.finish_reason == "length"


def test_max_tokens_zero_is_finished_at_once():
    target = sequence(max_tokens=0)
    assert target.finish_reason == "length"
    assert target.done().completion_tokens == 0


def test_empty_stop_string_is_no_stop_string():
    assert text_of(feed(sequence(stop=("",)), b"abc")) == "abc"


@given(
    text=st.text(alphabet="ab\nü🙂", max_size=12),
    stops=st.lists(st.text(alphabet="ab\nü🙂", min_size=1, max_size=4), max_size=3),
)
def test_resume_at_every_published_token_equals_the_undisturbed_text(text: str, stops: list[str]):
    tokens = text.encode()
    stop, max_tokens = tuple(stops), max(1, len(tokens))
    whole = sequence(stop=stop, max_tokens=max_tokens)
    outputs = feed(whole, tokens)
    for published in range(len(outputs) + 1):
        ids = b"".join(bytes(output.ids) for output in outputs[:published])
        emitted = text_of(outputs[:published])
        resumed = sequence(ids, emitted, stop=stop, max_tokens=max_tokens)
        assert emitted + text_of(feed(resumed, tokens[len(ids) :])) == text_of(outputs)
        assert resumed.done().finish_reason == whole.done().finish_reason


def test_forced_ids_that_end_the_text_finish_at_once():
    target = sequence(b"one END", "one ", stop=("END",))
    assert target.finish_reason == "stop"
    assert target.leftover() is None


def test_text_that_was_generated_but_not_published_comes_first():
    outputs = feed(sequence(b"abc", "a"), b"d")
    assert [output.text for output in outputs] == ["bc", "d"]


def test_text_that_was_published_ahead_is_not_repeated():
    # "EN" was flushed by the attempt before, e.g. because it was cut off; here it is held for the stop string.
    assert text_of(feed(sequence(b"xEN", "xEN", stop=("END",)), b"Ok")) == "Ok"


def test_published_text_of_another_model_is_refused():
    with pytest.raises(InvalidRequest, match="published text"):
        sequence(b"abc", "xyz")


def test_forced_ids_beyond_the_vocabulary_are_refused():
    message = Generate(key=1, request=GenerationRequest(model="m", prompt="?"), forced_ids=(9999,))
    with pytest.raises(InvalidRequest, match="not of this model"):
        Sequence(message, (1,), VOCABULARY, 10)


@given(st.text(alphabet="ab", max_size=8), st.text(alphabet="ab", min_size=1, max_size=5))
def test_possible_overlap_is_the_longest_proper_start(text: str, stop: str):
    expected = max(length for length in range(len(stop)) if text.endswith(stop[:length]))
    assert possible_overlap(text, stop) == expected


@given(st.binary(max_size=30))
def test_any_bytes_come_out_as_the_whole_decoder_would_read_them(data: bytes):
    assembler = TextAssembler(())
    text = "".join(assembler.push(bytes([byte])) for byte in data) + assembler.flush()
    assert text == data.decode("utf-8", "replace")


@given(st.lists(st.sampled_from([b"a", "ü".encode(), "ü".encode()[:1], "ü".encode()[1:], b"", "🙂".encode()[:3]])))
def test_whole_characters_need_no_decoder_except_behind_a_part_of_one(pieces: list[bytes]):
    vocabulary = Vocabulary(pieces=tuple(pieces), eog_ids=frozenset())
    quick, plain = TextAssembler(()), TextAssembler(())
    for token, piece in enumerate(pieces):
        same, whole = vocabulary.texts[token]
        assert same == piece
        assert quick.push(piece, whole) == plain.push(piece)
    assert quick.flush() == plain.flush()


def test_pieces_are_read_when_they_are_asked_for_and_once():
    read: list[int] = []

    def piece(token: int) -> bytes:
        read.append(token)
        return b"abc"[token : token + 1]

    vocabulary = Vocabulary(pieces=LazyPieces(3, piece), eog_ids=frozenset())
    assert len(vocabulary) == 3
    assert read == []
    assert [vocabulary.texts[token] for token in (1, 1, 2)] == [(b"b", "b"), (b"b", "b"), (b"c", "c")]
    assert read == [1, 2]
    assert tuple(vocabulary.pieces) == (b"a", b"b", b"c")
    with pytest.raises(IndexError):
        vocabulary.texts[3]


class Spelling:
    """A constraint that wants exactly these bytes."""

    def __init__(self, text: bytes) -> None:
        self.left = list(text)

    def allows(self, token: int) -> bool:
        return token == self.left[0]

    def mask(self) -> np.ndarray:
        return np.arange(len(VOCABULARY)) == self.left[0]

    def take(self, token: int) -> bool:
        if token != self.left.pop(0):
            raise GrammarFailed("not the next letter.")
        return not self.left


class Impossible(Spelling):
    def allows(self, token: int) -> bool:
        return False

    def mask(self) -> np.ndarray:
        return np.zeros(len(VOCABULARY), dtype=bool)


class Exhausted(Spelling):
    """Allows a token and then finds that going past it would take too much work."""

    def take(self, token: int) -> bool:
        raise GrammarFailed("too many items.")


def constrained(wanted: bytes, forced: bytes = b"", emitted: str = "") -> Sequence:
    message = Generate(
        key=1,
        request=GenerationRequest(model="m", prompt="?", sampling=SamplingParams(seed=1)),
        forced_ids=tuple(forced),
        emitted_text=emitted,
    )
    return Sequence(message, (1,), VOCABULARY, 100, Spelling(wanted))


def sampled(target: Sequence, logits: np.ndarray) -> str:
    text = ""
    while not target.is_over:
        output = target.sample(int(logits.argmax()), logits)
        text += output.text if output is not None else ""
    return text


FLAT = np.zeros(len(VOCABULARY), dtype=np.float32)


def test_complete_constraint_ends_the_generation():
    target = constrained("ja 🙂".encode())
    assert sampled(target, FLAT) == "ja 🙂"
    assert target.done().finish_reason == "stop"


def test_constraint_goes_on_behind_the_forced_tokens():
    target = constrained(b"abcd", b"ab", "ab")
    assert sampled(target, FLAT) == "cd"


def test_forced_tokens_against_the_constraint_cannot_be_resumed():
    with pytest.raises(CannotResume, match="grammar"):
        constrained(b"abcd", b"ax", "ax")


def test_constraint_without_any_token_left_ends_with_its_error():
    message = Generate(key=1, request=GenerationRequest(model="m", prompt="?"))
    target = Sequence(message, (1,), VOCABULARY, 100, Impossible(b"a"))
    assert sampled(target, FLAT) == ""
    done = target.done()
    assert done.finish_reason is None
    assert done.error is not None and done.error.code == "grammar_failed"


def test_constraint_that_fails_behind_an_allowed_token_ends_only_its_sequence():
    message = Generate(key=1, request=GenerationRequest(model="m", prompt="?"))
    target = Sequence(message, (1,), VOCABULARY, 100, Exhausted(b"ab"))
    assert sampled(target, FLAT) == ""
    done = target.done()
    assert done.error is not None and done.error.code == "grammar_failed"


def test_end_token_has_no_logprob():
    message = Generate(key=1, request=GenerationRequest(model="m", prompt="?", logprobs=1, stop=("ab",)))
    target = Sequence(message, (1,), VOCABULARY, 100)
    likes_a, likes_end = FLAT.copy(), FLAT.copy()
    likes_a[ord("a")], likes_end[EOG] = 50, 50
    assert target.sample(0, likes_a) is None
    output = target.sample(0, likes_end)
    assert output is not None
    assert [entry.text for entry in output.logprobs] == ["a"]
