"""Scan a folder of models: one per *.gguf file (or set of split files), with what models.yaml says of it.

A broken file is reported with its reason and does not disturb the others. Only headers are read, and only of files
that changed since the previous scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.errors import InvalidSetting
from tasks.fleet import ModelKind
from workers.draft_files import add_drafts
from workers.gguf_header import BrokenModelFile, GgufHeader, ReadHeader, read_header
from workers.model_files import AdapterFile, ModelFile, ModelFolder, UnusableFile
from workers.model_kind import kind_of, pooling_of
from workers.model_names import Names
from workers.model_shape import description_of, figure_of, has_steady_weights, shape_of
from workers.models_yaml import MODELS_YAML, ModelOverrides, read_models_yaml

DEFAULT_CONTEXT_LENGTH = 4096  # tokens; a model's trained context can be far larger than the memory for it
DEFAULT_INPUT_LENGTH = 2048  # of embedding models and rerankers, whose buffers grow with the square of it

_ID = re.compile(r"[a-z0-9._-]+")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _FileSet:
    """The files of one model, found by name."""

    stem: str
    paths: tuple[Path, ...]
    missing: int = 0  # parts of a split model that are not there


class FolderScanner:
    """Scans one folder, remembering headers of unchanged files."""

    def __init__(self, folder: Path, *, default_slots: int, read: ReadHeader = read_header) -> None:
        self._folder = folder
        self._default_slots = default_slots
        self._read = read
        self._headers: dict[tuple[Path, str], GgufHeader] = {}

    def fingerprint(self) -> str:
        """Changes when a scan would find something else: names, sizes and times of the files."""
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix.lower() == ".gguf"]
            return "\n".join(
                f"{path.name} {_identity(path)}"
                for path in sorted([*paths, self._folder / MODELS_YAML])
                if path.exists()
            )
        except OSError as error:  # the folder, or a file between the list and the look at it, is gone
            return str(error)

    def scan(self) -> ModelFolder:
        """Raises InvalidSetting when the folder is missing or models.yaml is wrong."""
        if not self._folder.is_dir():
            raise InvalidSetting("KEEPWARM_MODELS_DIR", f"{self._folder} is no folder; put *.gguf files into one")
        overrides = read_models_yaml(self._folder / MODELS_YAML)
        models: dict[str, ModelFile] = {}
        unusable: dict[str, UnusableFile] = {}
        adapters: dict[str, AdapterFile] = {}
        used: dict[tuple[Path, str], GgufHeader] = {}
        # Adapters come last: they need the models that they are for.
        for files in sorted(_file_sets(self._folder), key=lambda each: _wishes(overrides, each).base is not None):
            model_id, wishes = files.stem.lower(), _wishes(overrides, files)
            try:
                if model_id in models or model_id in unusable or model_id in adapters:
                    wishes = ModelOverrides()  # they are of the other file
                    raise BrokenModelFile(f"another file has the same id '{model_id}'; rename one of them")
                if wishes.base is None:
                    models[model_id] = self._describe(model_id, files, wishes, used)
                else:
                    base = models.get(wishes.base.lower())
                    adapters[model_id] = self._adapter(model_id, files, wishes, base, used)
            except (BrokenModelFile, OSError) as error:
                taken = models.keys() | unusable.keys() | adapters.keys()
                entry = _unusable(_free_id(model_id, taken), files, error, wishes)
                unusable[entry.id] = entry
        self._headers = used
        wishes_for_drafts = {key: entry.draft for key, entry in overrides.items()}
        for model_id, reason in add_drafts(models, wishes_for_drafts, adapters.keys()).items():
            unusable[model_id] = _given_up(models.pop(model_id), reason)
        for adapter in sorted(adapters.values(), key=lambda each: each.id):
            if adapter.base in models:
                models[adapter.base] = _with_adapter(models[adapter.base], adapter)
            else:  # its draft speaks in other tokens
                reason = f"its base '{adapter.base}' can't be served"
                unusable[adapter.id] = _given_up(adapters.pop(adapter.id), reason)
        names = Names(models, adapters, unusable)
        return ModelFolder(
            models=tuple(names.settle(models[key]) for key in sorted(models)),
            unusable=tuple(names.settle_unusable(unusable[key]) for key in sorted(unusable)),
            unmatched=tuple(sorted(overrides.keys() - models.keys() - adapters.keys() - unusable.keys())),
        )

    def _describe(
        self, model_id: str, files: _FileSet, wishes: ModelOverrides, used: dict[tuple[Path, str], GgufHeader]
    ) -> ModelFile:
        _check_files(model_id, files)
        headers = [self._header(path, used) for path in files.paths]
        shape = shape_of(headers)
        kind = wishes.model_kind or kind_of(headers[0])
        trained = figure_of(headers[0], "context_length", at_least=0)
        return ModelFile(
            id=model_id,
            path=files.paths[0],
            file_bytes=sum(path.stat().st_size for path in files.paths),
            identity=";".join(_identity(path) for path in files.paths),
            shape=shape,
            trained_context_length=trained,
            description=description_of(headers),
            architecture=headers[0].architecture,
            aliases=tuple(wishes.aliases),
            context_length=_context_length(model_id, kind, trained, wishes.context_length),
            slots=wishes.slots or self._default_slots,
            kv_type=wishes.kv_type,
            is_pinned=wishes.pin,
            ttl_s=wishes.ttl,
            fallback=wishes.fallback,
            devices=tuple(wishes.devices),
            replicas=wishes.replicas,
            max_replicas=wishes.replica_ceiling,
            cache=wishes.cache_policy,
            kind=kind,
            has_steady_weights=has_steady_weights(headers),
            pooling=pooling_of(headers[0], kind, wishes.pooling),
            is_matryoshka=wishes.matryoshka,
            has_fixed_context=wishes.context_length is not None,
            has_fixed_slots=wishes.slots is not None,
        )

    def _adapter(
        self,
        model_id: str,
        files: _FileSet,
        wishes: ModelOverrides,
        base: ModelFile | None,
        used: dict[tuple[Path, str], GgufHeader],
    ) -> AdapterFile:
        _check_files(model_id, files)
        path = files.paths[0]
        header = self._header(path, used)
        if header.text("general.type") != "adapter" or header.text("adapter.type") != "lora":
            raise BrokenModelFile("models.yaml gives it a base, but it is no LoRA adapter")
        if base is None:
            raise BrokenModelFile(f"it is a LoRA adapter for '{wishes.base}', which is no usable model of this folder")
        if header.architecture != base.architecture:
            raise BrokenModelFile(
                f"it is a LoRA adapter for {header.architecture[:40]} models, and '{base.id}' is {base.architecture}"
            )
        scale = 1.0 if wishes.scale is None else wishes.scale
        return AdapterFile(
            id=model_id,
            base=base.id,
            path=path,
            file_bytes=path.stat().st_size,
            tensor_bytes=header.tensor_bytes,
            identity=f"{_identity(path)};{scale}",
            scale=scale,
            aliases=tuple(wishes.aliases),
            fallback=wishes.fallback,
            cache=wishes.cache_policy,
        )

    def _header(self, path: Path, used: dict[tuple[Path, str], GgufHeader]) -> GgufHeader:
        key = (path, _identity(path))
        used[key] = self._headers[key] if key in self._headers else self._read(path)
        return used[key]


def _with_adapter(base: ModelFile, adapter: AdapterFile) -> ModelFile:
    return replace(
        base,
        adapters=(*base.adapters, adapter),
        identity=f"{base.identity};{adapter.id}={adapter.identity}",
        shape=replace(base.shape, weight_bytes=base.shape.weight_bytes + adapter.tensor_bytes),
    )


def _wishes(overrides: Mapping[str, ModelOverrides], files: _FileSet) -> ModelOverrides:
    return overrides.get(files.stem.lower(), ModelOverrides())


def _check_files(model_id: str, files: _FileSet) -> None:
    if not _ID.fullmatch(model_id):
        raise BrokenModelFile("its name may only have letters, digits, '.', '_' and '-'; rename it")
    if files.missing:
        raise BrokenModelFile(f"{files.missing} of its split files are missing")


def _file_sets(folder: Path) -> Iterable[_FileSet]:
    """Files by model, in the order of their names; hidden files are left out."""
    splits: dict[str, dict[int, Path]] = {}
    expected: dict[str, int] = {}
    single: list[_FileSet] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".gguf" or path.name.startswith(".") or path.is_dir():
            continue
        match = _SPLIT.fullmatch(path.stem)
        if match is None:
            single.append(_FileSet(path.stem, (path,)))
            continue
        splits.setdefault(match["stem"], {})[int(match["part"])] = path
        expected[match["stem"]] = int(match["parts"])
    joined = [
        _FileSet(stem, tuple(parts[number] for number in sorted(parts)), missing=expected[stem] - len(parts))
        for stem, parts in splits.items()
    ]
    return sorted([*single, *joined], key=lambda files: files.paths[0])


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _free_id(model_id: str, taken: Iterable[str]) -> str:
    """An id to list a broken file under; ids of two files may not collide, nor hold characters unfit for a key."""
    safe = re.sub(r"[^a-z0-9._-]", "-", model_id)
    ids = set(taken)
    number = 1
    candidate = safe
    while candidate in ids:
        number += 1
        candidate = f"{safe}.{number}"
    return candidate


def _unusable(model_id: str, files: _FileSet, error: Exception, wishes: ModelOverrides) -> UnusableFile:
    size = 0
    for path in files.paths:
        try:
            size += path.stat().st_size
        except OSError:
            continue
    reason = f"it can't be read ({error.strerror})" if isinstance(error, OSError) else str(error)
    return UnusableFile(
        id=model_id,
        path=files.paths[0],
        file_bytes=size,
        reason=f"{files.paths[0].name}: {reason}",
        aliases=tuple(wishes.aliases),
        fallback=wishes.fallback,
    )


def _given_up(model: ModelFile | AdapterFile, reason: str) -> UnusableFile:
    return UnusableFile(
        id=model.id,
        path=model.path,
        file_bytes=model.file_bytes,
        reason=f"{model.path.name}: {reason}",
        aliases=model.aliases,
        fallback=model.fallback,
    )


def _context_length(model_id: str, kind: ModelKind, trained: int, wished: int | None) -> int:
    if wished is None:
        default = DEFAULT_CONTEXT_LENGTH if kind is ModelKind.GENERATE else DEFAULT_INPUT_LENGTH
        return min(trained, default) if trained else default
    if trained and wished > trained:
        raise InvalidSetting(
            MODELS_YAML,
            f"model '{model_id}': context_length: the model was trained for {trained} tokens; "
            f"use 16 to {trained} (got {wished})",
        )
    return wished
