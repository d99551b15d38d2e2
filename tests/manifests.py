"""Model directories that a test changes on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vt_core.errors import ModelError
from vt_core.files.json_files import read_text
from vt_core.files.manifest import Manifest, describe_files


def update_manifest(directory: Path) -> None:
    """Write size and digest of every file as they are now into vt.json."""
    path = directory / "vt.json"
    manifest = Manifest.from_json(read_text(path, "manifest", ModelError), path=path)
    path.write_text(replace(manifest, files=describe_files(directory, {})).to_json())
