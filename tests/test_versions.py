"""What is imported of optional packages, and what is said where one is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ytuning.errors import MissingExtraError
from ytuning.system.versions import require


def test_a_module_that_is_there() -> None:
    assert require("json", "search") is json


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "no_such_package", None)
    for module in ("no_such_package", "no_such_package.part"):
        with pytest.raises(MissingExtraError) as caught:
            require(module, "search")
        assert str(caught.value) == (
            "the package 'no-such-package' is not installed. Install it with: pip install 'ytuning[search]'"
        )


def test_a_package_that_lacks_a_part_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_more.py").write_text("import json.nothing\n")
    (tmp_path / "needs_other.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match=r"json\.nothing"):
        require("needs_more", "search")
    with pytest.raises(MissingExtraError, match="'no-such-package' is not installed"):
        require("needs_other", "search")
