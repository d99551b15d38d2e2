"""Profiling: from a corpus to a task vocabulary.

```python
from vt_core.profile import Profiler, Stages

profiler = Profiler(tokenizer_json, vocab_rows=151_936)
counts = profiler.count(["train.jsonl"])
task = profiler.select(counts, Stages(tolerance=0.01), languages=["en"], name="math")
task.save("math.vt.json")
```
"""

from __future__ import annotations

from vt_core.profile.counts import Counts, merge_all
from vt_core.profile.layout import Layout, make_layout
from vt_core.profile.run import Profiler
from vt_core.profile.selection import Stages

__all__ = ["Counts", "Layout", "Profiler", "Stages", "make_layout", "merge_all"]
