from __future__ import annotations

import json

import pytest

from vt_core.errors import DataError
from vt_core.measure.prompts import RANDOM_LENGTHS, WARM_UP_TEXT, encode, random_prompts, read_prompts
from vt_core.profile.row_format import RowFormat, make_row_format
from vt_core.vocab.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny):
    return Tokenizer(tiny("llama")[1])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["one", "two words", "three words here", "and a fourth " * 40]
    path.write_text("\n".join(json.dumps({"question": text}) for text in texts) + "\n\n")
    return path


def test_rows_use_the_chat_template_and_the_next_row_warms_up(tokenizer, file):
    layout = make_row_format("math", template="Say {input}")
    prompts = read_prompts([file], layout, tokenizer, limit=2, max_tokens=None)
    expected = [
        tuple(tokenizer.encode_chat([{"role": "user", "content": f"Say {text}"}]).tolist())
        for text in ("one", "two words", "three words here")
    ]
    assert list(prompts.ids) == expected[:2] and prompts.warm_up == expected[2]
    raw = read_prompts([file], layout, tokenizer, limit=1, max_tokens=None, raw=True)
    assert list(raw.ids) == [tuple(tokenizer.encode("Say one").tolist())]


def test_rows_that_do_not_fit_are_skipped_and_counted(tokenizer, file):
    prompts = read_prompts([file], make_row_format("math"), tokenizer, limit=9, max_tokens=60)
    assert len(prompts.ids) == 3 and prompts.too_long == 1
    assert prompts.source == "rows.jsonl"
    with pytest.raises(DataError, match="no row holds a prompt that fits"):
        read_prompts([file], make_row_format("math"), tokenizer, limit=9, max_tokens=2)


@pytest.mark.parametrize("limit", [3, 4])
def test_warm_up_is_not_a_measured_prompt(tokenizer, tmp_path, limit):
    path = tmp_path / "few.jsonl"
    # The row after the measured ones repeats one of them.
    path.write_text("".join(json.dumps({"input": text}) + "\n" for text in ("a", "b", "c", "b")))
    prompts = read_prompts([path], RowFormat(), tokenizer, limit=limit, max_tokens=None)
    assert len(prompts.ids) == limit
    assert prompts.warm_up == tuple(encode(tokenizer, WARM_UP_TEXT))
    assert prompts.warm_up not in prompts.ids


def test_row_without_the_field_is_named(tokenizer, file):
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: lacks the input"):
        read_prompts([file], RowFormat(), tokenizer, limit=1, max_tokens=None)


def test_random_prompts_depend_on_the_seed():
    ids = range(100, 200)
    prompts = random_prompts(ids, limit=30, seed=1)
    assert prompts == random_prompts(ids, limit=30, seed=1) != random_prompts(ids, limit=30, seed=2)
    assert len(prompts.ids) == 30 and {id for each in prompts.ids for id in each} <= set(ids)
    assert {RANDOM_LENGTHS[0] <= len(each) <= RANDOM_LENGTHS[1] for each in prompts.ids} == {True}
