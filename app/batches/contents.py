"""Where the content of files lies: a folder, or any other place that fsspec reaches, shared by fronts and batchers.

    files/<file id>                                        content of a file
    uploads/<name>                                         content that is still coming in
    batches/<batch id>/<epoch>-<number>.jsonl              results of an open batch, see app/batches/results.py

Every file appears whole or not at all: it is written under `uploads` and renamed. Blocking: call it in a thread.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec

from tasks.errors import FileMissing, InvalidSetting

BLOCK_BYTES = 256 * 1024
_VARIABLE = "KEEPWARM_FILES_URL"


class Contents:
    def __init__(self, url: str | None, home: Path) -> None:
        """Raises InvalidSetting when fsspec can't make sense of the URL."""
        self._own_folder = home / "files" if not url else None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url or (home / "files").as_uri())
        except (ValueError, ImportError, OSError) as error:
            raise InvalidSetting(_VARIABLE, f"{error}") from None

    @contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """A file to write to; it appears under `path` at the end, and not at all after an exception."""
        if self._own_folder is not None:
            self._own_folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts lie here
        part = self._path(f"uploads/{secrets.token_hex(12)}")
        self._fs.makedirs(self._parent(part), exist_ok=True)
        try:
            with self._fs.open(part, "wb") as sink:
                yield sink
            self._fs.makedirs(self._parent(self._path(path)), exist_ok=True)
            self._fs.mv(part, self._path(path))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(part)
            raise

    @contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """Raises FileMissing."""
        try:
            source = self._fs.open(self._path(path), "rb")
        except FileNotFoundError:
            raise FileMissing(path.rpartition("/")[2]) from None
        with source:
            yield source

    def blocks(self, path: str) -> Iterator[bytes]:
        """The content piece by piece. Raises FileMissing."""
        with self.reading(path) as source:
            while block := source.read(BLOCK_BYTES):
                yield block

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, sorted; nothing when there is no such folder."""
        self._fs.invalidate_cache()
        try:
            return sorted(path.rpartition("/")[2] for path in self._fs.ls(self._path(folder), detail=False))
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        """A file, or a folder with all that is in it; nothing when there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(path), recursive=True)

    def is_older(self, path: str, age_s: float, now_s: float) -> bool:
        """Whether a file was written longer ago; False where the file system doesn't say, or it is gone."""
        with contextlib.suppress(FileNotFoundError, NotImplementedError):
            return bool(now_s - self._fs.modified(self._path(path)).timestamp() > age_s)
        return False

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @staticmethod
    def _parent(path: str) -> str:
        return path.rpartition("/")[0]


def content_path(file_id: str) -> str:
    return f"files/{file_id}"
