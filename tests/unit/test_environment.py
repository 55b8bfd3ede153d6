"""Variables that nobody reads are told at the start."""

from __future__ import annotations

import pytest

from app.cli.settings import UpSettings, remark_unknown
from app.settings import ApiSettings
from tasks import lifeline
from tasks.environment import KNOWN, OTHERS, unknown_settings
from tasks.failpoints import VARIABLE
from tasks.settings import StoreSettings
from workers.settings import WorkerSettings


def test_all_settings_are_known_and_nothing_else():
    """Whoever adds a setting adds its name to `tasks.environment`."""
    fields = {
        f"KEEPWARM_{name.upper()}"
        for settings in (UpSettings, ApiSettings, StoreSettings, WorkerSettings)
        for name in settings.model_fields
    }
    others = {f"KEEPWARM_{name.upper()}" for name in OTHERS.split()}
    assert KNOWN - others == fields
    assert not others & fields
    assert {lifeline.MARKER, VARIABLE} <= others


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("KEEPWARM_LEASES", "KEEPWARM_LEASE_S"),
        ("KEEPWARM_MEMORY_BUGDET", "KEEPWARM_MEMORY_BUDGET"),
        ("keepwarm_modelsdir", "KEEPWARM_MODELS_DIR"),
        ("KEEPWARM_ZZZZZZZZZZZZZZZZZZZZZZZZ", None),
    ],
)
def test_misspelt_variable_is_told_with_the_one_that_was_meant(variable: str, meant: str | None):
    assert unknown_settings({variable: "1", "PATH": "/", "keepwarm_lease_s": "5", "KEEPWARM_PORT": "1"}) == {
        variable: meant
    }


def test_up_says_it_where_its_user_looks(capsys):
    remark_unknown({"KEEPWARM_LEASES": "5"})
    assert "KEEPWARM_LEASES is no setting and changes nothing. Did you mean KEEPWARM_LEASE_S?" in " ".join(
        capsys.readouterr().err.split()
    )
