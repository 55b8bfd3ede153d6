"""The models folder: ids, broken files, split files, models.yaml."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.errors import InvalidSetting
from tasks.fleet import CachePolicy
from tests.support.gguf_bytes import LLAMA, gguf_bytes
from workers.gguf_header import GgufHeader, read_header
from workers.model_files import ModelFile, ModelFolder
from workers.model_folder import FolderScanner
from workers.offers import offer_of_unusable

F32, Q8_0, Q6_K = 0, 8, 14  # as ggml numbers types


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Tiny-1.gguf").write_bytes(gguf_bytes())
    return tmp_path


def scan(folder: Path) -> ModelFolder:
    return FolderScanner(folder, default_slots=8).scan()


def only_model(folder: Path, yaml: str = "") -> ModelFile:
    (folder / "models.yaml").write_text(yaml)
    return scan(folder).models[0]


def test_file_becomes_a_model_with_defaults(folder: Path) -> None:
    model = only_model(folder)
    assert (model.id, model.path.name) == ("tiny-1", "Tiny-1.gguf")
    assert (model.context_length, model.slots, model.kv_type) == (2048, 8, "auto")
    assert model.description == "llama 192 F32"
    assert (model.shape.heads, model.shape.kv_heads, model.shape.key_length) == (4, (2, 2), 16)
    assert model.shape.weight_bytes == 768
    assert not model.is_pinned


@pytest.mark.parametrize(
    ("tensors", "is_steady"),
    [
        ([("norm", (64,), F32), ("up", (64, 4), Q8_0)], True),
        ([("norm", (64,), F32), ("up", (64, 4), Q8_0), ("router", (64, 2), F32)], False),
        ([("up", (256, 4), Q8_0), ("output", (256, 4), Q6_K)], False),
    ],
)
def test_weights_are_steady_when_the_types_of_all_matrices_are(folder: Path, tensors, is_steady: bool) -> None:
    (folder / "Tiny-1.gguf").write_bytes(gguf_bytes(LLAMA, tensors))
    assert only_model(folder).has_steady_weights == is_steady


def test_long_trained_context_is_not_taken_by_default(folder: Path) -> None:
    (folder / "Tiny-1.gguf").write_bytes(gguf_bytes({**LLAMA, "llama.context_length": 131072}))
    assert only_model(folder).context_length == 4096


def test_overrides_are_applied(folder: Path) -> None:
    model = only_model(
        folder,
        "models:\n  Tiny-1:\n    alias: [gpt-4o, GPT-4]\n    context_length: 1024\n    slots: 2\n"
        "    kv_type: q8_0\n    pin: true\n    ttl: 10m\n    fallback: other\n    replicas: 2\n",
    )
    assert model.aliases == ("gpt-4o", "GPT-4")
    assert (model.context_length, model.slots, model.kv_type, model.is_pinned) == (1024, 2, "q8_0", True)
    assert (model.ttl_s, model.fallback, model.replicas, model.max_replicas) == (600, "other", 2, 2)


def test_a_cache_has_a_time_to_live_and_a_bound_per_answer(folder: Path) -> None:
    assert only_model(folder).cache is None
    assert only_model(folder, "models: {tiny-1: {cache: {ttl: 1h}}}").cache == CachePolicy(
        ttl_s=3600, max_bytes=256 * 1024
    )


def test_the_fingerprint_follows_the_file_and_what_it_is_loaded_with(folder: Path) -> None:
    before = only_model(folder)
    path = folder / "Tiny-1.gguf"
    longer = only_model(folder, "models: {tiny-1: {context_length: 32}}")
    renamed = only_model(folder, "models: {tiny-1: {alias: gpt-4o}}")
    os.utime(path, (1, 1))
    touched = only_model(folder)
    assert before.fingerprint == renamed.fingerprint
    assert len({each.fingerprint for each in (before, longer, touched)}) == 3


def test_single_alias_may_be_a_plain_name(folder: Path) -> None:
    assert only_model(folder, "models: {tiny-1: {alias: gpt-4o, ttl: 90}}").aliases == ("gpt-4o",)


@pytest.mark.parametrize(("yaml", "devices"), [("cuda:1", ("cuda:1",)), ("[cpu, cuda]", ("cpu", "cuda"))])
def test_devices_may_be_one_or_several(folder: Path, yaml: str, devices: tuple[str, ...]) -> None:
    assert only_model(folder, f"models: {{tiny-1: {{device: {yaml}}}}}").devices == devices


@pytest.mark.parametrize("yaml", ["", "models:\n", "models: {tiny-1: }\n"])
def test_empty_overrides_change_nothing(folder: Path, yaml: str) -> None:
    assert only_model(folder, yaml).slots == 8


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("models: {tiny-1: {slot: 2}}", "unknown key `slot`; known are aliases, context_length, slots"),
        ("models: {tiny-1: {slots: 0}}", "slots: Input should be greater than or equal to 1"),
        ("models: {tiny-1: {slots: yes}}", "slots: Input should be a valid integer"),
        (
            "models: {tiny-1: {kv_type: q5}}",
            "kv_type: Input should be 'auto', 'f16', 'bf16', 'q8_0'",
        ),
        ("models: {tiny-1: {ttl: soon}}", "ttl: write it in seconds, or like 90s, 10m or 2h"),
        ("models: {tiny-1: {cache: {ttl: 1h, size: 1}}}", "unknown key `cache.size`; known are ttl, max_bytes"),
        ("models: {tiny-1: {cache: {max_bytes: 1MiB}}}", "cache.ttl: Field required"),
        ("models: {tiny-1: {alias: a, aliases: [b]}}", "either alias or aliases"),
        ("models: {tiny-1: {device: gpu}}", "a device is cpu, cuda or cuda:NUMBER"),
        ("models: {tiny-1: {alias: 'a b'}}", "alias.0: a model's name has .*got 'a b'"),
        ("models: {tiny-1: {replicas: 3, max_replicas: 2}}", "larger than max_replicas"),
        ("models: {tiny-1: {context_length: 4096}}", "trained for 2048 tokens; use 16 to 2048"),
        ("models: {tiny-1: 3}", "tiny-1"),
        ("models: {tiny-1: {}, Tiny-1: {}}", "two entries"),
        ("tiny-1: {}", "top-level key `models`"),
        ("models: [a]", "must map model ids"),
        ("models: {tiny-1: [", "no valid YAML"),
        ("!!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_wrong_models_yaml_names_the_file_and_what_is_right(folder: Path, yaml: str, problem: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"^models\.yaml: .*{problem}"):
        only_model(folder, yaml)


def test_error_names_the_model(folder: Path) -> None:
    with pytest.raises(InvalidSetting, match="model 'tiny-1': slots"):
        only_model(folder, "models: {tiny-1: {slots: many}}")


def test_alias_of_another_model_is_refused(folder: Path) -> None:
    (folder / "other.gguf").write_bytes(gguf_bytes())
    with pytest.raises(InvalidSetting, match="the alias 'OTHER' already belongs to 'other'"):
        only_model(folder, "models: {tiny-1: {alias: OTHER}}")


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        (
            "tiny-1: {kind: embed, fallback: other}",
            "model 'tiny-1': fallback: only a model that generates text .* embed",
        ),
        (
            "tiny-1: {fallback: other}, other: {kind: rerank}",
            "'other' is of kind rerank .* name a model that generates",
        ),
        (
            "tiny-1: {fallback: VECTORS}, other: {kind: embed, alias: vectors}",
            "'other' is of kind embed",
        ),
        ("tiny-1: {fallback: TINY-1}", "it names the model itself"),
    ],
)
def test_fallback_from_or_to_a_model_that_makes_no_text_is_refused(folder: Path, yaml: str, problem: str) -> None:
    (folder / "other.gguf").write_bytes(gguf_bytes())
    with pytest.raises(InvalidSetting, match=problem):
        only_model(folder, f"models: {{{yaml}}}")


@pytest.mark.parametrize("name", ["other", "OTHER", "gpt-4o-mini", "GPT-4o-mini"])
def test_fallback_may_be_named_as_clients_name_models(folder: Path, name: str) -> None:
    (folder / "other.gguf").write_bytes(gguf_bytes())
    yaml = f"models: {{tiny-1: {{fallback: {name}}}, other: {{alias: GPT-4o-mini}}}}"
    (folder / "models.yaml").write_text(yaml)
    assert [model.fallback for model in scan(folder).models] == [None, "other"]


def test_fallback_that_another_worker_may_have_is_kept(folder: Path) -> None:
    assert only_model(folder, "models: {tiny-1: {fallback: Elsewhere}}").fallback == "elsewhere"


def test_broken_file_keeps_its_names_and_its_fallback(folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"GGML....")
    (folder / "models.yaml").write_text("models: {broken: {fallback: TINY-1, aliases: [gpt-4o, gpt-4o-mini]}}")
    (file,) = scan(folder).unusable
    offer = offer_of_unusable(file)
    assert (offer.fallback, offer.aliases) == ("tiny-1", ("gpt-4o", "gpt-4o-mini"))
    assert offer.failure is not None


def test_broken_file_takes_no_name_from_another_model(folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"GGML....")
    (folder / "models.yaml").write_text("models: {broken: {alias: [Tiny-1, small, mine]}, tiny-1: {alias: Small}}")
    found = scan(folder)
    assert (found.models[0].aliases, found.unusable[0].aliases) == (("Small",), ("mine",))


def test_misspelt_model_in_models_yaml_is_reported(folder: Path) -> None:
    (folder / "models.yaml").write_text("models: {tini-1: {slots: 2}}")
    found = scan(folder)
    assert found.unmatched == ("tini-1",)
    assert found.warnings == ("models.yaml has an entry 'tini-1', and the folder no file of this name.",)


def test_missing_draft_is_among_the_warnings(folder: Path) -> None:
    (folder / "models.yaml").write_text("models: {tiny-1: {draft: gone}}")
    assert scan(folder).warnings == ("'tiny-1' runs without its draft: the folder has no usable model 'gone'.",)


def test_broken_file_is_listed_and_the_others_go_on(folder: Path) -> None:
    (folder / "broken.gguf").write_bytes(b"GGML....")
    result = scan(folder)
    assert [model.id for model in result.models] == ["tiny-1"]
    assert [(file.id, file.reason) for file in result.unusable] == [
        ("broken", "broken.gguf: it does not begin with the magic bytes GGUF")
    ]


def test_second_file_with_the_same_id_is_reported_under_another_one(folder: Path) -> None:
    (folder / "tiny-1.gguf").write_bytes(gguf_bytes())
    result = scan(folder)
    assert [model.path.name for model in result.models] == ["Tiny-1.gguf"]
    assert [file.id for file in result.unusable] == ["tiny-1.2"]
    assert "the same id 'tiny-1'" in result.unusable[0].reason


def test_name_with_other_characters_is_refused_under_a_safe_id(folder: Path) -> None:
    (folder / "my model (2).gguf").write_bytes(gguf_bytes())
    unusable = scan(folder).unusable[0]
    assert unusable.id == "my-model--2-"
    assert "rename it" in unusable.reason


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({**LLAMA, "general.architecture": "clip"}, "a multimodal projector"),
        ({**LLAMA, "general.type": "adapter"}, "a LoRA adapter"),
        ({**LLAMA, "llama.block_count": 0}, "llama.block_count as 0"),
        ({**LLAMA, "llama.block_count": 2**31 - 1}, "claims 2147483647 layers"),
        ({**LLAMA, "llama.attention.head_count": 2**32 - 1}, "figures that no model has"),
        ({"general.name": "empty"}, "unknown.block_count"),
    ],
)
def test_file_that_is_no_language_model_is_refused(folder: Path, metadata: dict[str, object], reason: str) -> None:
    (folder / "Tiny-1.gguf").write_bytes(gguf_bytes(metadata))
    assert reason in scan(folder).unusable[0].reason


def test_vocabulary_without_tensors_is_refused(folder: Path) -> None:
    (folder / "Tiny-1.gguf").write_bytes(gguf_bytes(tensors=()))
    assert "no tensors" in scan(folder).unusable[0].reason


def test_split_files_are_one_model(folder: Path) -> None:
    for part in (1, 2):
        (folder / f"Big-0000{part}-of-00002.gguf").write_bytes(gguf_bytes())
    big = next(model for model in scan(folder).models if model.id == "big")
    assert big.path.name == "Big-00001-of-00002.gguf"
    assert big.shape.weight_bytes == 2 * 768


def test_missing_part_of_a_split_model_is_reported(folder: Path) -> None:
    (folder / "big-00002-of-00003.gguf").write_bytes(gguf_bytes())
    assert "2 of its split files are missing" in scan(folder).unusable[0].reason


def test_hidden_and_other_files_are_left_out(folder: Path) -> None:
    (folder / ".tmp.gguf").write_bytes(b"")
    (folder / "readme.txt").write_text("")
    (folder / "dir.gguf").mkdir()
    assert scan(folder).unusable == ()


def test_unchanged_file_is_read_once(folder: Path) -> None:
    read: list[Path] = []

    def counting(path: Path) -> GgufHeader:
        read.append(path)
        return read_header(path)

    scanner = FolderScanner(folder, default_slots=8, read=counting)
    first, second = scanner.scan(), scanner.scan()
    assert first == second
    assert len(read) == 1
    (folder / "Tiny-1.gguf").write_bytes(gguf_bytes({**LLAMA, "general.name": "another name"}))
    assert scanner.scan().models[0].identity != first.models[0].identity
    assert len(read) == 2


def test_missing_folder_is_an_invalid_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="KEEPWARM_MODELS_DIR"):
        scan(tmp_path / "nowhere")
