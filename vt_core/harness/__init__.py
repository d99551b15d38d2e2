"""The model ``vt`` for lm-evaluation-harness: its tasks run on vt.

>>> import lm_eval
>>> from vt_core.harness import VtLM
>>> lm_eval.simple_evaluate(VtLM("qwen-vt", backend="torch"), tasks=["gsm8k"], limit=20)

Importing this module registers the model. ``python -m vt_core.harness`` is the harness's command with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
except ImportError as error:
    raise ImportError(
        f"vt_core.harness needs lm-evaluation-harness ({error}); install it with: pip install 'vt[lm-eval]'"
    ) from error
from tqdm import tqdm

from vt_core import Model, load
from vt_core.decode.sampling import SamplerSettings
from vt_core.errors import ModelError, OptionError, PromptError

#: Context of models whose configuration gives none, such as state-space models: the harness's default.
_CONTEXT = 2048

_log = logging.getLogger(__name__)

#: Texts (or None), ids of the context, ids of the continuation.
Pair = tuple[Any, list[int], list[int]]


@register_model("vt")
class VtLM(TemplateLM):
    """Generates and scores one text at a time. Log-likelihoods come from the full head, scanned in tiles."""

    def __init__(
        self,
        path: str | Path | Model | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        approximate: bool = False,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            path: a loaded model, or the path or id for :func:`vt_core.load`.
            max_length: most tokens of a text; None takes the model's context. Longer texts lose their
                beginning.
            max_gen_toks: most tokens to generate where a task does not say.
            approximate: generate with the reduced head alone. Log-likelihoods always come from the full head.
            seed: seed of the first sampled text of a task; each further text takes the next number.
            batch_size: ignored; the harness passes it to every model.
            max_batch_size: ignored; the harness passes it to every model.
            options: further arguments of :func:`vt_core.load`, such as ``backend``, ``task`` and ``dtype``.
        """
        super().__init__()
        self.model = path if isinstance(path, Model) else load(path, **options)
        self.tokenizer = self.model.tokenizer
        self.max_length: int = max_length or self.model.context or _CONTEXT
        self._max_gen_toks, self._approximate, self._seed = max_gen_toks, approximate, seed

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> VtLM:
        """Make a model from ``--model_args`` and the arguments that the harness adds."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        # The harness adds this device where the user gave none; vt then takes the best one.
        if added.get("device") == "cuda:0":
            del added["device"]
        return cls(**added | arg_dict)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> VtLM:
        """Make a model from the text of ``--model_args``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @cached_property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        named = self.tokenizer.named_id("eos_token")
        if named is None and not self.model.eos_ids:
            raise ModelError(
                f"{self.tokenizer.path.parent} has no end-of-text token, which a text without context needs "
                "before it; add eos_token_id to its generation_config.json"
            )
        return min(self.model.eos_ids) if named is None else named

    @cached_property
    def prefix_token_id(self) -> int:
        """Id of the token before a text without context: BOS, or EOS where the model has no BOS."""
        named = self.tokenizer.named_id("bos_token")
        return self.eot_token_id if named is None else named

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Full ids of a text. By default the tokenizer adds BOS unless the chat template has written it."""
        if add_special_tokens is None:
            prefix = self.tokenizer.token_of(self.prefix_token_id)
            add_special_tokens = not (prefix and string.startswith(prefix))
        ids: list[int] = self.tokenizer.encode(string, special=add_special_tokens).tolist()
        return ids

    @property
    def tokenizer_name(self) -> str:
        """Key of the harness's cache of prompts."""
        return str(self.tokenizer.path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.render_chat(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        scores = iter(self._loglikelihood_tokens([pair for each in windows for pair in each], disable_tqdm))
        totals = [sum(next(scores)[0] for _ in each) for each in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for index, request in enumerate(tqdm(requests, disable=disable_tqdm, desc="vt generates")):
            context, options = request.args
            texts.append(self._generate(context, options, self._seed + index))
            self.cache_hook.add_partial("generate_until", (context, options), texts[-1])
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = (self._fit(context, continuation) for _, context, continuation in requests)
        scores = tqdm(
            self.model.score_each(pairs), total=len(requests), disable=disable_tqdm, desc="vt scores"
        )
        answers = []
        for (texts, _, _), score in zip(requests, scores, strict=True):
            answers.append((score.log_prob, score.is_greedy))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def _windows(self, text: str) -> Iterator[Pair]:
        """Split a text into pieces that fit, each with the context before it."""
        ids = self.tok_encode(text)
        for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
            yield None, *make_disjoint_window(window)

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Shorten the context to fit. The last token needs no place: it is scored, but never read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise PromptError(
                f"a continuation of {len(continuation)} tokens is longer than max_length, {self.max_length}"
            )
        return self._cut(context, room), continuation

    def _cut(self, context: list[int], room: int) -> list[int]:
        if len(context) > room:
            _log.warning("a context of %d tokens is cut at its beginning: %d fit", len(context), room)
        return context[-room:]

    def _generate(self, context: str, options: dict[str, Any], seed: int) -> str:
        sampling: dict[str, Any] = dict(normalize_gen_kwargs(options, self._max_gen_toks))
        stops, max_tokens = sampling.pop("until"), sampling.pop("max_gen_toks")
        if sampling.pop("do_sample"):
            sampling = {"temperature": 1.0, "seed": seed} | sampling
        if sampling.get("num_beams") == 1:
            del sampling["num_beams"]
        unknown = sorted(sampling.keys() - {field.name for field in fields(SamplerSettings)})
        if unknown:
            raise OptionError(f"unknown generation option {unknown[0]!r}")
        room = self.max_length - max_tokens
        if room < 1:
            raise OptionError(
                f"{max_tokens} tokens to generate leave no room for a prompt in max_length, {self.max_length}"
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return self.model.generate(
            self._cut(ids, room),
            max_tokens=max_tokens,
            stop=[stop for stop in stops if stop],
            approximate=self._approximate,
            **sampling,
        ).text
