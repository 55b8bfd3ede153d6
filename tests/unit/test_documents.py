"""The documents name what exists: settings, commands, files. What they leave out or misspell is found here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from app.cli.main import cli
from app.cli.settings import UpSettings
from app.settings import ApiSettings
from tasks.settings import StoreSettings
from workers.models_yaml import read_models_yaml
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTINGS = {
    f"KEEPWARM_{name.upper()}"
    for settings in (UpSettings, ApiSettings, StoreSettings, WorkerSettings)
    for name in settings.model_fields
}


def test_the_readme_lists_every_setting_and_no_other():
    rows = [line for line in README.splitlines() if line.startswith("| `KEEPWARM_")]
    listed = {name for row in rows for name in re.findall(r"`(KEEPWARM_\w+)`", row.split("|")[1])}
    assert listed == SETTINGS | {"KEEPWARM_URL"}


def test_every_command_is_in_the_readme():
    commands = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
    rows = " ".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `keepwarm"))
    assert commands <= set(re.findall(r"[a-z]+", rows))


def test_the_example_of_models_yaml_is_valid(tmp_path: Path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "models.yaml").write_text(example, "utf-8")
    assert read_models_yaml(tmp_path / "models.yaml").keys() == yaml.safe_load(example)["models"].keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_and_named_files_exist(document: Path):
    text = document.read_text("utf-8")
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in linked if not (document.parent / link).exists()] == []
    named = re.findall(r"`((?:app|tasks|workers|tests|tools|docs|models)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
