"""Models whose layers and head are integers for PyTorch: arithmetic, loading, sizes and refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.cache import resolve
from tests.manifests import update_manifest
from tests.rounding import eight_bits, four_bits
from vt_core import load
from vt_core.errors import BackendError, ModelError, OptionError
from vt_core.files import integers as stored
from vt_core.files.dtypes import from_float32

torch = pytest.importorskip("torch")

from vt_torch import integers, quantized  # noqa: E402
from vt_torch.device import pick_dtype  # noqa: E402

WEIGHT = np.random.default_rng(0).standard_normal((48, 128)).astype(np.float32)
PROMPT = [5, 17, 300, 42, 42, 980, 7]
MODES = ("int8", "int4")


def bfloat16(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(from_float32(values, "bfloat16").view(np.int16)).view(torch.bfloat16)


def layer(weight: np.ndarray, mode: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A quantized layer as it runs, its bias all ones."""
    bias = torch.nn.Parameter(torch.ones(len(weight), dtype=dtype), requires_grad=False)
    if mode == "int8":
        scales = stored.row_scales(weight)
        numbers = torch.from_numpy(stored.quantize_rows(weight, scales))
        return quantized.Int8Linear(numbers, torch.from_numpy(scales).to(dtype), bias)
    scales, zeros = stored.group_scales(weight, 64)
    pairs = torch.from_numpy(stored.quantize_groups(weight, scales, zeros))
    return quantized.Int4Linear(pairs, *(torch.from_numpy(part).to(dtype) for part in (scales, zeros)), bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [1, 8, 9, 40])
@pytest.mark.parametrize("columns", [128, 40, 4])
def test_products_of_few_and_many_positions_agree(columns, positions, dtype, monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_BYTES", 2000)  # several pieces
    hidden = torch.randn(positions, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = WEIGHT[:, :columns]
    scales = stored.row_scales(weight)
    numbers = torch.from_numpy(stored.quantize_rows(weight, scales))
    out = quantized.product(hidden, numbers, torch.from_numpy(scales).to(dtype))
    expected = hidden.double() @ (numbers.double() * torch.from_numpy(scales).double()[:, None]).T
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), expected, rtol=0.01, atol=0.1 if dtype == torch.bfloat16 else 0.02
    )


