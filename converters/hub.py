"""Models of the Hugging Face hub: which commit an id means, and its files, only those that a conversion
reads.

The user's login, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count as they do everywhere else: all requests go
through huggingface_hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from converters.huggingface import (
    INDEX_NAME,
    SHARD_PATTERN,
    SMALL_NAMES,
    TEMPLATES_PATTERN,
    WEIGHTS_NAME,
    index_files,
    read_config,
)
from vt_core.errors import ModelError

TIMEOUT_SECONDS = 10.0
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(name: str) -> bool:
    """Whether a text has the form of a hub id: `owner/model`, or one word for the oldest models."""
    return (
        _ID.fullmatch(name) is not None
        and ".." not in name
        and "--" not in name
        and not name.endswith(".gguf")
    )


def find_commit(repo_id: str, revision: str | None) -> str:
    """The commit that a revision (branch, tag or commit; None: the main branch) of a model means now.

    Without a connection it is the commit that was last downloaded.

    Raises:
        ModelError: the model or the revision does not exist, needs a login, or cannot be asked for.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except (
        Exception
    ) as error:  # the client raises its own errors and those of whichever HTTP library it is built on
        commit = _downloaded_commit(repo_id, revision)
        if commit is None:
            raise ModelError(_sentence(repo_id, revision, error)) from error
    if commit is None:
        raise ModelError(f"The Hugging Face hub names no commit for {repo_id}.")
    return commit


def download(repo_id: str, commit: str) -> Path:
    """The directory of a model's files at a commit, downloaded where they are not in the hub's cache yet.

    Small files come first, so that a model that cannot be converted is refused before its weights are
    fetched.
    """
    small = [*SMALL_NAMES, TEMPLATES_PATTERN]
    path = _snapshot(repo_id, commit, small)
    if not (path / "config.json").is_file():
        raise ModelError(_no_config(repo_id, commit))
    read_config(path)
    weights = [WEIGHTS_NAME, SHARD_PATTERN]
    if (path / INDEX_NAME).is_file():
        weights = list(index_files(path / INDEX_NAME))
    return _snapshot(repo_id, commit, [*small, *weights])


def _no_config(repo_id: str, commit: str) -> str:
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo_id, revision=commit)
    except Exception:  # only the hint is lost
        names = []
    if files := sorted(name for name in names if name.endswith(".gguf")):
        return f"{repo_id} holds GGUF files and no config.json; download one and give its path: {files[0]}."
    return f"{repo_id} is not a model in the layout of transformers: it holds no config.json."


def _snapshot(repo_id: str, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=names))
    except Exception as error:
        raise ModelError(_sentence(repo_id, commit, error)) from error


def _downloaded_commit(repo_id: str, revision: str | None) -> str | None:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            repo_id, revision=revision, allow_patterns=["config.json"], local_files_only=True
        )
    except Exception:
        return None
    return Path(path).name


def _sentence(repo_id: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{repo_id} cannot be downloaded: {error.strerror} ({error.filename})."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id} is gated on the Hugging Face hub: accept its terms at {constants.ENDPOINT}/{repo_id} "
            "and log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hugging Face hub."
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return (
            f"{repo_id} is neither a file or directory here nor a model on the Hugging Face hub "
            "(a private one needs `hf auth login`)."
        )
    if constants.HF_HUB_OFFLINE:
        return f"{repo_id} is not in the local cache, and HF_HUB_OFFLINE forbids to download it."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{repo_id} is not here, and the Hugging Face hub could not be asked for it: {reason}"
