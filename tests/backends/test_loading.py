"""What loading a model reads, and how."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's list of mappings")
@pytest.mark.parametrize("run", ["float32", "bfloat16"])
def test_weights_are_mapped_only_where_they_stay_as_they_are(tiny, run):
    from vt_torch.body import _weights

    directory = tiny("llama", "bfloat16")[1]
    weights = {name: tensor[...] for name, tensor in _weights(directory, getattr(torch, run)).items()}
    assert len(weights) > 20
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in lines
        if line[-1] == str(directory / "model.safetensors")
    ]
    inside = [any(a <= tensor.data_ptr() < b for a, b in mapped) for tensor in weights.values()]
    assert set(inside) == {run == "bfloat16"}
