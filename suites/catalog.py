"""The suites: what each is, how it is installed, and the command that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from suites.installing import llama_cpp_folder, node_modules, python_environment
from suites.server import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL, SECOND_CHAT_MODEL

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command that asks the server at a URL and writes a JUnit file."""

    command: list[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Prepare(Protocol):
    def __call__(self, url: str, results: Path, *, is_quick: bool) -> Run:
        """Install what is missing. `results` is the file to write; quick runs leave out what is not repeatable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    title: str
    about: str
    left_out: str = ""  # of the suite's tests, and why
    limit_s: int
    prepare: Prepare


def environment_of(url: str) -> dict[str, str]:
    """What every suite is told."""
    return {
        "SUITE_URL": url,
        "SUITE_CHAT_MODEL": CHAT_MODEL,
        "SUITE_SECOND_CHAT_MODEL": SECOND_CHAT_MODEL,
        "SUITE_EMBEDDING_MODEL": EMBEDDING_MODEL,
        "SUITE_RERANK_MODEL": RERANK_MODEL,
    }


def _node(url: str, results: Path, *, is_quick: bool) -> Run:
    folder = HERE / "node"
    node_modules(folder)
    command = ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={results}"]
    return Run(command=command, folder=folder)


def _schemathesis(url: str, results: Path, *, is_quick: bool) -> Run:
    folder = HERE / "schemathesis"
    python = python_environment("schemathesis", folder / "requirements.txt")
    command = [str(python.with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml")]
    command += ["run", f"{url}/openapi.json", "--report", "junit", "--report-junit-path", str(results)]
    if is_quick:  # chains of requests go by what earlier ones answered, so they differ from run to run
        command += ["--phases", "examples,coverage,fuzzing"]
    return Run(
        command=command,
        folder=results.parent,
        environment={"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)},
    )


# ChatOpenAI keeps one asynchronous client, which lives in one loop.
_ONE_LOOP = ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
_ONE_LOOP += ["-o", "asyncio_default_fixture_loop_scope=session"]


def _langchain(url: str, results: Path, *, is_quick: bool) -> Run:
    folder = HERE / "langchain"
    python = python_environment("langchain", folder / "requirements.txt")
    return Run(command=[*_pytest(python, folder, results), *_ONE_LOOP, str(folder)], folder=results.parent)


# Of llama-server's test files those about what Keepwarm claims to do as well; in test_completion.py the tests of /v1.
LLAMA_SERVER_CHOICE = "not test_completion.py or openai"
LLAMA_SERVER_TESTS = ("chat_completion", "compat_oai_responses", "completion", "embedding", "rerank", "tool_call")


def _llama_server(url: str, results: Path, *, is_quick: bool) -> Run:
    folder = HERE / "llama_server"
    python = python_environment("llama_server", folder / "requirements.txt")
    tests = llama_cpp_folder("tools/server/tests")
    files = [f"unit/test_{name}.py" for name in LLAMA_SERVER_TESTS]
    command = [
        *_pytest(python, tests, results),
        "-p",
        "adapter",
        "--timeout=60",
        "-m",
        "not slow",
        "-k",
        LLAMA_SERVER_CHOICE,
        *files,
    ]
    return Run(
        command=command,
        folder=tests,
        environment={
            "DEBUG_EXTERNAL": "1",
            "PORT": url.rpartition(":")[2],
            "PYTHONPATH": f"{folder}:{tests}",
        },
    )


def _pytest(python: Path, tests: Path, results: Path) -> list[str]:
    """Apart from our own configuration."""
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tests}", "-q", "--tb=line"]
    return [str(python), "-m", "pytest", *options, f"--junitxml={results}"]


SUITES = (
    Suite(
        name="node",
        title="OpenAI's Node SDK",
        about="The official client against every OpenAI route: helpers, retries, cancellation, errors. The tests are "
        "ours, the SDK that they use is unchanged.",
        limit_s=180,
        prepare=_node,
    ),
    Suite(
        name="schemathesis",
        title="Schemathesis",
        about="Requests made from our own OpenAPI document, right and wrong ones, with all of its checks. One test per "
        "operation; some 2 700 requests in all.",
        limit_s=300,
        prepare=_schemathesis,
    ),
    Suite(
        name="langchain",
        title="LangChain's standard tests",
        about="`langchain-tests` for chat models and embeddings, unit and integration, over `ChatOpenAI` and "
        "`OpenAIEmbeddings`.",
        limit_s=400,
        prepare=_langchain,
    ),
    Suite(
        name="llama-server",
        title="llama-server's own tests",
        about="From the source package of llama-cpp-python, against Keepwarm in llama-server's place. A plugin puts "
        "/v1 before their paths and names a model, since Keepwarm serves many.",
        left_out="The files about what Keepwarm does not claim to be: llama-server's own routes (`test_completion.py` "
        "but for its tests of /v1, basic, tokenize, template, infill, slot_save, metrics, ignore_eos, ctx_shift), its "
        "flags at the start (lora, speculative, sleep, kv_keep_only_active, router, proxy, security), other APIs "
        "(compat_anthropic, compat_gcp, mcp_servers, tools_builtin), and images (vision_api). Tests marked slow load "
        "models of billions of parameters from the hub.",
        limit_s=400,
        prepare=_llama_server,
    ),
)
