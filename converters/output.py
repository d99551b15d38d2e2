"""Write a directory atomically: lock, temporary sibling, rename, and removal of leftovers of crashed runs."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from vt_core.errors import ModelError, shorten
from vt_core.files.model_dir import is_model_directory

if TYPE_CHECKING:
    from filelock import BaseFileLock

PARTIAL_SUFFIX = ".vt-partial"
REPLACED_SUFFIX = ".vt-replaced"
LOCK_SUFFIX = ".vt-lock"
#: What a conversion writes, of any format version.
_WRITTEN = (
    *(
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.lmdb",
        "vt.json",
    ),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json*", "*.jinja", "merges.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    "additional_chat_templates",
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def locked(out: Path, *, announce: bool) -> Iterator[None]:
    """Lock `out` and remove leftovers of crashed runs. The lock of a killed process is released.

    Waits for another process, and says so on stderr if asked.

    Raises:
        ModelError: nothing can be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_beside(out, LOCK_SUFFIX))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # In a directory without write permission, FileLock would wait forever.
        TemporaryFile(dir=out.parent).close()
        lock.acquire(timeout=0)
    except Timeout:
        if announce:
            print(f"Waiting for another process that is writing {out} …", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise ModelError(f"{out.parent} cannot be written to: {error.strerror}.") from error
    try:
        _clean_leftovers(out)
        yield
    finally:
        _release(lock)


def sweep(directory: Path) -> None:
    """Remove leftovers of crashed runs in `directory`, except those that a running process writes."""
    for partial in directory.glob(f".*{PARTIAL_SUFFIX}"):
        _if_unlocked(directory / partial.name[1 : -len(PARTIAL_SUFFIX)], _clean_leftovers)


def discard(out: Path) -> None:
    """Remove a model directory, except one that a running process writes or that holds other files.

    `sweep` removes what a crash leaves of it.
    """

    def remove(out: Path) -> None:
        if _foreign_file(out) is None:
            out.rename(_beside(out, PARTIAL_SUFFIX))
            _clean_leftovers(out)

    _if_unlocked(out, remove)


def _if_unlocked(out: Path, action: Callable[[Path], None]) -> None:
    from filelock import FileLock, Timeout

    lock = FileLock(_beside(out, LOCK_SUFFIX))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        action(out)
    finally:
        _release(lock)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; takes its place at the end, or vanishes on an error.

    Call it under `locked(out)`. A model directory that stands at `out` is replaced: see `refuse_existing`.

    Raises:
        ModelError: writing failed.
    """
    partial = _beside(out, PARTIAL_SUFFIX)
    try:
        partial.mkdir()
        yield partial
        _sync_tree(partial)
        _replace(partial, out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in DISK_FULL:
            raise ModelError(
                f"The disk is full: {out} was not written, and what had been written of it is removed. "
                f"Make room in {out.parent} and try again."
            ) from error
        raise ModelError(f"{out} was not written: {error}.") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(out: Path, *, force: bool) -> None:
    """Check that `out` is free or, with `force`, a model directory that may be replaced.

    Raises:
        ModelError: it is taken.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_model_directory(out):
        raise ModelError(
            f"{out} exists and is not a model directory of vt. Give the path of a new directory."
        )
    if not force:
        raise ModelError(f"{out} exists. Give another path, or --force to replace it.")
    if foreign := _foreign_file(out):
        raise ModelError(
            f"{out} would be deleted, and it holds {foreign}, which no conversion writes. Move that away, or "
            "give the path of a new directory."
        )


def _foreign_file(directory: Path) -> str | None:
    """Name of something in a model directory that no conversion wrote."""
    names = sorted(path.name for path in directory.iterdir())
    return next(
        (shorten(name) for name in names if not any(fnmatchcase(name, known) for known in _WRITTEN)), None
    )


def check_free_space(directory: Path, needed: int) -> None:
    """Check the disk of a directory.

    Raises:
        ModelError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ModelError(
            f"The conversion writes {needed / 1e9:.2f} GB, and {directory} has {free / 1e9:.2f} GB free. "
            "Make room, or choose another disk."
        )


def _release(lock: BaseFileLock) -> None:
    # Removed while held, so that lock files do not pile up. Waiting processes reopen the path.
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _clean_leftovers(out: Path) -> None:
    shutil.rmtree(_beside(out, PARTIAL_SUFFIX), ignore_errors=True)
    replaced = _beside(out, REPLACED_SUFFIX)
    if not replaced.exists():
        return
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        replaced.rename(out)


def _replace(partial: Path, out: Path) -> None:
    replaced = _beside(out, REPLACED_SUFFIX)
    if is_model_directory(out):
        out.rename(replaced)
    partial.rename(out)
    _sync(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(out: Path, suffix: str) -> Path:
    return out.parent / f".{out.name}{suffix}"
