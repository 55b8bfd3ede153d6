"""Settings of a worker, read from `KEEPWARM_*` variables; see `tasks.settings` for those that every process shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.settings import ENV_PREFIX, Bytes
from workers.cores import usable_cores
from workers.engine.fake_behaviour import FakeBehaviour

MAX_GPUS = 16  # llama.cpp's GGML_CUDA_MAX_DEVICES
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?)$"


class WorkerSettings(BaseSettings):
    """What a worker serves, and with what. Seconds and bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    models_dir: Path = Path("models")  # *.gguf files and models.yaml
    memory_budget: Bytes | None = Field(default=None, gt=0)  # None: 80 % of what the device has free at start
    parked_memory: Bytes | None = Field(default=None, ge=0)  # per model; None: a quarter of its KV cache, up to 256 MiB
    slots: int = Field(default=8, ge=1, le=256)  # sequences at once per model; 256 is llama.cpp's LLAMA_MAX_SEQ
    threads: int = Field(default_factory=usable_cores, ge=1, le=1024)  # per runner
    device: str = Field(default="auto", pattern=DEVICE_PATTERN)  # whose memory the budget is about
    gpu_layers: int = Field(default=0, ge=-1)  # -1: all, which `device=cuda…` implies
    main_gpu: int = Field(default=0, ge=0)  # `device=cuda:N` implies N
    split_mode: Literal["none", "layer", "row"] = "none"  # one model over several GPUs: by whole layers, or by rows
    # Shares of the GPUs in their order, comma-separated: `3,1` is three quarters and one; all alike when not given.
    tensor_split: Annotated[tuple[float, ...], NoDecode] = ()
    engine: Literal["llama_cpp", "fake"] = "llama_cpp"
    fake: FakeBehaviour = FakeBehaviour()  # pace and mishaps of `engine=fake`, as JSON: {"step_ms": 20}
    # Tokens of fast models go out together, at most so often: 25 ms are 40 times a second, faster than anybody reads.
    frame_ms: int = Field(default=25, ge=0, le=1000)
    stall_s: float = Field(default=120.0, gt=0)  # one step of a large model on a slow CPU takes tens of seconds
    load_stall_s: float = Field(default=60.0, gt=0)  # without progress; plus the time to read the file slowly
    drain_s: float = Field(default=20.0, ge=0)  # at shutdown: work may end for this long, then it is parked
    evict_drain_s: float = Field(default=2.0, ge=0)  # the same for an evicted model

    @field_validator("models_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().resolve()

    @field_validator("tensor_split", mode="before")
    @classmethod
    def _shares(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(share) for share in value.split(",") if share.strip())
        except ValueError:
            raise ValueError("write the shares of the GPUs as numbers with commas, like 3,1") from None

    @field_validator("tensor_split")
    @classmethod
    def _shares_make_sense(cls, shares: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not shares:
            return shares
        if len(shares) > MAX_GPUS or not all(0 <= share < float("inf") for share in shares) or not any(shares):
            raise ValueError(f"at most {MAX_GPUS} shares, none below 0 and one above it")
        if info.data.get("split_mode") == "none":
            raise ValueError("shares need KEEPWARM_SPLIT_MODE=layer or row")
        return shares

    @model_validator(mode="after")
    def _follow_device(self) -> WorkerSettings:
        """A ledger for a GPU makes sense only when the models go there."""
        if not self.device.startswith("cuda"):
            return self
        if "gpu_layers" not in self.model_fields_set:
            self.gpu_layers = -1
        _, _, number = self.device.partition(":")
        if number:
            self.main_gpu = int(number)
        return self
