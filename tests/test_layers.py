"""Who may import what, and what the package shows to the outside."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ytuning

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ytuning"

ORDER = [
    "errors",
    "disk",
    "versions",
    "memory",
    "progress",
    "labels",
    "targets",
    "tables",
    "columns",
    "label_cells",
    "data",
    "holdout",
    "label_texts",
    "sources",
    "pretrained",
    "backends",
    "packing",
    "gpu_kernels",
    "packed_states",
    "packed_gpu",
    "windows",
    "identity",
    "tokens",
    "encoder",
    "codecs",
    "store",
    "features",
    "pairs",
    "dropout",
    "cross_attention",
    "label_tuning",
    "head",
    "losses",
    "recipes",
    "workers",
    "reduction",
    "stack",
    "sampling",
    "metrics",
    "intervals",
    "calibration",
    "training",
    "attribution",
    "samples",
    "artifact",
    "layer_choice",
    "new_label",
    "shared_encoder",
    "predictor",
    "probes",
    "tuning",
    "contrastive",
    "evaluation",
    "report",
    "figures",
    "pages",
    "mistakes",
    "html_report",
    "task_rows",
    "zero_shot",
    "pipeline",
    "task_use",
    "search_space",
    "search_log",
    "search",
    "search_plot",
    "estimator",
    "contestants",
    "comparison",
    "standings",
    "charts",
    "comparison_report",
    "server.settings",
    "server.telemetry",
    "server.catalog",
    "server.batching",
    "server.schemas",
    "server.inference",
    "server.service",
    "server.forms",
    "server.routes",
    "server.gate",
    "server.app",
    "server.launch",
    "console",
    "options",
    "cli_add_label",
    "cli_cache",
    "cli_compare",
    "cli_search",
    "cli_serve",
    "cli_train",
    "cli",
    "__main__",
]
"""A module imports only modules before it; lazy imports and those for type checking count."""

THIRD_PARTY = {
    "datasets": {"contrastive", "tables"},
    "filelock": {"comparison", "store"},
    "huggingface_hub": {"sources"},
    "jinja2": {"pages"},
    "fastapi": {"server.app", "server.routes", "server.service"},
    "prometheus_client": {"server.telemetry"},
    "pydantic": {"server.app", "server.schemas"},
    "starlette": {"server.app"},
    "uvicorn": {"server.launch"},
    "numpy": {
        "server.batching", "server.forms", "server.inference", "shared_encoder",
        "attribution", "backends", "calibration", "codecs", "comparison", "contestants", "contrastive",
        "data", "encoder", "estimator", "evaluation", "features", "figures", "holdout", "intervals", "label_cells",
        "labels",
        "layer_choice", "metrics", "mistakes", "new_label", "packed_gpu", "packed_states", "packing", "pipeline",
        "predictor", "probes", "reduction",
        "samples", "search", "search_log", "stack", "standings", "store", "targets", "task_rows", "tokens", "training",
        "tuning", "windows",
    },
    "optuna": {"search"},
    "pandas": {"tables"},
    "peft": {"contestants", "tuning"},
    "platformdirs": {"store"},
    "pyarrow": {"tables"},
    "rich": {
        "cli", "cli_add_label", "cli_cache", "cli_compare", "cli_search", "cli_train", "comparison_report",
        "progress", "report",
    },
    "safetensors": {"artifact", "codecs"},
    "scipy": {"calibration", "intervals", "metrics", "probes", "targets"},
    "setfit": {"contrastive"},
    "sklearn": {"estimator", "metrics", "probes"},
    "torch": {
        "artifact", "attribution", "backends", "codecs", "cross_attention", "dropout", "encoder",
        "features", "gpu_kernels", "head", "label_tuning", "layer_choice", "losses", "new_label", "packed_gpu",
        "packed_states", "packing", "pairs", "pipeline", "pretrained", "probes", "reduction", "sampling", "search",
        "search_space",
        "server.batching", "shared_encoder", "stack", "task_use", "training", "tuning", "workers", "zero_shot",
    },
    "transformers": {"contrastive", "packed_gpu", "pretrained", "tuning"},
    "triton": {"gpu_kernels"},
    "typer": {
        "cli", "cli_add_label", "cli_cache", "cli_compare", "cli_search", "cli_serve", "cli_train", "console",
        "options",
    },
}  # fmt: skip
"""Third-party package -> modules that may import it."""


def imports(module: str) -> Iterator[str]:
    """Full names of modules that a module imports, anywhere in its file."""
    for node in ast.walk(ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py, line {node.lineno}: write imports in full"
            if node.module in ("ytuning", "ytuning.server"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            name = node.args[0]
            yield from [str(name.value)] if isinstance(name, ast.Constant) else []


def own(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    names = [name.removeprefix("ytuning.") for name in imports(module) if name.startswith("ytuning.")]
    return {name if name.startswith("server.") else name.split(".")[0] for name in names} - {"__version__"}


def foreign(module: str) -> set[str]:
    """Third-party packages that a module imports."""
    packages = {name.split(".")[0] for name in imports(module)}
    return packages - set(sys.stdlib_module_names) - {"ytuning"}


def test_order_lists_every_file() -> None:
    assert len(set(ORDER)) == len(ORDER)
    files = {".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in SOURCE.rglob("*.py")}
    assert files == {*ORDER, "__init__", "server.__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module: str) -> None:
    assert own(module) - set(ORDER[: ORDER.index(module)]) == set()


def test_no_import_cycles() -> None:
    waiting = {module: own(module) for module in ORDER}
    while waiting:
        free = [module for module, needed in waiting.items() if not needed & set(waiting)]
        assert free, f"these import each other: {sorted(waiting)}"
        for module in free:
            del waiting[module]


@pytest.mark.parametrize("module", ORDER)
def test_third_party_packages_stay_in_their_files(module: str) -> None:
    assert foreign(module) <= {package for package, modules in THIRD_PARTY.items() if module in modules}


def test_third_party_table_allows_no_more_than_is_used() -> None:
    used = {(package, module) for module in ORDER for package in foreign(module)}
    # Packages of a user's objects are recognised by name, not imported.
    recognised = {("pandas", "tables"), ("datasets", "tables")}
    assert {(package, module) for package, modules in THIRD_PARTY.items() for module in modules} - used <= recognised


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


def test_public_names_of_the_package() -> None:
    assert list(ytuning.__all__) == sorted(ytuning.__all__)
    assert set(ytuning.__all__) == {*ytuning._HOMES, "__version__"}
    for name, home in ytuning._HOMES.items():
        module = importlib.import_module(f"ytuning.{home}")
        assert getattr(ytuning, name) is getattr(module, name)
        assert name in module.__all__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: str(node.module).split(".")[1]
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == ytuning._HOMES


def test_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ytuning' has no attribute 'nothing'$"):
        _ = ytuning.nothing


@pytest.mark.parametrize("module", ORDER)
def test_every_module_lists_its_names(module: str) -> None:
    loaded = importlib.import_module(f"ytuning.{module}")
    assert loaded.__all__ and len(set(loaded.__all__)) == len(loaded.__all__)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
    assert loaded.__doc__
