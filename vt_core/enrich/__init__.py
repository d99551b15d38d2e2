"""Enriching a model's vocabulary with the n-grams of a task: merged tokens (TASC-ft, arXiv 2602.24174).

```python
from vt_core.enrich import MergeableTokenizer, read_outputs, select_ngrams
from vt_core.profile import RowFormat

tokenizer = MergeableTokenizer(tokenizer_json)
outputs = read_outputs(["train.jsonl"], tokenizer.library, RowFormat(), merges=tokenizer.known)
selection = select_ngrams(outputs.ids, 300, **tokenizer.for_selection())
```
"""

from __future__ import annotations

from vt_core.enrich.corpus import Outputs, read_outputs
from vt_core.enrich.report import make_report, plot_curve, report_text
from vt_core.enrich.selection import NGram, Selection, select_ngrams
from vt_core.enrich.tokenizer import MergeableTokenizer

__all__ = [
    "MergeableTokenizer",
    "NGram",
    "Outputs",
    "Selection",
    "make_report",
    "plot_curve",
    "read_outputs",
    "report_text",
    "select_ngrams",
]
