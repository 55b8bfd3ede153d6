"""The engine on real llama.cpp with a model of random weights: batching, resume and reuse must not change the text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.errors import InvalidRequest, ModelLoadFailed, PromptTooLong
from tasks.generation import ChatMessage, GenerationRequest, SamplingParams
from tasks.grammars import json_schema_format
from tests.support.generating import GREEDY, Heard, listen, request, run, run_one
from tests.support.tiny_model import CONTEXT_LENGTH, END, write_tiny_model
from workers.engine.backend import Interrupted, Slice
from workers.engine.base import EngineConfig
from workers.engine.llama_cpp import LlamaEngine
from workers.engine.llama_generating import LlamaContext
from workers.engine.llama_log import LlamaLog
from workers.engine.llama_model import LlamaModel
from workers.messages import Generate

pytestmark = pytest.mark.integration

SEEDED = SamplingParams(temperature=1.0, seed=1234, repeat_penalty=1.1)
PROMPTS = [f"{word} the inner thing, part {number} " * (1 + number * 2) for number, word in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")
    return EngineConfig(
        model_path=path, context_length=CONTEXT_LENGTH, slots=8, threads=1, prefill_chunk=48, use_extra_bufts=False
    )


def loaded(config: EngineConfig) -> LlamaEngine:
    engine = LlamaEngine(config)
    engine.load(lambda fraction: None)
    return engine


@pytest.fixture(scope="module")
def shared(config: EngineConfig) -> Iterator[LlamaEngine]:
    """For tests that don't mind what earlier ones left in the slots."""
    engine = loaded(config)
    yield engine
    engine.close()


@pytest.fixture
def fresh(config: EngineConfig) -> Iterator[LlamaEngine]:
    engine = loaded(replace(config, slots=1))
    yield engine
    engine.close()


def messages_for(sampling: SamplingParams) -> list[Generate]:
    return [
        Generate(key=number, request=request(prompt, sampling=sampling, max_tokens=40, ignore_eos=True))
        for number, prompt in enumerate(PROMPTS)
    ]


def test_load_reports_progress_and_sizes(config: EngineConfig):
    fractions: list[float] = []
    engine = LlamaEngine(config)
    ready = engine.load(fractions.append)
    engine.close()
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert (ready.context_length, ready.slots) == (CONTEXT_LENGTH, 8)
    assert ready.weight_bytes > 400_000
    assert ready.compute_bytes > 0


