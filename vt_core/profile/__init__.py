"""Profiling: make a task vocabulary from a corpus.

```python
from vt_core.profile import Profiler, Stages

profiler = Profiler(tokenizer_json, vocab_rows=151_936)
counts = profiler.count(["train.jsonl"])
task = profiler.select(counts, Stages(tolerance=0.01), languages=["en"], name="math")
task.save("math.vt.json")
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vt_core.profile.counts import Counts, merge_all
from vt_core.profile.row_format import RowFormat, make_row_format
from vt_core.profile.selection import Stages

if TYPE_CHECKING:
    from vt_core.profile.profiler import Profiler

__all__ = ["Counts", "Profiler", "RowFormat", "Stages", "make_row_format", "merge_all"]


def __getattr__(name: str) -> Any:
    # Generating from a file reads its rows with this package, and must not load Arrow, 34 MB, for it.
    if name == "Profiler":
        from vt_core.profile.profiler import Profiler

        return Profiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
