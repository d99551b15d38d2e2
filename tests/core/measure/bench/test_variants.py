from __future__ import annotations

import pytest

from vt_core.errors import OptionError
from vt_core.measure.bench.variants import DEFAULT, Variant, every, parse_variants


def test_names_say_how_a_head_is_held_and_used():
    assert parse_variants("stock, full,split-approximate,prealloc-approximate-ram@4096") == [
        Variant("stock", None),
        Variant("full", "full"),
        Variant("split-approximate", "split", exact=False),
        Variant("prealloc-approximate-ram@4096", "prealloc", exact=False, store="ram", rows=4096),
    ]
    assert {variant.name for variant in parse_variants(DEFAULT)} < set(every())
    assert len(parse_variants("all")) == 14
    names = [variant.name for variant in parse_variants("full", sizes="512,1024")]
    assert names[1:] == [
        "prealloc-approximate@512",
        "prealloc@512",
        "prealloc-approximate@1024",
        "prealloc@1024",
    ]


@pytest.mark.parametrize(
    "name", ["", "fast", "stock-ram", "full-approximate", "full@9", "prealloc@0", "prealloc-ram-approximate"]
)
def test_what_means_nothing_is_refused(name):
    with pytest.raises(OptionError):
        parse_variants(name)


def test_a_variant_twice_is_refused():
    with pytest.raises(OptionError, match="'full' is given twice"):
        parse_variants("full,all")
