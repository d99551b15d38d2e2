"""What a worker process gets before it loads a variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vt_core.measure.variants import Variant


@dataclass(frozen=True)
class Job:
    """A variant of a model, ready to load. Holds only values that JSON can express; paths are strings."""

    #: Name of the variant, for messages.
    name: str
    backend: str
    #: Model directory.
    model: str
    #: Head of vt; None is the stock framework.
    head: str | None
    exact: bool = True
    dynamic: bool = True
    store: str = "lmdb"
    #: Files of task vocabularies; none: the rank prior.
    task: Sequence[str] = ()
    #: Whether tokens are drafted, see :class:`Variant`.
    draft: str = "auto"
    #: Tokens to draft for each read; None learns how many pay.
    draft_tokens: int | None = None
    #: N-gram table to draft from, besides those of the tasks.
    draft_file: str | None = None
    #: A tokenizer.json that replaces the model's own.
    tokenizer: str | None = None
    #: Plain Hugging Face copy of the model, for the stock framework.
    stock: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    compile: bool = False

    @classmethod
    def of(cls, variant: Variant, *, backend: str, model: str, **options: object) -> Job:
        """The job of a variant; ``options`` are further fields."""
        return cls(
            name=variant.name,
            backend=backend,
            model=model,
            head=variant.head,
            exact=variant.exact,
            dynamic=variant.dynamic,
            store=variant.store,
            draft=variant.draft,
            draft_tokens=variant.draft_tokens,
            **options,  # type: ignore[arg-type]
        )
