"""Texts that ended the process, before real tokenisers of llama.cpp: here they would end a child."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers.engine.stack_room import LONGEST_RUN

pytestmark = pytest.mark.integration

MODEL = Path(__file__).parents[2] / "models" / "keepwarm-demo-q8_0.gguf"
CHILD = f"""
import json, sys, threading
from pathlib import Path
from tasks.errors import PromptTooLong
from tasks.generation import GenerationRequest
from workers.engine.base import EngineConfig
from workers.engine.llama_cpp import LlamaEngine
from workers.messages import Generate

engine = LlamaEngine(EngineConfig(model_path=Path(sys.argv[1]), context_length=64, slots=1, threads=1))
engine.load(lambda fraction: None)
refused = []

def prepare():
    for run in json.loads(sys.argv[2]):
        for text in (run * ({LONGEST_RUN} // len(run)), "Lily had a ball. " * 40_000):
            try:
                engine.prepare(Generate(key=1, request=GenerationRequest(model="m", prompt=text)))
            except PromptTooLong as error:
                refused.append(error.prompt_tokens)

thread = threading.Thread(target=prepare)  # with the stack that a runner's threads have
thread.start()
thread.join()
print(json.dumps(refused))
"""


@pytest.mark.parametrize(
    ("tokenizer", "runs"),
    [
        ("tekken", ["a", " ", "!", "/\n"]),
        ("exaone-moe", ["a "]),
        ("poro-chat", ["a"]),
        ("falcon", ["!"]),
        ("whitespace", ["a  b\t \u3000"]),
    ],
)
def test_text_on_which_a_tokenizer_ended_the_process_is_counted(tmp_path: Path, tokenizer: str, runs: list[str]):
    model = tmp_path / "model.gguf"
    relabel = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--pre-tokenizer", tokenizer]
    subprocess.run([*relabel, str(MODEL), str(model)], check=True, capture_output=True, timeout=60)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), json.dumps(runs)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr[-2000:]
    refused = json.loads(child.stdout.splitlines()[-1])
    assert len(refused) == 2 * len(runs)
    assert min(refused) > 64
