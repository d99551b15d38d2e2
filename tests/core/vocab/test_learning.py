from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vt_core.errors import VocabularyError
from vt_core.vocab.learning import MAX_BYTES, Learned, LearnedFile, learned_path

DIGEST = "sha256:" + "a" * 64
ids = st.lists(st.integers(0, 30), max_size=20)


@given(st.lists(st.tuples(ids, ids)), st.integers(1, 8))
def test_most_recently_used_ids_stay(requests, limit):
    learned = Learned(limit=limit)
    order: list[int] = []
    for rescued, used in requests:
        before = set(learned.ids)
        changed = learned.update(rescued, used)
        for token in [*(token for token in used if token in order), *rescued]:
            if token in order:
                order.remove(token)
            order.append(token)
        order = order[-limit:]
        assert learned.ids == order
        assert changed == (set(order) != before)


def test_file_merges_up_to_the_limit(tmp_path):
    file = LearnedFile(tmp_path / "sub" / "math.learned.json", DIGEST, 5000)
    assert file.load() == []
    file.add(Learned([1, 2, 3]))
    file.add(Learned([2, 9]))
    assert file.load() == [1, 3, 2, 9]
    file.add(Learned(range(2000, 4000)))
    assert file.load() == list(range(4000 - 1024, 4000))


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "x.learned.json"
    code = (
        "import sys; from pathlib import Path; from vt_core.vocab.learning import *; "
        f"f = LearnedFile(Path({str(path)!r}), {DIGEST!r}, 5000); "
        "[f.add(Learned([int(sys.argv[1]) * 10 + i])) for i in range(10)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(LearnedFile(path, DIGEST, 5000).load()) == list(range(40))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "levels deep"),
        ("[1]", "not a JSON object"),
        (json.dumps({"format": 2, "ids": [], "tokenizer_digest": DIGEST}), "does not hold learned ids"),
        (json.dumps({"format": 1, "ids": [5000], "tokenizer_digest": DIGEST}), "with 5000 rows"),
        (json.dumps({"format": 1, "ids": [True], "tokenizer_digest": DIGEST}), "does not hold learned ids"),
        (
            json.dumps({"format": 1, "ids": [1], "tokenizer_digest": "sha256:b"}),
            "learned with tokenizer sha256:b",
        ),
    ],
)
def test_damaged_or_foreign_file_is_refused(tmp_path, content, sentence):
    path = tmp_path / "x.learned.json"
    path.write_text(content)
    with pytest.raises(VocabularyError, match=sentence):
        LearnedFile(path, DIGEST, 5000).load()


def test_large_file_is_refused(tmp_path):
    path = tmp_path / "x.learned.json"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(VocabularyError, match="more than the limit"):
        LearnedFile(path, DIGEST, 5000).load()


def test_path_is_beside_the_task_or_in_the_cache():
    cache = Path("cache")
    assert learned_path([Path("a/math.vt.json"), Path("b.vt.json")], cache, DIGEST) == Path(
        "a/math.learned.json"
    )
    assert learned_path([], cache, DIGEST) == cache / "learned" / ("a" * 32 + ".json")
