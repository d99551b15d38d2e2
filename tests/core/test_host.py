"""Memory and cores of a process."""

import os
import subprocess
import sys

import pytest

from vt_core.host import trim_heap, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_usable_cores_counts_the_affinity_mask():
    core = min(os.sched_getaffinity(0))
    lines = ["import os", f"os.sched_setaffinity(0, [{core}])", "from vt_core.host import usable_cores"]
    code = "; ".join([*lines, "print(usable_cores())"])
    assert subprocess.check_output([sys.executable, "-c", code]) == b"1\n"


def test_trim_heap_keeps_live_memory():
    assert usable_cores() >= 1
    data = [bytes(1000) for _ in range(1000)]
    trim_heap()
    assert data[-1] == bytes(1000)