@pytest.mark.parametrize("positions", [1, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_sums_of_integers_are_finite(dtype, positions):
    hidden, numbers = torch.full((positions, 128), 30.0).to(dtype), torch.full((16, 128), 127).to(torch.int8)
    out = quantized.product(hidden, numbers, torch.full((16,), 0.001).to(dtype))
    torch.testing.assert_close(out.float(), torch.full((positions, 16), 487.68), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("positions", [1, 8])
@pytest.mark.parametrize("start", [0, 2, 8, 16])
def test_numbers_may_stand_anywhere_in_memory(start, positions):
    numbers = torch.from_numpy(stored.quantize_rows(WEIGHT, stored.row_scales(WEIGHT)))
    memory = torch.zeros(numbers.numel() + 64, dtype=torch.int8)
    moved = memory[start : start + numbers.numel()].view(numbers.shape).copy_(numbers)
    hidden = torch.randn(positions, numbers.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    scales = torch.ones(len(numbers), dtype=torch.bfloat16)
    expected = quantized.product(hidden, numbers.clone(), scales)
    torch.testing.assert_close(quantized.product(hidden, moved, scales), expected, rtol=0.02, atol=1.0)
    layer = quantized.Int8Linear(moved, scales, None)
    assert torch.equal(layer(hidden), expected)


@pytest.mark.parametrize("mode", MODES)
def test_quantized_layers_are_smaller_and_close(mode):
    made = layer(WEIGHT, mode)
    expected = eight_bits(WEIGHT) if mode == "int8" else four_bits(WEIGHT, 64)
    np.testing.assert_allclose(made.weight.numpy(), expected, atol=1e-5)
    hidden = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(
            made(hidden), hidden @ torch.from_numpy(expected).T + made.bias, rtol=1e-4, atol=1e-4
        )
    numbers = dict(made.named_buffers())["numbers"]
    assert numbers.nbytes == WEIGHT.size * int(mode[3:]) // 8


@pytest.mark.parametrize("mode", MODES)
def test_transposed_input(mode):
    """Mamba passes one."""
    made = layer(WEIGHT, mode, torch.bfloat16)
    turned = torch.randn(1, 128, 3, generator=torch.Generator().manual_seed(2)).bfloat16().transpose(1, 2)
    with torch.no_grad():
        assert torch.equal(made(turned), made(turned.contiguous()))


def test_4_bit_layers_are_arranged_in_pieces(monkeypatch):
    weight = np.random.default_rng(1).standard_normal((208, 128)).astype(np.float32)
    whole = layer(weight, "int4")
    monkeypatch.setattr(quantized, "_PACKED_ROWS", 64)
    assert torch.equal(layer(weight, "int4").numbers, whole.numbers)


@pytest.mark.parametrize("columns", [4, 40, 48, 640, 3000])
def test_logits_of_integers_do_not_depend_on_what_else_is_multiplied(columns):
    rng = np.random.default_rng(columns)
    rows = torch.from_numpy(rng.integers(-127, 128, (300, columns), dtype=np.int8))
    scales = torch.from_numpy(rng.random(300, dtype=np.float32))
    hidden = torch.from_numpy(rng.standard_normal((21, columns)).astype(np.float32))
    hidden[3] *= 1e-30
    hidden[4] = 0
    logits = integers.product(integers.to_digits(hidden), rows, scales)
    for count in (1, 2, 5, 20):
        for start, end in ((0, 1), (7, 40), (299, 300)):
            part = integers.to_digits(hidden[21 - count :])
            alone = integers.product(part, rows[start:end], scales[start:end])
            assert torch.equal(alone, logits[21 - count :, start:end])
    for sums in (integers._states_first, integers._rows_first, integers._as_floats):
        if integers.is_exact(sums, columns):  # all give the same, also of rows that are padded in memory
            padded = torch.nn.functional.pad(rows, (0, 16))[:, :columns]
            digits = integers.to_digits(hidden).numbers
            expected = digits.double() @ rows.double().T
            assert torch.equal(sums(digits, padded).double(), expected)
    expected = hidden.double() @ (rows.double() * scales.double()[:, None]).T
    error = (logits - expected).abs().amax(dim=1) / expected.abs().amax(dim=1).clamp_min(1e-30)
    assert error.max() < 1e-3 and not logits[4].any()


def test_every_way_to_multiply_integers_that_is_used_is_exact():
    for columns in (16, 640, 5000):
        for few in (True, False):
            assert integers.is_exact(integers._fastest(columns, few), columns)
        rows, digits = integers.probe(20, columns, 6)
        expected = digits.double() @ rows.double().T
        assert torch.equal(integers._as_floats(digits, rows).double(), expected)


def test_sums_that_overflow_are_not_used():
    def saturating(digits, rows):
        return torch._int_mm(digits, rows.T).clamp(max=32767)

    assert not integers.is_exact(saturating, 64)


def test_states_that_are_not_finite_give_no_number():
    hidden = torch.ones(3, 16)
    hidden[1, 4], hidden[2, 5] = torch.nan, torch.inf
    logits = integers.product(integers.to_digits(hidden), torch.ones(4, 16, dtype=torch.int8), torch.ones(4))
    assert torch.isfinite(logits[0]).all() and torch.isnan(logits[1:]).all()


def test_int4_without_a_kernel_is_refused(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    quantized.check_kernels("int4", cpu, torch.float32)
    quantized.check_kernels("int8", torch.device("mps"), torch.float16)
    with pytest.raises(BackendError, match="on cpu and cuda, not on mps; use --quantize int8"):
        quantized.check_kernels("int4", torch.device("mps"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match=r"compute capability 8.0 or more; use --quantize int8"):
        quantized.check_kernels("int4", cuda, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    with pytest.raises(BackendError, match="leave --dtype out, or use --quantize int8"):
        quantized.check_kernels("int4", cuda, torch.float16)
    quantized.check_kernels("int4", cuda, torch.bfloat16)


def test_quantized_weights_run_in_bfloat16_by_default():
    cpu = torch.device("cpu")
    assert pick_dtype(None, "float32", cpu, "int8") == torch.bfloat16
    assert pick_dtype("float32", "bfloat16", cpu, "int4") == torch.float32
    assert pick_dtype(None, "float16", torch.device("cuda"), "int4") == torch.bfloat16
    assert pick_dtype(None, "float16", torch.device("cuda"), "int8") == torch.float16


@pytest.fixture(scope="module", params=MODES)
def made(request, tiny):
    """A mode, and a model directory in it."""
    return request.param, resolve(tiny("gemma3")[1], quantize=request.param, progress=False)


def test_quantized_model_has_no_float_layer(made):
    mode, directory = made
    model = load(directory, backend="torch", device="cpu")
    assert model.quantization == mode
    decoder = model.decoder
    layers = [type(part) for part in decoder._model.modules() if hasattr(part, "numbers")]
    assert len(layers) == 3 * 7
    assert (quantized.Int4Linear in layers) == (mode == "int4")
    assert not any(type(part) is torch.nn.Linear for part in decoder._model.modules())
    assert not decoder.can_follow and decoder.dtype == "bfloat16"
    decoder.head.set_static(range(100))
    (rows,) = decoder.head.pieces
    assert rows.weight.dtype == torch.int8 and decoder.head.nbytes == decoder.head._capacity * (48 + 4)


def test_8_bit_layers_are_not_copied(tiny):
    """Their memory is that of the mapped file."""
    directory = resolve(tiny("llama", "bfloat16")[1], quantize="int8", progress=False)
    model = load(directory, backend="torch", device="cpu")
    inside = {address for start, end in _mappings(directory) for address in (start, end)}
    for part in model.decoder._model.modules():
        if isinstance(part, quantized.Int8Linear):
            address = part.numbers.data_ptr()
            assert min(inside) <= address < max(inside)


def _mappings(directory) -> list[tuple[int, int]]:
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(directory / "model.safetensors")):
                start, _, end = line.split()[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def test_loading_with_quantize_uses_one_copy(tiny):
    source, directory = tiny("gemma3")
    copies = {resolve(source, quantize="int8", progress=False) for _ in range(2)}
    copy = resolve(directory, quantize="int8", progress=False)
    assert resolve(copy, quantize="int8") == copy and copies != {copy}
    ids = [
        load(path, backend="torch", device="cpu", quantize="int8").generate(PROMPT, max_tokens=8).token_ids
        for path in (*copies, directory, copy)
    ]
    assert ids[0] == ids[1] == ids[2]


def test_other_quantization_of_a_quantized_model_is_refused(made, tiny):
    mode, directory = made
    other = MODES[mode == "int8"]
    with pytest.raises(OptionError, match=rf"quantized already \({mode}\); leave --quantize out"):
        load(directory, backend="torch", quantize=other)
    packed = tiny("llama-4bit")[1]
    with pytest.raises(OptionError, match=r"quantized already \(4-bit affine\); leave --quantize out"):
        load(packed, backend="torch", quantize=mode)


def test_mlx_refuses_models_that_are_quantized_for_pytorch(made):
    pytest.importorskip("mlx_lm")
    mode, directory = made
    with pytest.raises(
        BackendError, match=rf"\({mode}\) for PyTorch; run it with vt-torch.*--quantize {mode[3:]}"
    ):
        load(directory, backend="mlx")


def test_mlx_and_unknown_modes_are_refused(tiny):
    directory = tiny("llama")[1]
    with pytest.raises(OptionError, match="unknown quantization 'int3': choose one of int8, int4"):
        load(directory, quantize="int3")
    pytest.importorskip("mlx_lm")
    with pytest.raises(BackendError, match="vt-mlx convert --quantize 4"):
        load(directory, backend="mlx", quantize="int4")


@pytest.fixture
def damaged(tmp_path, tiny):
    """``damaged(change)``: a copy of an int8 directory whose tensors ``change`` has changed."""

    def make(change):
        copy = shutil.copytree(
            resolve(tiny("llama")[1], quantize="int8", progress=False), tmp_path / "damaged"
        )
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        update_manifest(copy)
        return copy

    return make


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tensors: tensors.pop(f"{LAYER}.scales"),
            rf"{LAYER}.scales is missing and should be BF16 \[96\]",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.numbers": np.zeros((96, 47), np.int8)}),
            rf"{LAYER}.numbers is I8 \[96, 47\] and should be I8 \[96, 48\]; convert the model again",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.scales": np.zeros(96, np.float32)}),
            rf"{LAYER}.scales is F32 \[96\] and should be BF16",
        ),
    ],
    ids=["missing", "shape", "type"],
)
def test_damaged_layers_are_refused(damaged, change, sentence):
    with pytest.raises(ModelError, match=sentence):
        load(damaged(change), backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda values: values.update(integers="int3"),
            "integers .int3. is unknown, this vt reads int8 and int4",
        ),
        (lambda values: values.update(integers=None), "tables are .*head_scales"),
        (lambda values: values["tables"].pop("head_scales"), "tables are"),
        (
            lambda values: values["tables"]["head"].update(dtype="uint8"),
            "table .head. is .uint8. and should be int8",
        ),
        (
            lambda values: values["tables"]["head"].update(checksum="sha256:0"),
            "the checksum of table 'head' differs",
        ),
    ],
    ids=["mode", "floats", "scales", "type", "checksum"],
)
def test_damaged_tables_are_refused(made, change, sentence, tmp_path):
    copy = shutil.copytree(made[1], tmp_path / "damaged")
    values = json.loads((copy / "vt.json").read_text())
    change(values)
    (copy / "vt.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=sentence):
        load(copy, backend="torch", device="cpu")


def test_layers_that_are_not_linear_become_floats(tiny, monkeypatch):
    """Falcon has linear layers of its own."""
    directory = resolve(tiny("llama")[1], quantize="int4", progress=False)
    options = {"backend": "torch", "device": "cpu", "dtype": "float32", "head": "full"}
    expected = load(directory, **options)
    monkeypatch.setattr("vt_torch.prequantized.find_module", lambda model, path: (path, None))
    model = load(directory, **options)
    for name in ("mlp.up_proj", "self_attn.k_proj"):  # 4 bits, and 8
        quantized_layer, float_layer = (
            each.decoder._model.get_submodule(f"model.layers.0.{name}") for each in (expected, model)
        )
        assert type(float_layer) is torch.nn.Linear
        torch.testing.assert_close(float_layer.weight, quantized_layer.weight, rtol=1e-5, atol=1e-6)
    assert model.generate(PROMPT, max_tokens=8).token_ids == expected.generate(PROMPT, max_tokens=8).token_ids
