"""What the package shows to the outside, and that importing it is quick. Who may import what: pyproject.toml."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ytuning

SOURCE = Path(__file__).parents[1] / "src" / "ytuning"
MODULES = sorted(
    ".".join(("ytuning", *file.relative_to(SOURCE).with_suffix("").parts)) for file in SOURCE.rglob("[!_]*.py")
)


def test_package_itself_loads_nothing_at_once() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
    assert names == {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("statement", ["import ytuning", "import ytuning.cli", "from ytuning import YTuningError"])
def test_light_imports_load_neither_torch_nor_transformers(statement: str) -> None:
    check = f"{statement}; import sys; print(sorted({{'torch', 'transformers', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- public names ---------------------------------------------------------------------------------------------------


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    assert list(ytuning.__all__) == sorted({*homes, "__version__"})
    for name, home in homes.items():
        module = importlib.import_module(home)
        assert getattr(ytuning, name) is getattr(module, name)
        assert name in module.__all__


def test_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ytuning' has no attribute 'nothing'$"):
        _ = ytuning.nothing


@pytest.mark.parametrize("module", MODULES)
def test_every_module_lists_its_names(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__all__ and len(set(loaded.__all__)) == len(loaded.__all__)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
    assert loaded.__doc__


def test_every_folder_says_in_a_line_what_is_in_it() -> None:
    for file in SOURCE.glob("*/__init__.py"):
        module = ast.parse(file.read_text(encoding="utf-8"))
        # The command line also gives the entry point of the program.
        assert (len(module.body) == 1 or file.parent.name == "cli") and ast.get_docstring(module), file
