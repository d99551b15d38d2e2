"""Imports point one way: the core and the converters run without any framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vt_core

CORE = Path(vt_core.__file__).parent
BLOCK = "import sys; sys.modules.update(dict.fromkeys({names}, None)); "
MODULES = (
    "import importlib, pkgutil, {package}; "
    "[importlib.import_module(m.name) for m in pkgutil.walk_packages({package}.__path__, '{package}.')"
    " if 'harness' not in m.name or importlib.util.find_spec('lm_eval')"
    " if '.serve' not in m.name or importlib.util.find_spec('starlette')"
    " if m.name != 'vt_torch.finetune' or importlib.util.find_spec('trl')]; "
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


#: What each part of vt_core may import, besides itself.
LOW = {"errors", "types", "host", "files", "store", "vocab"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "host": {"errors"},
    "files": LOW,
    "store": LOW,
    "vocab": LOW,
    "profile": LOW,
    "enrich": LOW | {"profile"},
    "decode": LOW,
    "many": LOW | {"decode"},
    "loaded": LOW | {"decode"},
    "session": LOW | {"decode", "loaded"},
    "model": LOW | {"decode", "loaded", "session", "many"},
    "loading": LOW | {"decode", "model"},
    "measure": LOW | {"decode", "model", "profile"},
    "harness": LOW | {"decode", "model"},
    "serve": LOW | {"decode", "model"},
    "cli": LOW | {"decode", "model", "profile", "enrich", "measure", "serve"},
    "__init__": LOW | {"decode", "model", "loading"},
}


def imported_modules(file: Path, *, at_import_time: bool) -> set[str]:
    """Modules of vt_core that a file imports. Imports for the type checker and, with ``at_import_time``,
    those inside functions are left out.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and at_import_time:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            # A name may be a module of its own.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return {name for name in found if name.split(".")[0] == "vt_core"}


def core_modules() -> dict[str, Path]:
    """Files of vt_core by module name."""
    files = CORE.rglob("*.py")
    names = {file: ".".join(file.relative_to(CORE.parent).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def test_imports_of_the_core_point_one_way():
    modules = core_modules()
    for name, file in modules.items():
        part = (*name.split("."), "__init__")[1]
        for target in imported_modules(file, at_import_time=False):
            if target not in modules:
                continue  # a class or function
            other = (*target.split("."), "__init__")[1]
            # Naming a part also names the package itself, which is light; only measure and cli load models.
            allowed = {part, *ALLOWED[part], "__init__"}
            assert other in allowed, f"{name} imports {target}"


def test_no_modules_of_the_core_import_each_other_in_a_circle():
    modules = core_modules()
    graph = {
        name: {t for t in imported_modules(file, at_import_time=True) if t in modules and t != name}
        for name, file in modules.items()
    }
    # The package of a module runs before it, so naming it draws no arrow.
    order = TopologicalSorter(
        {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in graph.items()}
    )
    order.prepare()
