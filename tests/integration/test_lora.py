"""LoRA adapters over one loaded model, against the same changes merged into the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import ModelLoadFailed
from tasks.jobs import Priority
from tests.support.generating import Heard, listen, request, run, run_one
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_model import write_tiny_model
from workers.engine.base import EngineAdapter, EngineConfig
from workers.engine.llama_cpp import LlamaEngine
from workers.messages import Generate, Ready

pytestmark = pytest.mark.integration

SCALES = {"half": 0.5, "whole": 1.0}
PROMPT = "the inner the " * 8
OWNERS = ("", "half", "whole")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters, and for each of them the weights with the adapter merged in."""
    folder = tmp_path_factory.mktemp("lora")
    write_tiny_model(folder / "base.gguf")
    for seed, (name, scale) in enumerate(SCALES.items(), start=11):
        deltas = write_tiny_lora(folder / f"{name}.gguf", seed=seed)
        write_tiny_model(folder / f"merged-{name}.gguf", deltas={key: scale * each for key, each in deltas.items()})
    write_tiny_lora(folder / "foreign.gguf", architecture="qwen2")
    return folder


def config(folder: Path, *adapters: str, slots: int = 3) -> EngineConfig:
    return EngineConfig(
        model_path=folder / "base.gguf",
        context_length=256,
        slots=slots,
        threads=1,
        kv_type="f16",
        parked_bytes=8 * 2**20,
        adapters=tuple(EngineAdapter(name, folder / f"{name}.gguf", SCALES.get(name, 1.0)) for name in adapters),
    )


def loaded(config: EngineConfig) -> tuple[LlamaEngine, Ready]:
    engine = LlamaEngine(config)
    return engine, engine.load(lambda fraction: None)


@pytest.fixture
def engine(folder: Path) -> Iterator[LlamaEngine]:
    engine, _ = loaded(config(folder, *SCALES))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def texts(folder: Path) -> dict[str, str]:
    """What each says alone: the base as it is, the adapters as merged weights."""
    found = {}
    for name in OWNERS:
        file = folder / (f"merged-{name}.gguf" if name else "base.gguf")
        engine, _ = loaded(EngineConfig(model_path=file, context_length=256, slots=1, threads=1))
        found[name] = run_one(engine, asked()).text
        engine.close()
    assert len(set(found.values())) == len(OWNERS)
    return found


def asked(max_tokens: int = 40):
    return request(PROMPT, max_tokens=max_tokens, ignore_eos=True)


def test_base_and_adapters_in_one_runner_say_what_they_say_alone(engine: LlamaEngine, texts: dict[str, str]) -> None:
    heard = run(engine, [Generate(key=key, request=asked(), adapter=name) for key, name in enumerate(OWNERS)])
    assert {name: heard[key].text for key, name in enumerate(OWNERS)} == texts
    assert [heard[key].done.cached_tokens for key in range(3)] == [0, 0, 0]  # although the prompts are the same


def test_cached_prompts_are_found_under_their_own_adapter_only(engine: LlamaEngine, texts: dict[str, str]) -> None:
    first = run_one(engine, asked(), adapter="half")
    assert run_one(engine, asked()).done.cached_tokens == 0
    other = run_one(engine, asked(), adapter="whole")
    again = run_one(engine, asked(), adapter="half")
    assert (other.done.cached_tokens, again.done.cached_tokens) == (0, first.done.prompt_tokens - 1)
    assert (first.text, other.text, again.text) == (texts["half"], texts["whole"], texts["half"])


def test_parked_work_goes_on_under_its_adapter(folder: Path, texts: dict[str, str]) -> None:
    engine, _ = loaded(config(folder, *SCALES, slots=1))
    heard: dict[int, Heard] = {}
    engine.add(engine.prepare(Generate(key=1, request=asked(), adapter="half", priority=Priority.BATCH)))
    while 1 not in heard or len(heard[1].ids) < 10:
        listen(engine, heard)
    for key, name in ((2, ""), (3, "whole")):
        engine.add(engine.prepare(Generate(key=key, request=asked(), adapter=name)))
    while engine.has_work:
        listen(engine, heard)
    assert [heard[key].text for key in (1, 2, 3)] == [texts["half"], texts[""], texts["whole"]]
    assert heard[1].done.completion_tokens == 40
    engine.close()


def test_resumed_job_goes_on_under_its_adapter(engine: LlamaEngine, texts: dict[str, str]) -> None:
    start = run_one(engine, asked(15), adapter="whole")
    run_one(engine, asked(), adapter="half")
    rest = run_one(engine, asked(), adapter="whole", forced_ids=start.ids, emitted_text=start.text)
    assert start.text + rest.text == texts["whole"]


def test_broken_adapter_leaves_the_base_and_the_others_alone(folder: Path, texts: dict[str, str]) -> None:
    (folder / "torn.gguf").write_bytes((folder / "half.gguf").read_bytes()[:-5000])
    engine, ready = loaded(config(folder, "foreign", "half", "torn"))
    assert set(ready.broken_adapters) == {"foreign", "torn"}
    assert "LoRA adapter foreign.gguf" in ready.broken_adapters["foreign"]
    assert ready.adapter_bytes == (folder / "half.gguf").stat().st_size
    assert run_one(engine, asked()).text == texts[""]
    assert run_one(engine, asked(), adapter="half").text == texts["half"]
    with pytest.raises(ModelLoadFailed, match="no LoRA adapter 'torn'"):
        engine.prepare(Generate(key=9, request=asked(), adapter="torn"))
    engine.close()


@pytest.mark.parametrize("slots", [1, 3])
def test_adapter_of_nan_fails_its_own_jobs_and_changes_no_other_text(
    folder: Path, texts: dict[str, str], slots: int
) -> None:
    write_tiny_lora(folder / "nan.gguf", is_nan=True)
    engine, _ = loaded(config(folder, *SCALES, "nan", slots=slots))
    names = ("nan", "", "half", "nan", "", "half")
    heard = run(engine, [Generate(key=key, request=asked(), adapter=name) for key, name in enumerate(names)])
    for key, name in enumerate(names):
        error = heard[key].done.error
        if name == "nan":
            assert error is not None and error.code == "adapter_failed" and "'nan'" in error.message
        else:
            assert (error, heard[key].text) == (None, texts[name])
    engine.close()
