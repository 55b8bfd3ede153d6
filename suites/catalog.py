"""The suites: what each is, how it is installed, and the command that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from suites.installing import node_modules, python_environment
from suites.server import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command that asks the server at a URL and writes a JUnit file."""

    command: list[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    title: str
    about: str
    limit_s: int
    prepare: Callable[[str, Path], Run]  # installs what is missing; takes the server's URL and where results go


def environment_of(url: str) -> dict[str, str]:
    """What every suite is told."""
    return {
        "SUITE_URL": url,
        "SUITE_CHAT_MODEL": CHAT_MODEL,
        "SUITE_EMBEDDING_MODEL": EMBEDDING_MODEL,
        "SUITE_RERANK_MODEL": RERANK_MODEL,
    }


def _node(url: str, results: Path) -> Run:
    folder = HERE / "node"
    node_modules(folder)
    command = ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={results}"]
    return Run(command=command, folder=folder)


def _schemathesis(url: str, results: Path) -> Run:
    folder = HERE / "schemathesis"
    python = python_environment("schemathesis", folder / "requirements.txt")
    command = [str(python.with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml")]
    command += ["run", f"{url}/openapi.json", "--report", "junit", "--report-junit-path", str(results)]
    return Run(
        command=command,
        folder=results.parent,
        environment={"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)},
    )


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
)
