"""Every architecture that vt claims to run, small and random, against the stock framework on its files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from converters import convert
from tests import stock
from tests.changes import write_changed
from tests.conftest import backend_params
from tests.families import FAMILIES
from tests.particular import PARTICULAR
from tests.tiny import ARCHITECTURES, KINDS, PADDING_ROWS, QUANTIZED, stock_source, write_model
from vt_core import load
from vt_core.decode.results import Generation
from vt_core.decode.sampling import Sampler, SamplerSettings
from vt_core.errors import ModelError, OptionError
from vt_core.model import Model
from vt_core.vocab.heads import HEADS

RNG = np.random.default_rng(0)
# The first prompt is longer than the windows of 16; the second text becomes longer.
PROMPTS = [RNG.integers(3, 900, 40).tolist(), [5, 17, 300, 42]]
TOKENS = [8, 16]
SAMPLED = 10
EOS = (0, 2)
STATIC = range(0, 600, 2)
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 7}
TILE_BYTES = 100_000  # several tiles

#: A feature belongs to a model and its input, not to the framework that runs it: one is enough to check it.
FEATURE_BACKEND = "torch" if importlib.util.find_spec("torch") else "mlx"


def _runs(backend: str, kind: str) -> bool:
    return kind not in FAMILIES or backend in FAMILIES[kind].backends


pytestmark = pytest.mark.parametrize(
    ("backend", "kind"),
    [
        pytest.param(*backend.values, kind, marks=backend.marks)
        for backend in backend_params()
        for kind in (*KINDS, *ARCHITECTURES)
        if _runs(backend.values[0], kind)
    ],
)


class Cell:
    """Models and texts that the tests of one backend and kind share, each made once."""

    def __init__(self, backend: str, source: Path, directory: Callable[[str | None], Path]) -> None:
        self.backend = backend
        self._source, self._directory = source, directory
        self.model = cache(self.load)
        self.exact = cache(self._exact)
        self.stock_logits = cache(self._stock_logits)

    @cached_property
    def stock(self):
        return stock.LOAD[self.backend](stock_source(self._source, self.backend), "float32")

    @cached_property
    def expected(self) -> list[list[int]]:
        """Greedy ids of the stock framework for each prompt."""
        pairs = zip(PROMPTS, TOKENS, strict=True)
        return [stock.GENERATE[self.backend](self.stock, *pair, eos=EOS)[0] for pair in pairs]

    def _stock_logits(self, prompt: tuple[int, ...], text: tuple[int, ...]) -> np.ndarray:
        """Logits of the stock framework for each token of a text after a prompt."""
        return stock.text_logits(self.backend, self.stock, prompt, text)

    def drawn(self, text: list[int]) -> list[int]:
        """The sampler's draws from the stock framework's logits at each position of a text after the first
        prompt: the text itself, if the stock framework would generate it.
        """
        logits = self.stock_logits(tuple(PROMPTS[0]), tuple(text))[:, :-PADDING_ROWS]
        sampler = Sampler(SamplerSettings(**SAMPLING), logits.shape[1])
        ids = np.arange(logits.shape[1])
        return [sampler.choose(row, ids, position) for position, row in enumerate(logits)]

    def load(self, head: str = "prealloc", without: str | None = None, **options: str) -> Model:
        return load(
            self._directory(without),
            backend=self.backend,
            head=head,
            device="cpu",
            dtype="float32",
            tile_bytes=TILE_BYTES,
            **options,
        )

    def _exact(self, head: str) -> list[Generation]:
        """Exact greedy decoding of each prompt. A third of the tokens have no row until they are rescued, so
        that some blocks have a miss and others have none.
        """
        model, results = self.model(head), []
        for prompt, ids in zip(PROMPTS, self.expected, strict=True):
            model.forget_learned()
            model.decoder.head.set_static({*STATIC, *ids} - {*ids[1::3]})
            results.append(model.generate(prompt, max_tokens=len(ids)))
        return results


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """``cells(backend, kind)``, made on first use."""

    @cache
    def source(kind: str, for_mlx: bool) -> Path:
        directory = write_model(tmp_path_factory.mktemp(kind) / "source", kind)
        if for_mlx:
            _lay_out_for_mlx(directory / "model.safetensors")
        return directory

    @cache
    def converted(kind: str, for_mlx: bool, without: str | None) -> Path:
        root, directory = tmp_path_factory.mktemp(kind), source(kind, for_mlx)
        if without is not None:
            directory = write_changed(directory, root / "source", PARTICULAR[kind][without])
        return convert(directory, root / "vt", progress=False)

    @cache
    def make(backend: str, kind: str) -> Cell:
        files = kind, (backend, kind) == ("mlx", "gpt_oss")
        return Cell(backend, source(*files), partial(converted, *files))

    return make


@pytest.fixture
def cell(cells, backend, kind) -> Cell:
    return cells(backend, kind)


def test_greedy_ids_match_stock_with_every_head(cell):
    for head in HEADS:
        assert [list(result.token_ids) for result in cell.exact(head)] == cell.expected, head


def test_approximate_ids_are_exact_if_all_rows_are_active(cell):
    ids = cell.expected[0]
    for head in HEADS:
        model = cell.model(head)
        model.decoder.head.set_static(ids)
        result = model.generate(PROMPTS[0], max_tokens=len(ids), approximate=True)
        assert list(result.token_ids) == ids, head


def test_texts_are_long_and_varied(cell):
    assert len({token for ids in cell.expected for token in ids}) >= 8
    for head in HEADS:
        results = cell.exact(head)
        assert all(result.stats.vocab_rows >= 1000 for result in results)
        if head != "full":
            assert all(_active(result) < result.stats.vocab_rows / 5 for result in results), head
            assert sum(result.stats.rescued for result in results) > 0, head


def test_sampled_ids_match_stock_logits(cell):
    model = cell.model("prealloc")
    model.forget_learned()
    model.decoder.head.set_static(STATIC)
    ids = _sampled(model)
    assert ids == cell.drawn(ids)
    assert len(ids) == SAMPLED or ids[-1] in EOS


def test_each_feature_changes_the_text(cell, kind):
    """The texts change without the feature, so the tests above check it."""
    assert PARTICULAR[kind]
    if cell.backend != FEATURE_BACKEND:
        pytest.skip("checked with the other framework")
    text = cell.expected[0]
    for feature in PARTICULAR[kind]:
        model = cell.load("full", without=feature)
        if list(model.generate(PROMPTS[0], max_tokens=len(text)).token_ids) == text:
            ids = _sampled(model)
            assert ids != cell.drawn(ids), feature


def test_a_long_prompt_may_run_in_pieces(cell, monkeypatch):
    monkeypatch.setattr("vt_core.decode.framework.Framework.prefill_tokens", 13)
    assert list(cell.model("prealloc").generate(PROMPTS[0], max_tokens=4).token_ids) == cell.expected[0][:4]


@pytest.mark.parametrize("piece", [13, 2048])
def test_scores_match_stock_log_softmax(cell, piece, monkeypatch):
    model = cell.model("prealloc")
    model.decoder.head.set_static(STATIC)
    monkeypatch.setattr("vt_core.decode.framework.Framework.prefill_tokens", piece)
    monkeypatch.setattr("vt_core.decode.decoder.POSITIONS", 8)
    prompt, written = PROMPTS[0], cell.expected[0][:6]
    texts = [(prompt[:5], prompt[5:]), (prompt, written), ([9], [3])]
    for (given, text), score in zip(texts, model.score_each(texts), strict=True):
        logits = cell.stock_logits(tuple(given), tuple(text))
        expected = stock.log_softmax(logits)[range(len(text)), text]
        np.testing.assert_allclose(score.log_probs, expected, rtol=1e-4, atol=1e-4)
        assert score.token_ids == tuple(text)
        assert score.greedy == tuple(logits.argmax(axis=1) == text)
        assert score.is_greedy == (text is written)


def test_int8_layers_run(cell, kind):
    if cell.backend == "mlx":
        pytest.skip("quantizing while loading is PyTorch's")
    if kind in QUANTIZED:
        with pytest.raises(OptionError, match=r"is quantized already \(.-bit affine\); leave --quantize out"):
            cell.load(quantize="int8")
        return
    if kind == "gpt2":
        with pytest.raises(ModelError, match=r"\(gpt2\) has no linear layers that vt could quantize"):
            cell.load(quantize="int8")
        return
    full, model = cell.load("full", quantize="int8"), cell.load(quantize="int8")
    model.decoder.head.set_static(STATIC)
    expected = full.generate(PROMPTS[0], max_tokens=TOKENS[0]).token_ids
    assert model.generate(PROMPTS[0], max_tokens=TOKENS[0]).token_ids == expected


def _sampled(model: Model) -> list[int]:
    return list(model.generate(PROMPTS[0], max_tokens=SAMPLED, **SAMPLING).token_ids)


def _active(result: Generation) -> int:
    return result.stats.static_rows + result.stats.learned_rows + result.stats.dynamic_rows


def _lay_out_for_mlx(file):
    """Experts in the layout of converted checkpoints: mlx-lm reads no other but the published MXFP4 one."""
    tensors = {}
    for name, tensor in load_file(file).items():
        if "experts.gate_up_proj" in name:
            bias = name.endswith("_bias")
            for start, part in ((0, "gate_proj"), (1, "up_proj")):
                piece = tensor[..., start::2] if bias else tensor[..., start::2].transpose(1, 2)
                tensors[f"{name.partition('gate_up_proj')[0]}{part}.{'bias' if bias else 'weight'}"] = piece
        elif name.endswith("experts.down_proj"):
            tensors[name + ".weight"] = tensor.transpose(1, 2)
        elif name.endswith("experts.down_proj_bias"):
            tensors[name.replace("_bias", ".bias")] = tensor
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
