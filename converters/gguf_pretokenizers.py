"""How a byte-level BPE splits text before it merges; GGUF files only name it (`tokenizer.ggml.pre`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converters.gguf_file import GGUFFile
from vt_core.errors import TokenizerError
from vt_core.vocab.split_patterns import CONTRACTION, TEKKEN, cased_words, words


@dataclass(frozen=True)
class Pretokenizer:
    """A pre-tokenizer. Without a `pattern`, GPT-2's own applies.

    `digits`: each digit is cut off first. `ignore_merges`: a word that is a token stays whole, whatever the
    merges say. `add_bos`: what holds where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    @property
    def normalizer(self) -> dict[str, Any] | None:
        """The `normalizer` of tokenizer.json."""
        return {"type": "NFC"} if self.nfc else None

    def json(self) -> dict[str, Any]:
        """The `pre_tokenizer` of tokenizer.json."""
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": self.pattern is None,
        }
        steps: list[dict[str, Any]] = []
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            split = {
                "type": "Split",
                "pattern": {"Regex": self.pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            steps.append(split)
        return {"type": "Sequence", "pretokenizers": [*steps, byte_level]} if steps else byte_level


_GPT2 = Pretokenizer()
_DIGITS = Pretokenizer(digits=True)
_QWEN2 = Pretokenizer(words(r"\p{N}"), nfc=True)
_QWEN35 = Pretokenizer(words(r"\p{N}", r"\p{M}"), nfc=True)
_CL100K = Pretokenizer(words(r"\p{N}{1,3}"))
_LLAMA3 = Pretokenizer(words(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)

#: By their names in GGUF files.
PRETOKENIZERS = {
    **dict.fromkeys(["gpt-2", "phi-2", "mpt", "olmo", "jais"], _GPT2),
    **dict.fromkeys(["smollm", "starcoder", "refact", "codeshell", "minerva-7b"], _DIGITS),
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"], _QWEN2),
    **dict.fromkeys(["llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"], _LLAMA3),
    **dict.fromkeys(["dbrx", "smaug-bpe"], _CL100K),
    "qwen35": _QWEN35,
    "tekken": Pretokenizer(TEKKEN, ignore_merges=True, add_bos=True),
    "gpt-4o": Pretokenizer(cased_words(r"\p{N}{1,3}", rf"{CONTRACTION}?")),
}

_BY_ARCHITECTURE = {"qwen2": _QWEN2, "qwen3": _QWEN2, "qwen35": _QWEN35, "smollm3": _LLAMA3, "lfm2": _LLAMA3}
_LLAMA3_TOKENS = 128_256


def pretokenizer_of(file: GGUFFile) -> Pretokenizer:
    """The pre-tokenizer that the file names; that of the architecture for an old file without a name.

    Raises:
        TokenizerError: the name is unknown; another way to split would give other ids.
    """
    name = file.text("tokenizer.ggml.pre", "default")
    if name == "default":
        architecture = str(file.text("general.architecture"))
        if architecture == "llama" and len(file.metadata["tokenizer.ggml.tokens"]) == _LLAMA3_TOKENS:
            return _LLAMA3
        return _BY_ARCHITECTURE.get(architecture, _GPT2)
    if name not in PRETOKENIZERS:
        raise TokenizerError(
            f"{file.path} splits text with the pre-tokenizer {name!r}, which is not supported; these are: "
            f"{', '.join(sorted(PRETOKENIZERS))}. Try the model's Hugging Face directory."
        )
    return PRETOKENIZERS[name]
