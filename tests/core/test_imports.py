"""Imports point one way: the core and the converters run without any framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = "import sys; sys.modules.update(dict.fromkeys({names}, None)); "
MODULES = (
    "import importlib, pkgutil, {package}; "
    "[importlib.import_module(m.name) for m in pkgutil.walk_packages({package}.__path__, '{package}.')"
    " if 'harness' not in m.name or importlib.util.find_spec('lm_eval')]; "
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("package", ["vt_core", "converters"])
def test_every_module_imports_with_the_frameworks_blocked(package):
    names = ["mlx", "mlx.core", "mlx_lm", "torch", "vt_mlx", "vt_torch"]
    done = run(BLOCK.format(names=names) + MODULES.format(package=package))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "framework", "other"), [("vt_torch", "torch", "mlx"), ("vt_mlx", "mlx_lm", "torch")]
)
def test_backends_know_neither_each_other_nor_click_nor_converters(package, framework, other):
    pytest.importorskip(framework)
    code = MODULES.format(package=package) + (
        "loaded = {m.split('.')[0] for m in sys.modules}; "
        f"bad = loaded & {{'converters', 'vt_{other}'}}; "
        "assert not bad, bad"
    )
    done = run("import sys; " + code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light():
    done = run(
        "import sys, vt_core\n"
        "heavy = {'numpy', 'transformers', 'lmdb', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_a_missing_framework_gives_the_extra_to_install(name):
    framework = {"mlx": "mlx_lm", "torch": "torch"}[name]
    done = run(
        BLOCK.format(names=[framework])
        + f"from vt_core.decode.backend import backend\ntry: backend('{name}')\n"
        + "except Exception as e: print(type(e).__name__, e)"
    )
    assert done.stdout.startswith("BackendError")
    assert f"pip install 'vt[{name}]'" in done.stdout


def test_an_unknown_backend_is_refused_with_the_known_ones():
    done = run(
        "from vt_core.decode.backend import backend\ntry: backend('jax')\nexcept Exception as e: print(e)"
    )
    assert "unknown backend 'jax': choose one of mlx, torch" in done.stdout
