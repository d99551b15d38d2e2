from __future__ import annotations

import pytest

from vt_core.errors import OptionError
from vt_core.measure.variants import (
    BENCH_DEFAULT,
    EVAL_VARIANTS,
    Variant,
    all_names,
    parse_eval_variants,
    parse_variants,
)


def test_names_describe_head_mode_store_and_rows():
    assert parse_variants("stock, full,split-approximate,prealloc-approximate-ram@4096") == [
        Variant("stock", None),
        Variant("full", "full", draft="none"),
        Variant("split-approximate", "split", exact=False, draft="none"),
        Variant(
            "prealloc-approximate-ram@4096", "prealloc", exact=False, store="ram", rows=4096, draft="none"
        ),
    ]
    assert parse_variants("draft,full+draft") == [
        Variant("draft", "prealloc", draft="ngram"),
        Variant("full+draft", "full", draft="ngram"),
    ]
    assert parse_variants("draft@1,full+draft@16") == [
        Variant("draft@1", "prealloc", draft="ngram", draft_tokens=1),
        Variant("full+draft@16", "full", draft="ngram", draft_tokens=16),
    ]
    assert {variant.name for variant in parse_variants(BENCH_DEFAULT)} < set(all_names())
    assert len(parse_variants("all")) == 14
    names = [variant.name for variant in parse_variants("full", sizes="512,1024")]
    assert names[1:] == [
        "prealloc-approximate@512",
        "prealloc@512",
        "prealloc-approximate@1024",
        "prealloc@1024",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fast",
        "stock-ram",
        "full-approximate",
        "prealloc+draft",
        "draft-ram",
        "draft@0",
        "draft@17",
        "draft@",
        "full@9",
        "prealloc@0",
        "prealloc@00",
        "prealloc-ram-approximate",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(OptionError):
        parse_variants(name)


def test_duplicate_names_are_refused():
    with pytest.raises(OptionError, match="'full' is given twice"):
        parse_variants("full,all")


def test_eval_variants_keep_the_order_of_the_tables():
    def names(text, can_prune):
        return [variant.name for variant in parse_eval_variants(text, can_prune)]

    assert names(None, True) == ["original", "pruned", "approximate", "exact"]
    assert names(None, False) == ["original", "approximate", "exact"]
    assert names("static-only, exact,original", False) == ["original", "exact", "static-only"]
    assert all(names(name, True) == [name] for name in EVAL_VARIANTS)
    with pytest.raises(OptionError, match="unknown variant 'best': use some of original, pruned"):
        parse_eval_variants("best", can_prune=True)
    with pytest.raises(OptionError, match="'pruned' needs the corpus to prune to; give --profile-data"):
        parse_eval_variants("pruned", can_prune=False)
    with pytest.raises(OptionError, match="no variants"):
        parse_eval_variants(" , ", can_prune=True)
