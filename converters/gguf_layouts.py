"""The tensors of each architecture that a converted GGUF file may have: their Hugging Face names, and what
llama.cpp's converter did to their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from converters.gguf_metadata import Hyperparameters
from converters.gguf_plans import (
    Edit,
    columns_by_key,
    convolution,
    first_rows,
    flat,
    halves,
    less_one,
    log_of_negative,
    matrices,
    matrix,
    rows_by_key,
)

HEAD = "lm_head.weight"
#: Prefix of a language model inside a model that also takes images.
_INSIDE = "model.language_model."

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LLAMA = {**_ATTENTION, **_MLP, **_NORMS}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2 = {
    **_ATTENTION,
    **_MLP,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA3 = {**_GEMMA2, **_QK_NORMS}
_PER_LAYER = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_ALTUP = {
    "altup_correct_coef": "altup.correction_coefs",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
_PER_LAYER_TABLES = {
    "per_layer_token_embd.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
_PHI3 = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    **_NORMS,
}
_LFM2 = {
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
}
_LFM2_ATTENTION = {
    **_ATTENTION,
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    `name`: in Hugging Face's files. `sources`: the GGUF tensors that hold its values. `edits` undo what was
    done to them there. `optional`: whether the file may lack it.
    """

    name: str
    sources: tuple[str, ...]
    edits: tuple[Edit, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """The tensors of one architecture.

    `layer`: the tensors of a layer. `rest`: those outside the layers, besides embedding, last norm and head.
    `prefix`: of all names but the head's. `norm`: the GGUF name of the last norm, and its name.
    """

    layer: Callable[[Hyperparameters, int], Iterable[Entry]]
    rest: Callable[[Hyperparameters], Iterable[Entry]] = lambda hyper: ()
    prefix: str = "model."
    norm: tuple[str, str] = ("output_norm.weight", "norm.weight")
    norm_edits: tuple[Edit, ...] = ()

    @property
    def embedding(self) -> str:
        """Name of the embedding."""
        return f"{self.prefix}embed_tokens.weight"

    @property
    def last_norm(self) -> str:
        """Name of the norm before the head."""
        return self.prefix + self.norm[1]

    def entries(self, hyper: Hyperparameters) -> list[Entry]:
        """Every tensor of the model, with whole names."""
        inside = [Entry("embed_tokens.weight", ("token_embd.weight",))]
        inside.append(Entry(self.norm[1], (self.norm[0],), self.norm_edits))
        inside.extend(self.rest(hyper))
        for layer in range(hyper.layers):
            inside.extend(
                replace(
                    entry,
                    name=f"layers.{layer}.{entry.name}",
                    sources=tuple(f"blk.{layer}.{source}" for source in entry.sources),
                )
                for entry in self.layer(hyper, layer)
            )
        entries = [replace(entry, name=self.prefix + entry.name) for entry in inside]
        return [*entries, Entry(HEAD, ("output.weight",), optional=True)]


def _dense(
    names: dict[str, str],
    *,
    biases: tuple[str, ...] = (),
    optional_biases: tuple[tuple[str, ...], ...] = (),
    interleaved: bool = False,
    norm_plus_one: bool = False,
) -> Callable[[Hyperparameters, int], Iterator[Entry]]:
    """Layers that are alike.

    `names`: modules by their GGUF names. `biases`: those that have one; `optional_biases`: groups of modules
    that have one each or none. `interleaved`: whether the two halves of each query and key head take turns.
    `norm_plus_one`: whether the file adds the one that Gemma's norms add themselves.
    """

    def layer(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
        biased = {*biases}
        for group in optional_biases:
            if f"blk.0.{group[0]}.bias" in hyper.file.tensors:
                biased.update(group)
        for module, name in names.items():
            edits: tuple[Edit, ...] = ()
            if interleaved and module in ("attn_q", "attn_k"):
                edits = (halves(hyper.head_dim),)
            elif norm_plus_one and name.endswith("norm"):
                edits = (less_one,)
            for kind in ("weight", "bias") if module in biased else ("weight",):
                yield Entry(f"{name}.{kind}", (f"{module}.{kind}",), edits)

    return layer


def _qwen35(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    if (index + 1) % hyper.count("full_attention_interval", 4) == 0:
        yield from _dense({**_ATTENTION, **_MLP, **_QK_NORMS, **norms}, norm_plus_one=True)(hyper, index)
        return
    yield from _dense({**_MLP, **norms}, norm_plus_one=True)(hyper, index)
    inner, values, keys = (
        hyper.count(f"ssm.{name}") for name in ("inner_size", "time_step_rank", "group_count")
    )
    heads, width = (keys, values // keys), inner // values
    first = 2 * keys * hyper.count("ssm.state_size")
    for name, source, *edits in (
        ("in_proj_qkv.weight", "attn_qkv.weight", rows_by_key(*heads, width, first)),
        ("in_proj_z.weight", "attn_gate.weight", rows_by_key(*heads, width)),
        ("in_proj_b.weight", "ssm_beta.weight", rows_by_key(*heads, 1)),
        ("in_proj_a.weight", "ssm_alpha.weight", rows_by_key(*heads, 1)),
        ("conv1d.weight", "ssm_conv1d.weight", rows_by_key(*heads, width, first), convolution),
        ("A_log", "ssm_a", columns_by_key(*heads, 1), log_of_negative),
        ("dt_bias", "ssm_dt.bias", columns_by_key(*heads, 1)),
        ("norm.weight", "ssm_norm.weight"),
        ("out_proj.weight", "ssm_out.weight", columns_by_key(*heads, width)),
    ):
        yield Entry(f"linear_attn.{name}", (source,), tuple(edits))


def _gemma3n(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    yield from _sharing(_dense({**_GEMMA3, **_PER_LAYER, **_ALTUP})(hyper, index), hyper, index)
    yield Entry("altup.correct_output_scale", ("altup_correct_scale.weight",))


def _gemma3n_rest(hyper: Hyperparameters) -> Iterator[Entry]:
    for entry in _gemma4_rest(hyper):
        is_table = entry.sources[0].startswith("per_layer_token_embd")
        yield replace(entry, edits=(first_rows(hyper.used_rows(entry.sources[0])),)) if is_table else entry
    for index in range(hyper.count("altup.num_inputs") - 1):
        yield Entry(f"altup_projections.{index}.weight", ("altup_proj.weight",), (matrix(index),))
        yield Entry(
            f"altup_unembed_projections.{index}.weight", ("altup_unembd_proj.weight",), (matrix(index),)
        )


def _gemma4(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    has_table = "per_layer_token_embd.weight" in hyper.file.tensors
    entries = _dense({**_GEMMA3, **(_PER_LAYER if has_table else {})})(hyper, index)
    for entry in _sharing(entries, hyper, index):
        # Layers without values of their own use their keys.
        yield replace(entry, optional=True) if entry.sources == ("attn_v.weight",) else entry
    yield Entry("layer_scalar", ("layer_output_scale.weight",))


def _gemma4_rest(hyper: Hyperparameters) -> Iterator[Entry]:
    if "per_layer_token_embd.weight" in hyper.file.tensors:
        for source, name in _PER_LAYER_TABLES.items():
            yield Entry(name, (source,))


def _sharing(entries: Iterable[Entry], hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    """The tensors of a layer; its keys and values may be missing if it uses those of an earlier layer."""
    key = "attention.shared_kv_layers"
    own = hyper.layers - (hyper.count(key) if hyper.get(key, 0) else 0)
    unused = {f"{module}.weight" for module in ("attn_k", "attn_v", "attn_k_norm")}
    for entry in entries:
        yield replace(entry, optional=index >= own and entry.sources[0] in unused)


def _lfm2(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    if hyper.counts("attention.head_count_kv")[index]:
        yield from _dense({**_LFM2, **_LFM2_ATTENTION})(hyper, index)
        return
    yield from _dense(_LFM2)(hyper, index)
    for name in ("in_proj", "out_proj"):
        yield Entry(f"conv.{name}.weight", (f"shortconv.{name}.weight",))
        yield Entry(f"conv.{name}.bias", (f"shortconv.{name}.bias",), optional=True)
    yield Entry("conv.conv.weight", ("shortconv.conv.weight",), (convolution,))
    yield Entry("conv.conv.bias", ("shortconv.conv.bias",), optional=True)


def _granite_hybrid(hyper: Hyperparameters, index: int) -> Iterator[Entry]:
    if hyper.counts("attention.head_count_kv")[index]:
        yield from _dense({**_ATTENTION, **_NORMS}, interleaved=True)(hyper, index)
    else:
        yield from _dense(_NORMS)(hyper, index)
        yield Entry("mamba.in_proj.weight", ("ssm_in.weight",))
        yield Entry("mamba.conv1d.weight", ("ssm_conv1d.weight",), (convolution,))
        yield Entry("mamba.conv1d.bias", ("ssm_conv1d.bias",), optional=True)
        yield Entry("mamba.dt_bias", ("ssm_dt.bias",))
        yield Entry("mamba.A_log", ("ssm_a",), (flat, log_of_negative))
        yield Entry("mamba.D", ("ssm_d",), (flat,))
        yield Entry("mamba.norm.weight", ("ssm_norm.weight",), (flat,))
        yield Entry("mamba.out_proj.weight", ("ssm_out.weight",))
    experts = hyper.get("expert_count", 0)
    shared = "_shexp" if experts else ""
    yield Entry(
        "shared_mlp.input_linear.weight", tuple(f"ffn_{half}{shared}.weight" for half in ("gate", "up"))
    )
    yield Entry("shared_mlp.output_linear.weight", (f"ffn_down{shared}.weight",))
    if experts:
        yield Entry("block_sparse_moe.router.layer.weight", ("ffn_gate_inp.weight",))
        yield Entry(
            "block_sparse_moe.input_linear.weight",
            ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
            (matrices,),
        )
        yield Entry("block_sparse_moe.output_linear.weight", ("ffn_down_exps.weight",), (matrices,))


_ALL_BIASES = (tuple(_ATTENTION), tuple(_MLP))
_LLAMA_LAYOUT = Layout(_dense(_LLAMA, optional_biases=_ALL_BIASES, interleaved=True))

#: The architectures that can be converted, by their GGUF name.
LAYOUTS = {
    "llama": _LLAMA_LAYOUT,
    "smollm3": _LLAMA_LAYOUT,
    "qwen2": Layout(_dense(_LLAMA, biases=("attn_q", "attn_k", "attn_v"))),
    "qwen3": Layout(_dense({**_LLAMA, **_QK_NORMS}, optional_biases=(tuple(_ATTENTION),))),
    "qwen35": Layout(_qwen35, prefix=_INSIDE, norm_edits=(less_one,)),
    "gemma": Layout(_dense(_LLAMA, norm_plus_one=True), norm_edits=(less_one,)),
    "gemma2": Layout(_dense(_GEMMA2, norm_plus_one=True), norm_edits=(less_one,)),
    "gemma3": Layout(_dense(_GEMMA3, norm_plus_one=True), norm_edits=(less_one,)),
    "gemma3n": Layout(_gemma3n, _gemma3n_rest, prefix=_INSIDE),
    "gemma4": Layout(_gemma4, _gemma4_rest),
    "granite": _LLAMA_LAYOUT,
    "granitehybrid": Layout(_granite_hybrid),
    "lfm2": Layout(_lfm2, norm=("token_embd_norm.weight", "embedding_norm.weight")),
    "phi3": Layout(_dense(_PHI3)),
}