@pytest.mark.parametrize("share", [0.5, None])
def test_file_that_is_not_known_to_be_cached_is_read_before_it_is_loaded(
    share: float | None, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.page_cache.cached_share", lambda path: share)
    fractions: list[float] = []
    engine = LlamaEngine(config)
    engine.load(fractions.append)
    engine.close()
    assert fractions[:2] == [0.0, 0.9]
    assert fractions == sorted(fractions)
    assert (fractions[2] >= 0.9, fractions[-1]) == (True, 1.0)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_eight_at_once_say_the_same_as_each_alone(shared: LlamaEngine, fresh: LlamaEngine, sampling: SamplingParams):
    together = run(shared, messages_for(sampling))
    for message in messages_for(sampling):
        alone = run(fresh, [message])[message.key]
        assert together[message.key].ids == alone.ids
        assert together[message.key].text == alone.text
    assert len({each.text for each in together.values()}) == len(PROMPTS)


def test_text_does_not_depend_on_the_cores_that_a_load_leaves(
    config: EngineConfig, shared: LlamaEngine, tmp_path: Path
) -> None:
    expected = {key: heard.text for key, heard in run(shared, messages_for(GREEDY)).items()}
    path = tmp_path / "cores"
    engine = loaded(replace(config, threads=2, turns_path=path))
    texts = {key: heard.text for key, heard in run(engine, messages_for(GREEDY)[:4]).items()}
    code = "import sys; from pathlib import Path; from workers.engine.turnstile import loading\n"
    code += f"with loading(Path({str(path)!r})): print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        assert load.stdout is not None
        load.stdout.readline()
        texts |= {key: heard.text for key, heard in run(engine, messages_for(GREEDY)[4:]).items()}
        load.communicate()
    engine.close()
    assert texts == expected


@pytest.mark.parametrize(("kv_type", "bytes_per_block"), [("f16", 64), ("q8_0", 34), ("q4_0", 18)])
def test_quantised_kv_cache_is_smaller_and_still_generates(config: EngineConfig, kv_type: str, bytes_per_block: int):
    engine = LlamaEngine(replace(config, kv_type=kv_type))
    ready = engine.load(lambda fraction: None)
    heard = run_one(engine, request("quantised", max_tokens=20, ignore_eos=True))
    engine.close()
    # 2 layers × (K and V) × 64 values, in blocks of 32; llama.cpp's log rounds to 0.01 MiB
    assert ready.kv_bytes == pytest.approx(CONTEXT_LENGTH * 8 * 2 * 2 * 2 * bytes_per_block, abs=2**20 / 100)
    assert heard.done.completion_tokens == 20


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_resume_at_every_token_equals_the_undisturbed_text(fresh: LlamaEngine, sampling: SamplingParams):
    what = request("resume the thing", sampling=sampling, max_tokens=30, ignore_eos=True)
    whole = run_one(fresh, what)
    for published in range(len(whole.outputs) + 1):
        before = Heard(whole.outputs[:published])
        run_one(fresh, request("something else in between", max_tokens=3))  # so that nothing is cached
        rest = run_one(fresh, what, forced_ids=before.ids, emitted_text=before.text)
        assert before.text + rest.text == whole.text
        assert rest.done.completion_tokens == whole.done.completion_tokens


def test_prefix_reuse_says_the_same_and_reports_it(fresh: LlamaEngine):
    first = request("the shared beginning of a conversation", max_tokens=10)
    longer = request("the shared beginning of a conversation goes on", max_tokens=40)
    cold = run_one(fresh, longer)
    run_one(fresh, request("an unrelated one", max_tokens=3))
    run_one(fresh, first)
    warm = run_one(fresh, longer)
    assert cold.done.cached_tokens < 5
    assert warm.done.cached_tokens > 25
    assert warm.text == cold.text


def test_second_conversation_finds_its_slot_again(shared: LlamaEngine):
    prompts = ["first conversation about water " * 3, "second conversation about stones " * 3]
    run(shared, [Generate(key=key, request=request(prompt, max_tokens=4)) for key, prompt in enumerate(prompts)])
    again = run(
        shared, [Generate(key=key, request=request(prompt + "?", max_tokens=4)) for key, prompt in enumerate(prompts)]
    )
    assert all(each.done.cached_tokens > 50 for each in again.values())


def test_cancel_in_company_leaves_the_others_alone(shared: LlamaEngine):
    undisturbed = run(shared, messages_for(GREEDY))

    def cancel_some(step: int) -> None:
        if step == 5:
            for key in (0, 3, 7):
                shared.cancel(key)

    heard = run(shared, messages_for(GREEDY), on_step=cancel_some)
    for key, each in heard.items():
        assert undisturbed[key].text.startswith(each.text)
        assert (each.done.finish_reason is None) == (key in (0, 3, 7))
        if each.done.finish_reason is not None:
            assert each.text == undisturbed[key].text


def test_cancel_in_prefill_frees_the_slot(fresh: LlamaEngine):
    heard: dict[int, Heard] = {}
    fresh.add(fresh.prepare(Generate(key=1, request=request("x" * 400))))
    assert listen(fresh, heard) == 0
    fresh.cancel(1)
    listen(fresh, heard)
    assert heard[1].done.finish_reason is None
    assert run_one(fresh, request("next", max_tokens=3)).done.completion_tokens <= 3


def test_end_token_stops_and_is_not_text(fresh: LlamaEngine):
    end = fresh.prepare(Generate(key=1, request=request(END))).tokens[-1]
    biased = SamplingParams(temperature=0.0, logit_bias={str(end): 1000.0})
    heard = run_one(fresh, request("stop here", sampling=biased))
    assert heard.done.finish_reason == "stop"
    assert heard.text == ""
    goes_on = run_one(fresh, request("stop here", sampling=biased, ignore_eos=True, max_tokens=5))
    assert goes_on.done.completion_tokens == 5


def test_control_tokens_never_become_text(fresh: LlamaEngine):
    user = fresh.prepare(Generate(key=1, request=request("<|user|>"))).tokens[-1]
    biased = SamplingParams(temperature=0.0, logit_bias={str(user): 1000.0})
    heard = run_one(fresh, request("say it", sampling=biased, max_tokens=5))
    assert heard.done.completion_tokens == 5
    assert heard.text == ""


def test_stop_string_cuts_what_the_model_would_say(fresh: LlamaEngine):
    free = run_one(fresh, request("find a stop", max_tokens=30, ignore_eos=True))
    stop = free.text[8:11]
    cut = run_one(fresh, request("find a stop", max_tokens=30, ignore_eos=True, stop=(stop,)))
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.done.finish_reason == "stop"


def test_full_context_ends_with_length(fresh: LlamaEngine):
    heard = run_one(fresh, request("y" * 500, ignore_eos=True))
    assert heard.done.finish_reason == "length"
    assert heard.done.prompt_tokens + heard.done.completion_tokens == CONTEXT_LENGTH


def test_prompt_too_long_names_its_size(shared: LlamaEngine):
    with pytest.raises(PromptTooLong) as raised:
        shared.prepare(Generate(key=1, request=request("z" * 600)))
    assert raised.value.prompt_tokens == 601  # and BOS


def test_empty_prompt_generates(fresh: LlamaEngine):
    heard = run_one(fresh, request("", max_tokens=3, ignore_eos=True))
    assert (heard.done.prompt_tokens, heard.done.completion_tokens) == (1, 3)


def test_chat_template_of_the_file_is_used_with_one_bos(shared: LlamaEngine):
    turn = ChatMessage(role="user", content="the")
    chat = shared.prepare(Generate(key=1, request=GenerationRequest(model="m", messages=(turn,))))
    raw = shared.prepare(Generate(key=1, request=request("<|user|>the<|end|>\n<|assistant|>")))
    assert chat.tokens == raw.tokens
    assert chat.prompt_tokens == 6


def test_unknown_bias_is_refused_before_anything_runs(shared: LlamaEngine):
    with pytest.raises(InvalidRequest, match="logit_bias"):
        shared.prepare(Generate(key=1, request=request("x", sampling=SamplingParams(logit_bias={"100000": 1.0}))))


def test_control_tokens_are_no_text_but_for_those_that_announce_tool_calls(tmp_path: Path):
    path = write_tiny_model(tmp_path / "tools.gguf", more_control=("[TOOL_CALLS]", "[INST]"))
    model = LlamaModel(path, LlamaLog())
    pieces = model.vocabulary.pieces
    (marker,) = model.tokenize("[TOOL_CALLS]", add_special=False)
    (other,) = model.tokenize("[INST]", add_special=False)
    assert (pieces[marker], pieces[other]) == (b"[TOOL_CALLS]", b"")
    model.close()


def test_json_by_schema_from_a_real_vocabulary(fresh: LlamaEngine):
    schema = {"type": "array", "items": {"enum": ["ü🙂", 7]}, "minItems": 2, "maxItems": 4}
    wanted = json_schema_format(schema, is_lenient=False)
    heard = run_one(fresh, request("list", sampling=SEEDED, max_tokens=200, answer_format=wanted))
    assert heard.done.finish_reason == "stop"
    assert set(json.loads(heard.text)) <= {"ü🙂", 7}


def test_logprobs_of_greedy_tokens_are_the_highest(fresh: LlamaEngine):
    heard = run_one(fresh, request("why", max_tokens=5, ignore_eos=True, logprobs=3))
    assert len(heard.logprobs) == 5
    for each in heard.logprobs:
        assert each.logprob == max(rival.logprob for rival in each.top)


def broken(tmp_path: Path, config: EngineConfig, kind: str) -> Path:
    path = tmp_path / f"{kind}.gguf"
    whole = config.model_path.read_bytes()
    content = {
        "empty": b"",
        "html": b"<html>not found</html>",
        "header": whole[:100],
        "truncated": whole[: len(whole) // 2],
        "garbled": whole[:64] + bytes(255 - byte for byte in whole[64:4096]) + whole[4096:],
    }
    path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "not a GGUF"),
        ("html", "not a GGUF"),
        ("header", None),
        ("truncated", "out of bounds|corrupt"),
        ("garbled", None),
    ],
)
def test_broken_file_is_refused_with_a_reason(tmp_path: Path, config: EngineConfig, kind: str, says: str | None):
    with pytest.raises(ModelLoadFailed, match=says) as raised:
        loaded(replace(config, model_path=broken(tmp_path, config, kind)))
    assert kind in str(raised.value)
    assert "no reason" not in str(raised.value)


def test_missing_file_is_named(config: EngineConfig, tmp_path: Path):
    with pytest.raises(ModelLoadFailed, match="No such file"):
        loaded(replace(config, model_path=tmp_path / "absent.gguf"))


def test_interrupted_prefill_stops_inside_the_batch_and_costs_nobody_a_token(
    shared: LlamaEngine, monkeypatch: pytest.MonkeyPatch
):
    undisturbed = run(shared, messages_for(GREEDY))
    decode = LlamaContext.decode
    stopped = 0

    def decode_against_a_wish(context: LlamaContext, batch: list[Slice], adapter: str):
        nonlocal stopped
        if stopped < 5:
            context.interrupt()
        try:
            return decode(context, batch, adapter)
        except Interrupted:
            stopped += 1
            raise

    monkeypatch.setattr(LlamaContext, "decode", decode_against_a_wish)
    heard = run(shared, messages_for(GREEDY))
    assert stopped == 5
    assert {key: each.text for key, each in heard.items()} == {key: each.text for key, each in undisturbed.items()}
