"""models.yaml: what the owner of a worker sets per model. Parsed and checked as a whole, or refused with what is right.

models:
  llama-3.2-1b:              # id: the file's name without .gguf, in lower case
    alias: [gpt-4o-mini]     # or `aliases`; one name or a list
    context_length: 8192     # tokens per sequence
    slots: 4                 # sequences at once
    kv_type: q8_0            # auto, f16, bf16, q8_0, q4_0; auto is f16 on a GPU; on a CPU bf16 keys and f16 values
    pin: true                # never evicted to make room
    ttl: 10m                 # unload after this long without a job: seconds, or 90s, 10m, 2h
    fallback: other-model    # id or alias; answers when this one can't, also if its file is broken; both generate text
    draft: llama-3.2-135m    # id of a small model of the same vocabulary that guesses ahead: same text, fewer steps
    replicas: 1              # keep at least this many warm
    max_replicas: 2
    device: cuda:1           # or `devices`; cpu, cuda, cuda:N or a list: only workers of these devices load it
    kind: generate           # or embed, rerank; the file tells
    pooling: mean            # or cls, last: how an embedding model makes one vector of its tokens; the file tells
    base: llama-3.2-1b       # the file is a LoRA adapter for this model: a model of its own in the base's runner
    scale: 0.8               # of the adapter; 1 by default. Else it may have an alias, a fallback and a cache only
    cache: {ttl: 1h, max_bytes: 256KiB}  # answers of requests with temperature 0 or a seed are kept and given again
    matryoshka: true         # clients may ask for fewer dimensions, because the model was trained for that
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tasks.errors import InvalidSetting
from tasks.fleet import CachePolicy, ModelKind
from tasks.settings import Bytes
from workers.model_kind import Pooling

MODELS_YAML = "models.yaml"  # in the folder of models
MAX_FILE_BYTES = 1024**2
MAX_CACHE_TTL_S = 30 * 24 * 3600
MAX_CACHED_BYTES = 16 * 1024**2  # a script of the store handles an answer as a whole
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")

KvType = Literal["auto", "f16", "bf16", "q8_0", "q4_0"]

_OF_ADAPTERS = frozenset({"aliases", "fallback", "base", "scale", "cache"})  # all else belongs to the runner
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _parse_seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([smhd]?)\s*", value)
    if match is None:
        raise ValueError("write it in seconds, or like 90s, 10m or 2h")
    return int(match[1]) * _SECONDS[match[2]]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a model's name has up to 128 letters, digits and . _ : / -, and begins with a letter or digit"
        )
    return name


def _check_device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ValueError("a device is cpu, cuda or cuda:NUMBER")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
DeviceName = Annotated[str, AfterValidator(_check_device)]


class CacheEntry(BaseModel):
    """`cache` of one model's entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ttl: Annotated[int, BeforeValidator(_parse_seconds)] = Field(ge=1, le=MAX_CACHE_TTL_S)
    max_bytes: Bytes = Field(default=256 * 1024, ge=1024, le=MAX_CACHED_BYTES)  # of one answer


class ModelOverrides(BaseModel):
    """One model's entry; what is not set follows the file and the worker's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    aliases: Annotated[list[Name], BeforeValidator(_as_list)] = Field(
        default=[], validation_alias=AliasChoices("aliases", "alias")
    )
    context_length: int | None = Field(default=None, ge=16, le=16_777_216)
    slots: int | None = Field(default=None, ge=1, le=256)  # llama.cpp's LLAMA_MAX_SEQ
    kv_type: KvType = "auto"
    pin: bool = False
    ttl: Annotated[int | None, BeforeValidator(_parse_seconds)] = Field(default=None, ge=1)
    fallback: Name | None = None
    draft: Name | None = None
    devices: Annotated[list[DeviceName], BeforeValidator(_as_list)] = Field(
        default=[], validation_alias=AliasChoices("devices", "device")
    )
    replicas: int = Field(default=0, ge=0, le=1000)
    max_replicas: int = Field(default=1, ge=1, le=1000)
    kind: Literal["generate", "embed", "rerank"] | None = None
    pooling: Pooling | None = None
    matryoshka: bool = False
    base: Name | None = None
    cache: CacheEntry | None = None
    scale: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        for one, many in (("alias", "aliases"), ("device", "devices")):
            if isinstance(values, dict) and one in values and many in values:
                raise ValueError(f"give either {one} or {many}, not both")
        return values

    @model_validator(mode="after")
    def _bounds_agree(self) -> ModelOverrides:
        if self.scale is not None and self.base is None:
            raise ValueError("scale is of a LoRA adapter, which needs a base")
        if self.base is not None and (foreign := sorted(self.model_fields_set - _OF_ADAPTERS)):
            raise ValueError(f"a LoRA adapter runs in its base's runner: give {', '.join(foreign)} to '{self.base}'")
        if self.replicas > self.max_replicas and "max_replicas" in self.model_fields_set:
            raise ValueError("replicas is larger than max_replicas")
        return self

    @property
    def model_kind(self) -> ModelKind | None:
        return None if self.kind is None else ModelKind(self.kind)

    @property
    def cache_policy(self) -> CachePolicy | None:
        return None if self.cache is None else CachePolicy(ttl_s=self.cache.ttl, max_bytes=self.cache.max_bytes)

    @property
    def replica_ceiling(self) -> int:
        return max(self.max_replicas, self.replicas)


def read_models_yaml(path: Path) -> dict[str, ModelOverrides]:
    """Entries by model id in lower case; {} when there is no such file. Raises InvalidSetting."""
    try:
        document = _load(path)
    except FileNotFoundError:
        return {}
    if document is None:
        return {}
    if not isinstance(document, dict) or set(document) != {"models"}:
        raise InvalidSetting(path.name, "it must have one top-level key `models` that maps model ids to their settings")
    entries = document["models"] or {}
    if not isinstance(entries, dict):
        raise InvalidSetting(path.name, "`models` must map model ids to their settings")
    return _by_id(path, entries)


def _load(path: Path) -> Any:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidSetting(path.name, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise InvalidSetting(path.name, f"it is no valid YAML: {problem[:300]}") from error


def _by_id(path: Path, entries: dict[Any, Any]) -> dict[str, ModelOverrides]:
    overrides: dict[str, ModelOverrides] = {}
    for key, entry in entries.items():
        model_id = str(key).lower()
        if model_id in overrides:
            raise InvalidSetting(path.name, f"the model '{model_id}' has two entries")
        overrides[model_id] = _parse_entry(path, model_id, entry)
    return overrides


def _parse_entry(path: Path, model_id: str, entry: object) -> ModelOverrides:
    try:
        return ModelOverrides.model_validate({} if entry is None else entry)
    except ValidationError as error:
        raise InvalidSetting(path.name, f"model '{model_id}': {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(
            CacheEntry.model_fields if len(first["loc"]) > 1 else [*ModelOverrides.model_fields, "alias", "device"]
        )
        return f"unknown key `{key}`; known are {known}"
    return f"{key}: {message} (got {first['input']!r})" if key else message
