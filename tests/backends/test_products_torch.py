"""The kernels that multiply tiles on a CPU: each is right, the fastest is found, none changes the text."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vt_core import load  # noqa: E402
from vt_torch import products  # noqa: E402
from vt_torch.products import POSITIONS, Buffers, Kernel, at_least, candidates  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPACING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
EVERY = [
    pytest.param(positions, dtype, id=f"{positions}-{str(dtype).removeprefix('torch.')}")
    for positions in (*POSITIONS, 3, 24)
    for dtype in DTYPES
]


@pytest.mark.parametrize(("positions", "dtype"), EVERY)
@pytest.mark.parametrize("biased", [False, True])
def test_every_kernel_gives_the_product(positions, dtype, biased):
    made = torch.Generator().manual_seed(positions)
    rows = torch.randn(50, 64, generator=made).bfloat16()
    hidden = torch.randn(positions, 64, generator=made).to(dtype)
    bias = torch.randn(50, generator=made).to(dtype) if biased else None
    expected = hidden.double() @ rows.double().T + (0 if bias is None else bias.double())
    for multiply, kind in candidates(positions, dtype):
        logits = Kernel(multiply, kind, 1 << 20).logits(rows, hidden, bias, Buffers())
        assert (logits.shape, logits.dtype) == ((positions, 50), dtype)
        assert (logits.double() - expected).abs().max() <= 2 * SPACING[dtype] * expected.abs().max()


def test_rows_hold_no_more_digits_than_the_run():
    rows = torch.full((1, 64), 1 + 2.0**-10, dtype=torch.float16)
    hidden = torch.ones(1, 64, dtype=torch.bfloat16)
    kernel = Kernel(products.linear, torch.float32, 1 << 20)
    assert kernel.logits(rows, hidden, None, Buffers()).item() == 64  # bfloat16 rounds such a row to 1


def test_fastest_kernel_is_found(monkeypatch):
    def slow(rows, hidden, bias):
        time.sleep(0.005)
        return products.linear(rows, hidden, bias)

    tried = [slow, products.linear, slow]
    monkeypatch.setattr(products, "candidates", lambda positions, dtype: [(each, dtype) for each in tried])
    found = products._timed.__wrapped__(64, torch.bfloat16, torch.float32, 1)
    assert list(found) == list(POSITIONS)
    assert all(kernel.multiply is products.linear for kernel in found.values())


def test_onednn_is_on_again_after_a_product_without_it():
    assert torch.backends.mkldnn.enabled
    products.without_onednn(torch.ones(2, 4), torch.ones(1, 4), None)
    with pytest.raises(RuntimeError):
        products.without_onednn(torch.ones(2, 4), torch.ones(1, 5), None)
    assert torch.backends.mkldnn.enabled


def test_kernel_of_more_positions_serves_fewer():
    kernels = {count: Kernel(products.linear, torch.float32, count) for count in POSITIONS}
    expected = {1: 1, 2: 2, 3: 4, 8: 8, 9: 16, 32: 32, 100: 32}
    assert {count: at_least(kernels, count).tile_bytes for count in expected} == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tile_bytes", [None, 30_000])
def test_no_kernel_changes_the_text(dtype, tile_bytes, tiny, monkeypatch):
    options = {"backend": "torch", "device": "cpu", "dtype": dtype}
    directory = tiny("gemma3", "bfloat16")[1]
    prompt = [5, 17, 300, 42, 42, 980, 7]
    samplings = [{}, {"temperature": 0.8, "top_p": 0.95, "seed": 3}]
    full = load(directory, head="full", **options)
    expected = [full.generate(prompt, max_tokens=24, **sampling).token_ids for sampling in samplings]
    model = load(directory, tile_bytes=tile_bytes, **options)
    model.decoder.head.set_static(np.arange(0, 300, 2))
    kinds = {pair for positions in POSITIONS for pair in candidates(positions, getattr(torch, dtype))}
    for multiply, kind in kinds:
        kernel = Kernel(multiply, kind, 60_000)
        monkeypatch.setattr("vt_torch.verification.kernels_of", lambda *_, kernel=kernel: {32: kernel})
        found = [model.generate(prompt, max_tokens=24, **sampling) for sampling in samplings]
        assert [result.token_ids for result in found] == expected
        assert all(result.stats.verifications > 0 for result in found)


@pytest.mark.parametrize("name", products.KERNEL_CACHES)
@pytest.mark.parametrize("number", [None, "7"])
def test_few_compiled_kernels_are_kept_unless_the_user_sets_a_number(monkeypatch, name, number):
    for each in products.KERNEL_CACHES:
        monkeypatch.setenv(each, number or "")  # restored afterwards
        if number is None:
            monkeypatch.delenv(each)
    products.bound_kernels()
    assert os.environ[name] == (number or "128")
