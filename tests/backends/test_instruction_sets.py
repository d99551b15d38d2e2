"""Exact decoding on processors with fewer instructions, which libraries emulate in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("torch")

#: What PyTorch and oneDNN are told to use, by environment variables that they read when they are loaded.
INSTRUCTION_SETS = {
    "none": ("default", "SSE41"),
    "AVX2": ("avx2", "AVX2"),
    "AVX-512": ("avx512", "AVX512_CORE"),
}
#: Kind of model, float type, and quantization.
CASES = [
    ("llama", "float32", None),
    ("llama", "bfloat16", None),
    ("llama", "float16", None),
    ("gemma3", "bfloat16", None),
    ("llama-4bit", "bfloat16", None),
    ("qwen2-8bit", "bfloat16", None),
    ("qwen2", "bfloat16", "int8"),
    ("qwen2", "float32", "int8"),
    ("gemma3", "bfloat16", "int4"),
]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_exact_text_is_that_of_the_full_head(name, tiny):
    capability, isa = INSTRUCTION_SETS[name]
    arguments = []
    for kind, dtype, quantize in CASES:
        arguments += [str(tiny(kind, dtype)[1]), dtype, quantize or "-"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.heads_agree", *arguments],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if found["capability"].lower() != capability:
        pytest.skip(f"this processor has no {name}")
    for case, result in zip(CASES, found["cases"], strict=True):
        assert (result["differ"], result["logits"]) == (0, 0), case
    assert sum(result["settled"] for result in found["cases"]) > 0
