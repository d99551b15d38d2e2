"""Quantizing float weights while a model is loaded: arithmetic, sizes and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rounding import eight_bits, four_bits
from vt_core import load
from vt_core.errors import BackendError, OptionError

torch = pytest.importorskip("torch")

from vt_torch import quantized as quantized  # noqa: E402
from vt_torch.device import pick_dtype  # noqa: E402

WEIGHT = torch.from_numpy(np.random.default_rng(0).standard_normal((48, 128)).astype(np.float32))


def layer() -> torch.nn.Linear:
    made = torch.nn.Linear(128, 48)
    with torch.no_grad():
        made.weight.copy_(WEIGHT)
    return made


def test_quantized_rows_do_not_depend_on_other_rows():
    numbers, scales = quantized.quantize_rows(WEIGHT)
    for start, end in ((0, 1), (3, 17), (47, 48)):
        some, own = quantized.quantize_rows(WEIGHT[start:end])
        assert torch.equal(some, numbers[start:end]) and torch.equal(own, scales[start:end])
    np.testing.assert_allclose((numbers * scales[:, None]).numpy(), eight_bits(WEIGHT.numpy()), atol=1e-6)


def test_zero_rows_stay_zero():
    numbers, scales = quantized.quantize_rows(torch.zeros(2, 8, dtype=torch.bfloat16))
    assert not numbers.any() and torch.isfinite(scales).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [1, 8, 9, 40])
@pytest.mark.parametrize("columns", [128, 40, 4])
def test_products_of_few_and_many_positions_agree(columns, positions, dtype, monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_BYTES", 2000)  # several pieces
    hidden = torch.randn(positions, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    numbers, scales = quantized.quantize_rows(WEIGHT[:, :columns].to(dtype))
    out = quantized.product(hidden, numbers.to(torch.int8), scales)
    expected = hidden.double() @ (numbers.double() * scales.double()[:, None]).T
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), expected, rtol=0.01, atol=0.1 if dtype == torch.bfloat16 else 0.02
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_are_smaller_and_close(bits):
    made = quantized._quantized(layer(), bits)
    expected = eight_bits(WEIGHT.numpy()) if bits == 8 else four_bits(WEIGHT.numpy(), 64)
    np.testing.assert_allclose(made.weight.numpy(), expected, atol=1e-5)
    hidden = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(
            made(hidden), hidden @ torch.from_numpy(expected).T + made.bias, rtol=1e-4, atol=1e-4
        )
    numbers = dict(made.named_buffers())["numbers"]
    assert numbers.nbytes == WEIGHT.numel() * bits // 8


@pytest.mark.parametrize("bits", [8, 4])
def test_transposed_input(bits):
    """Mamba passes one."""
    made = quantized._quantized(layer().bfloat16(), bits)
    turned = torch.randn(1, 128, 3, generator=torch.Generator().manual_seed(2)).bfloat16().transpose(1, 2)
    with torch.no_grad():
        assert torch.equal(made(turned), made(turned.contiguous()))


@pytest.mark.parametrize("shape", [(48, 16), (64, 24)], ids=["no whole groups", "rows not by the sixteen"])
def test_layers_without_a_4_bit_kernel_get_8_bits(shape):
    assert type(quantized._quantized(torch.nn.Linear(*shape), 4)) is quantized.Int8Linear


def test_int4_without_a_kernel_is_refused(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert quantized.pick_bits("int4", cpu, torch.float32) == 4
    assert quantized.pick_bits("int8", torch.device("mps"), torch.float16) == 8
    with pytest.raises(BackendError, match="on cpu and cuda, not on mps; use --quantize int8"):
        quantized.pick_bits("int4", torch.device("mps"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match=r"compute capability 8.0 or more; use --quantize int8"):
        quantized.pick_bits("int4", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    with pytest.raises(BackendError, match="leave --dtype out, or use --quantize int8"):
        quantized.pick_bits("int4", cuda, torch.float16)
    assert quantized.pick_bits("int4", cuda, torch.bfloat16) == 4


def test_quantized_weights_run_in_bfloat16_by_default():
    cpu = torch.device("cpu")
    assert pick_dtype(None, "float32", cpu, "int8") == torch.bfloat16
    assert pick_dtype("float32", "bfloat16", cpu, "int4") == torch.float32
    assert pick_dtype(None, "float16", torch.device("cuda"), "int4") == torch.bfloat16
    assert pick_dtype(None, "float16", torch.device("cuda"), "int8") == torch.float16


def test_quantized_model_has_no_float_layer_and_similar_logits(tiny):
    directory = tiny("gemma3")[1]
    for mode in ("int8", "int4"):
        model = load(directory, backend="torch", device="cpu", quantize=mode)
        assert model.quantization == mode
        decoder = model.decoder
        layers = [type(part) for part in decoder._model.modules() if hasattr(part, "numbers")]
        assert len(layers) == 3 * 7
        assert (quantized.Int4Linear in layers) == (mode == "int4")
        assert not any(type(part) is torch.nn.Linear for part in decoder._model.modules())
        assert not decoder.can_follow and decoder.dtype == "bfloat16"
        decoder.head.set_static(range(100))
        (rows,) = decoder.head.pieces
        assert rows.weight.dtype == torch.int8 and decoder.head.nbytes == decoder.head._capacity * (48 + 2)


def test_mlx_and_unknown_modes_are_refused(tiny):
    directory = tiny("llama")[1]
    with pytest.raises(OptionError, match="unknown quantization 'int3': choose one of int8, int4"):
        load(directory, quantize="int3")
    pytest.importorskip("mlx_lm")
    with pytest.raises(BackendError, match="vt-mlx convert --quantize 4"):
        load(directory, backend="mlx", quantize="int4")
