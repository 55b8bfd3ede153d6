"""What `keepwarm up` proposes, and how figures are written."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.cli.first_steps import choose_model, curl_line
from app.cli.household import Household, check_premises, read_settings
from app.cli.premises import free_port
from app.cli.processes import API, CONTROLLER, flower_process, store_process, with_lifeline, worker_processes
from app.cli.render import bytes_text, duration_text, without_control
from app.cli.settings import UpSettings, refuse_open_flower, refuse_shared_budget
from app.cli.up import Signals
from app.settings import ApiSettings
from tasks.errors import InvalidSetting
from tasks.settings import StoreSettings


def model(name: str, state: str = "cold", size: int = 1, aliases: tuple[str, ...] = ()) -> dict:
    return {"id": name, "keepwarm": {"state": state, "bytes": size, "aliases": list(aliases)}}


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        ([], None),
        ([model("a", "failed")], None),
        ([model("a", "warm"), model("keepwarm-demo-q8_0")], "keepwarm-demo-q8_0"),
        ([model("a", "warm"), model("b", aliases=("demo",))], "b"),
        ([model("keepwarm-demo-f16", size=9), model("keepwarm-demo-q8_0", size=5)], "keepwarm-demo-q8_0"),
        ([model("keepwarm-demo", "failed"), model("b")], "b"),
        ([model("small", size=1), model("warm", "warm", size=9)], "warm"),
        ([model("big", size=9), model("small", size=1)], "small"),
    ],
)
def test_the_demo_model_else_the_soonest_is_chosen(models: list, chosen: str | None):
    assert choose_model(models) == chosen


def test_the_curl_line_is_a_whole_shell_command():
    command = shlex.split(curl_line("http://127.0.0.1:8000", "it's a model"))
    assert command[:3] == ["curl", "-N", "http://127.0.0.1:8000/v1/chat/completions"]
    body = json.loads(command[command.index("-d") + 1])
    assert body["model"] == "it's a model"
    assert body["stream"] is True


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1024**3, "1.0 GiB"), (1024**5, "1024.0 TiB")]
)
def test_bytes_as_text(count: int, text: str):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 ms"), (0.25, "250 ms"), (90, "90 s"), (180, "3 min"), (7200, "2 h"), (400_000, "5 d")],
)
def test_durations_as_text(seconds: float, text: str):
    assert duration_text(seconds) == text


def test_a_models_text_cannot_steer_the_terminal():
    assert without_control("a\x1b[2Jb\rc\x9b31m\td\n") == "a[2Jbc31m\td\n"


def test_several_workers_have_names_and_logs_of_their_own():
    assert [worker.name for worker in worker_processes((None,), drain_s=10)] == ["worker"]
    assert [worker.name for worker in worker_processes((None,) * 3, drain_s=10)] == ["worker-1", "worker-2", "worker-3"]
    assert worker_processes((None,), drain_s=10)[0].stop_bound_s > 10


def test_a_worker_of_a_gpu_counts_gpus_as_nvml_does():
    first, second = worker_processes(("cuda:0", "cuda:1"), drain_s=10)
    assert [each.env["KEEPWARM_DEVICE"] for each in (first, second)] == ["cuda:0", "cuda:1"]
    assert first.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    (plain,) = worker_processes((None,), drain_s=10)
    assert plain.env.keys() == {"KEEPWARM_DRAIN_S"}


@pytest.mark.parametrize(
    ("workers", "told", "devices"),
    [
        (None, "cuda:0\ncuda:1\n", ("cuda:0", "cuda:1")),
        (None, "cuda\n", (None,)),  # one worker follows its settings
        (2, "cuda:0\ncuda:1\ncuda:2\n", (None, None)),  # whoever counts himself names the devices himself
        (0, None, ()),  # nobody is asked
    ],
)
def test_up_starts_a_worker_per_device_unless_it_is_told_how_many(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, told: str | None, devices: tuple[str | None, ...]
):
    def answer(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert told is not None
        assert argv[-1] == "--check"
        return subprocess.CompletedProcess(argv, 0, told, "")

    monkeypatch.setattr(subprocess, "run", answer)
    api = ApiSettings(port=free_port("127.0.0.1"))
    household = Household(store=StoreSettings(), api=api, up=UpSettings(workers=workers, flower_port=0))
    assert check_premises(household) == devices


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KEEPWARM_PORT", "70000"),
        ("KEEPWARM_FLOWER_PORT", "x"),
        ("KEEPWARM_FLOWER_PORT", "8000"),
        ("KEEPWARM_REDIS_URL", "http://x"),
        ("KEEPWARM_HOST", "0.0.0.0"),
    ],
)
def test_a_wrong_setting_of_up_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSetting, match=f"^{variable}:"):
        read_settings()


@contextmanager
def installed(before: signal.Handlers) -> Iterator[Signals]:
    """Signals of a process that began with these handlers."""
    ours = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for each in ours:
            signal.signal(each, before)
        signals = Signals()
        signals.install()
        yield signals
    finally:
        for each, handler in ours.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_for_an_end_and_the_second_for_a_sudden_one(number: signal.Signals):
    with installed(signal.SIG_DFL) as signals:
        signal.raise_signal(number)
        assert (signals.is_stop_asked(), signals.is_impatient()) == (True, False)
        signal.raise_signal(number)
        assert signals.is_impatient()


def test_a_closed_terminal_and_ctrl_c_stay_ignored_under_nohup_and_in_the_background_of_a_script():
    with installed(signal.SIG_IGN) as signals:
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(number)
        assert not signals.is_stop_asked()
        signal.raise_signal(signal.SIGTERM)
        assert signals.is_stop_asked()


def test_a_folder_called_like_our_packages_is_never_imported_from_where_the_user_stands():
    for argv in (API, CONTROLLER, store_process().argv, with_lifeline(API)):
        assert argv[1:3] == ("-P", "-m")


def test_flowers_password_is_not_on_its_command_line():
    flower = flower_process(host="127.0.0.1", port=5555, basic_auth="ann:secret")
    assert not any("secret" in word for word in flower.argv)
    assert flower.env == {"FLOWER_BASIC_AUTH": "ann:secret"}


def test_flower_without_a_password_stays_on_this_machine():
    open_api = ApiSettings(host="0.0.0.0", allow_open=True)
    with pytest.raises(InvalidSetting, match="KEEPWARM_FLOWER_BASIC_AUTH"):
        refuse_open_flower(UpSettings(), open_api)
    refuse_open_flower(UpSettings(flower_port=0), open_api)
    refuse_open_flower(UpSettings(flower_basic_auth="ann:secret"), open_api)
    refuse_open_flower(UpSettings(), ApiSettings())


def test_workers_that_share_a_machine_need_a_budget_each():
    with pytest.raises(InvalidSetting, match="2 workers share"):
        refuse_shared_budget(UpSettings(workers=2), {})
    refuse_shared_budget(UpSettings(workers=2), {"KEEPWARM_MEMORY_BUDGET": "1GiB"})
    refuse_shared_budget(UpSettings(workers=1), {})
