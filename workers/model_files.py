"""The models in a worker's folder: one per *.gguf file (or set of split files), with what models.yaml says of it.

A broken file is reported with its reason and does not disturb the others. Only headers are read, and only of files
that changed since the previous scan.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tasks.errors import InvalidSetting
from tasks.fleet import CachePolicy, ModelKind
from workers.draft_files import DraftFile, add_drafts
from workers.estimate import ModelShape, parked_bytes
from workers.gguf_header import BrokenModelFile, GgufHeader, ReadHeader, read_header
from workers.model_kind import ENCODERS, kind_of, pooling_of
from workers.models_yaml import ModelOverrides, read_models_yaml

MODELS_YAML = "models.yaml"
DEFAULT_CONTEXT_LENGTH = 4096  # tokens; a model's trained context can be far larger than the memory for it
DEFAULT_INPUT_LENGTH = 2048  # of embedding models and rerankers, whose buffers grow with the square of it
MAX_LAYERS = 4096
MAX_FIGURE = 2**31  # embedding, heads, vocabulary: beyond this the header is nonsense

Named = TypeVar("Named", "ModelFile", "AdapterFile", "UnusableFile")

_ID = re.compile(r"[a-z0-9._-]+")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})", re.IGNORECASE)
_NO_LANGUAGE_MODEL = {
    "clip": "a multimodal projector",
    "adapter": "a LoRA adapter (models.yaml may name its `base`)",
    "imatrix": "an importance matrix",
}


def adapter_fingerprint(of_base: str, adapter: str) -> str:
    """Of what an adapter says over a base with this fingerprint, which depends on the adapters' files and scales."""
    return f"{of_base}/{adapter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A LoRA adapter: a model for clients, with a queue of its own, that the runner of its base serves."""

    id: str
    base: str
    path: Path
    file_bytes: int
    tensor_bytes: int
    identity: str  # changes when a runner has to load it anew: size, modification time and scale
    scale: float
    aliases: tuple[str, ...]
    fallback: str | None
    cache: CachePolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that this worker can serve, and how."""

    id: str
    path: Path  # the first file; llama.cpp finds the other parts itself
    file_bytes: int
    identity: str  # changes when a file does, also an adapter's: sizes and modification times
    shape: ModelShape
    trained_context_length: int
    description: str  # "llama 1.8M Q8_0"
    aliases: tuple[str, ...]
    context_length: int  # tokens per sequence
    slots: int
    kv_type: str
    is_pinned: bool
    ttl_s: int | None
    fallback: str | None
    devices: tuple[str, ...]
    replicas: int
    max_replicas: int
    kind: ModelKind = ModelKind.GENERATE
    pooling: str | None = None  # of an embedding model or reranker; None: as the file says
    is_matryoshka: bool = False
    has_fixed_context: bool = False  # models.yaml says how long, so it is not shortened to fit
    has_fixed_slots: bool = False
    architecture: str = "unknown"
    adapters: tuple[AdapterFile, ...] = ()  # served over the same weights, in the order of their ids
    draft: DraftFile | None = None  # a small model that guesses for this one
    draft_problem: str | None = None  # why there is none, though models.yaml names one
    reduced: str | None = None  # what was taken away to make it fit here (`workers.fitting`)
    full_size: tuple[int, int] | None = None  # context length and slots before that; None: it has them
    cache: CachePolicy | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the file's identity and of all that a runner is loaded with."""
        return hashlib.sha256(repr(self._loaded_as).encode()).hexdigest()[:32]

    @property
    def adapter_bytes(self) -> int:
        return sum(each.tensor_bytes for each in self.adapters)

    def parked_bytes(self, wished: int | None) -> int:
        """Main memory beside the KV cache for what lost its slot; see `workers.estimate`."""
        if self.kind is not ModelKind.GENERATE:
            return 0
        return parked_bytes(
            self.shape,
            context_length=self.context_length,
            slots=self.slots,
            kv_type=self.kv_type,
            wished=wished,
        )

    def loads_like(self, other: ModelFile) -> bool:
        """Whether a runner of the one is as good as a runner of the other."""
        return self._loaded_as == other._loaded_as

    @property
    def _loaded_as(self) -> tuple[object, ...]:
        return (self.identity, self.context_length, self.slots, self.kv_type, self.kind, self.pooling)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableFile:
    """A *.gguf file that can't be served, and why. Clients may ask for it all the same: its fallback answers them."""

    id: str
    path: Path
    file_bytes: int
    reason: str
    aliases: tuple[str, ...] = ()
    fallback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """One scan's result, in the order of ids."""

    models: tuple[ModelFile, ...] = ()  # each with its adapters
    unusable: tuple[UnusableFile, ...] = ()
    unmatched: tuple[str, ...] = ()  # ids in models.yaml that no file has: probably misspelt

    @property
    def warnings(self) -> tuple[str, ...]:
        """What models.yaml asks for in vain, in sentences. Unusable files say so in their offers."""
        without_draft = [each for each in self.models if each.draft_problem is not None]
        return (
            *(f"{MODELS_YAML} has an entry '{name}', and the folder no file of this name." for name in self.unmatched),
            *(f"'{each.id}' runs without its draft: {each.draft_problem}." for each in without_draft),
        )


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
            gone = models.pop(model_id)
            unusable[model_id] = UnusableFile(
                id=model_id,
                path=gone.path,
                file_bytes=gone.file_bytes,
                reason=f"{gone.path.name}: {reason}",
                aliases=gone.aliases,
                fallback=gone.fallback,
            )
        for adapter in sorted(adapters.values(), key=lambda each: each.id):
            if adapter.base in models:
                models[adapter.base] = _with_adapter(models[adapter.base], adapter)
            else:  # its draft speaks in other tokens
                unusable[adapter.id] = UnusableFile(
                    id=adapter.id,
                    path=adapter.path,
                    file_bytes=adapter.file_bytes,
                    reason=f"{adapter.path.name}: its base '{adapter.base}' can't be served",
                    aliases=adapter.aliases,
                    fallback=adapter.fallback,
                )
                del adapters[adapter.id]
        owners = _owners([*models.values(), *adapters.values()], unusable.values())
        _check_fallbacks(models, adapters, unusable, owners)
        return ModelFolder(
            models=tuple(_with_ids_of_fallbacks(models[key], owners) for key in sorted(models)),
            unusable=tuple(_with_own_names(unusable[key], owners) for key in sorted(unusable)),
            unmatched=tuple(sorted(overrides.keys() - models.keys() - adapters.keys() - unusable.keys())),
        )

    def _describe(
        self, model_id: str, files: _FileSet, wishes: ModelOverrides, used: dict[tuple[Path, str], GgufHeader]
    ) -> ModelFile:
        _check_files(model_id, files)
        headers = [self._header(path, used) for path in files.paths]
        shape = _shape(headers)
        kind = wishes.model_kind or kind_of(headers[0])
        trained = _figure(headers[0], "context_length", at_least=0)
        return ModelFile(
            id=model_id,
            path=files.paths[0],
            file_bytes=sum(path.stat().st_size for path in files.paths),
            identity=";".join(_identity(path) for path in files.paths),
            shape=shape,
            trained_context_length=trained,
            description=_description(headers),
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


def _shape(headers: Sequence[GgufHeader]) -> ModelShape:
    first = headers[0]
    kind = first.text("general.type") or ""
    for name in (first.architecture, kind):
        if name in _NO_LANGUAGE_MODEL:
            raise BrokenModelFile(f"it is {_NO_LANGUAGE_MODEL[name]}, not a language model")
    if not any(header.tensor_count for header in headers):
        raise BrokenModelFile("it has no tensors (a vocabulary only?)")
    layers = _figure(first, "block_count", at_least=1)
    if layers > MAX_LAYERS:
        raise BrokenModelFile(f"it claims {layers} layers")
    embedding = _figure(first, "embedding_length", at_least=1)
    heads = max(first.per_layer("attention.head_count", 0, layers))
    kv_heads = first.per_layer("attention.head_count_kv", heads, layers)
    head_length = embedding // heads if heads > 0 else 0
    if first.architecture in ENCODERS:
        kv_heads = (0,) * layers
    shape = ModelShape(
        weight_bytes=sum(header.tensor_bytes for header in headers),
        vocabulary_size=first.vocabulary_size,
        embedding_length=embedding,
        feed_forward_length=max(first.per_layer("feed_forward_length", 4 * embedding, layers)),
        heads=heads,
        kv_heads=kv_heads,
        key_length=first.model_number("attention.key_length", head_length),
        value_length=first.model_number("attention.value_length", head_length),
    )
    figures = (shape.vocabulary_size, shape.feed_forward_length, heads, shape.key_length, shape.value_length, *kv_heads)
    if not all(0 <= figure < MAX_FIGURE for figure in figures):
        raise BrokenModelFile("its metadata holds figures that no model has")
    return shape


def _figure(header: GgufHeader, name: str, *, at_least: int) -> int:
    value = header.model_number(name, 0)
    if not at_least <= value < MAX_FIGURE:
        raise BrokenModelFile(f"its metadata gives {header.architecture}.{name} as {value}")
    return value


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


def _owners(models: Iterable[ModelFile | AdapterFile], unusable: Iterable[UnusableFile]) -> dict[str, str]:
    """The id behind every name. Ids and aliases share one namespace, in any case; a broken file disturbs nobody's."""
    named, broken = list(models), list(unusable)
    owners: dict[str, str] = {model.id: model.id for model in named}
    for model in named:
        for alias in model.aliases:
            other = owners.setdefault(alias.lower(), model.id)
            if other != model.id:
                raise InvalidSetting(
                    MODELS_YAML, f"model '{model.id}': the alias '{alias}' already belongs to '{other}'; choose another"
                )
    for file in broken:
        owners.setdefault(file.id, file.id)
    for file in broken:
        for alias in file.aliases:
            owners.setdefault(alias.lower(), file.id)
    return owners


def _check_fallbacks(
    models: Mapping[str, ModelFile],
    adapters: Mapping[str, AdapterFile],
    unusable: Mapping[str, UnusableFile],
    owners: Mapping[str, str],
) -> None:
    """Only text may come from another model than was asked. A fallback may be a model that only other workers have; the
    controller looks at its kind again."""
    kinds = {model.id: model.kind for model in models.values()}
    kinds |= {adapter.id: model.kind for model in models.values() for adapter in model.adapters}
    named: list[ModelFile | AdapterFile | UnusableFile] = [*models.values(), *adapters.values(), *unusable.values()]
    for model in named:
        if model.fallback is None:
            continue
        target = _id_of(model.fallback, owners)
        if target == model.id:
            raise InvalidSetting(
                MODELS_YAML, f"model '{model.id}': fallback: it names the model itself; name another one, or none"
            )
        kind = kinds.get(model.id, ModelKind.GENERATE)
        if kind is not ModelKind.GENERATE:
            raise InvalidSetting(
                MODELS_YAML,
                f"model '{model.id}': fallback: only a model that generates text may have one, and this one is of kind "
                f"{kind}: what two such models say can't be compared; remove it, or give it more replicas",
            )
        if kinds.get(target, ModelKind.GENERATE) is not ModelKind.GENERATE:
            raise InvalidSetting(
                MODELS_YAML,
                f"model '{model.id}': fallback: '{target}' is of kind {kinds[target]} and can't answer "
                "in its place; name a model that generates text",
            )


def _id_of(name: str, owners: Mapping[str, str]) -> str:
    """Of a model named by id or alias, in any case; one that this folder has not may be another worker's."""
    return owners.get(name.lower(), name.lower())


def _with_id_of_fallback(model: Named, owners: Mapping[str, str]) -> Named:
    return model if model.fallback is None else replace(model, fallback=_id_of(model.fallback, owners))


def _with_ids_of_fallbacks(model: ModelFile, owners: Mapping[str, str]) -> ModelFile:
    adapters = tuple(_with_id_of_fallback(each, owners) for each in model.adapters)
    return replace(_with_id_of_fallback(model, owners), adapters=adapters)


def _with_own_names(file: UnusableFile, owners: Mapping[str, str]) -> UnusableFile:
    aliases = tuple(alias for alias in file.aliases if owners[alias.lower()] == file.id)
    return _with_id_of_fallback(replace(file, aliases=aliases), owners)


def _description(headers: Sequence[GgufHeader]) -> str:
    parameters = sum(header.parameters for header in headers)
    return f"{headers[0].architecture[:40]} {_short_count(parameters)} {headers[0].file_type}"


def _short_count(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)
