from __future__ import annotations

from vt_core.measure.machine import command_text, machine, machine_text, versions


def test_command_keeps_only_names_of_outside_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    arguments = [
        "bench",
        "--model",
        "/models/some-vt",
        "--data",
        "../x/y.jsonl",
        "--compare",
        "tuned-300=/models/tuned",
        "--draft-file=../x/y.ngrams",
        "--out",
        str(tmp_path / "a/b"),
    ]
    expected = (
        "vt-torch bench --model some-vt --data y.jsonl --compare tuned-300=tuned --draft-file=y.ngrams "
        "--out a/b"
    )
    assert command_text("vt-torch", arguments) == expected
    assert command_text("vt-torch", ["--template", "Say {input}"]) == "vt-torch --template 'Say {input}'"
    lines = command_text("vt-torch", ["--template", "It's\n\\{input}"])
    assert lines == r"vt-torch --template $'It\'s\n\\{input}'"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libblas.so.3")
    settings = "OMP_NUM_THREADS=2 LD_PRELOAD=libblas.so.3"
    assert command_text("vt-torch", arguments) == f"{settings} {expected}"


def test_machine_and_versions_are_described():
    about = machine()
    assert about["cores"] >= 1 and about["memory_bytes"] > 1 << 28 and about["load"] >= 0
    assert str(about["processor"]) in machine_text(about)
    found = versions("torch")
    assert found["vt"].startswith("0.") and "numpy" in found and "mlx" not in found
