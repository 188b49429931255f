"""Freed memory is kept while there is work and given back afterwards; missing packages are named."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ytuning.errors import MissingExtraError
from ytuning.system.machine import require

KEPT_AND_GIVEN_BACK = """
import resource, torch
from ytuning.system.machine import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

keep_freed_memory()
before = resident()
for _ in range(3):
    torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
held = resident()
give_back_freed_memory()
print(held - before, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    command = [sys.executable, "-c", KEPT_AND_GIVEN_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held, given_back = map(int, done.stdout.split())
    assert held > 15 << 20
    assert given_back > 15 << 20


ASKED = """
import ctypes

asked = []

class Library:
    gnu_get_libc_version = None

    def mallopt(self, option, value):
        asked.append((option, value))

ctypes.CDLL = lambda _: Library()

from ytuning.system.machine import keep_freed_memory

keep_freed_memory()
keep_freed_memory()
print(asked == [(-1, 2**31 - 1), (-2, 64 << 20), (-3, 32 << 20)])
"""

WITHOUT_GLIBC = """
import ctypes

def no_library(_):
    raise OSError("not found")

ctypes.CDLL = {}

from ytuning.system.machine import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
give_back_freed_memory()
print(True)
"""


@pytest.mark.parametrize(
    "script", [ASKED, WITHOUT_GLIBC.format("no_library"), WITHOUT_GLIBC.format("lambda _: object()")]
)
def test_glibc_is_asked_once_and_nothing_happens_without_it(script: str) -> None:
    # In a process of its own: what was asked of the library is remembered in a process.
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True\n"


# --- the most that was held -----------------------------------------------------------------------------------------

PEAK = """
import subprocess, sys
from ytuning.system.machine import peak_bytes

before = peak_bytes()
block = bytearray(200 << 20)
del block
child = subprocess.run([sys.executable, "-c", "from ytuning.system.machine import peak_bytes; print(peak_bytes())"],
                       capture_output=True, text=True, check=True)
print(before, peak_bytes(), child.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_is_of_the_process_itself() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after, child = map(int, done.stdout.split())
    assert after - before > 190 << 20
    assert child < 150 << 20, "not what its parent held"


PEAK_WITHOUT_PROC = """
import pathlib, resource, sys

pathlib.Path.read_text = lambda *_, **__: ""

from ytuning.system.machine import peak_bytes

expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(0.95 * expected < peak_bytes() < 1.05 * expected)
sys.modules["resource"] = None
print(peak_bytes())
"""


def test_peak_without_proc() -> None:
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", PEAK_WITHOUT_PROC], capture_output=True, text=True, check=True)
    assert done.stdout == "True\nNone\n"


# --- optional packages ----------------------------------------------------------------------------------------------


def test_a_module_that_is_there() -> None:
    assert require("json", "search") is json


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "no_such_package", None)
    for module in ("no_such_package", "no_such_package.part"):
        with pytest.raises(MissingExtraError) as caught:
            require(module, "search")
        assert str(caught.value) == (
            "the package 'no-such-package' is not installed. Install it with: pip install 'ytuning[search]' "
            "(in a clone of the repository: pip install -c constraints.txt '.[search]')"
        )


def test_a_package_that_lacks_a_part_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_more.py").write_text("import json.nothing\n")
    (tmp_path / "needs_other.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match=r"json\.nothing"):
        require("needs_more", "search")
    with pytest.raises(MissingExtraError, match="'no-such-package' is not installed"):
        require("needs_other", "search")


# --- forks ----------------------------------------------------------------------------------------------------------

FORKED = """
import os, signal, sys, torch
from ytuning.system.machine import one_thread, workers

torch.set_num_threads(2)
ones = torch.ones(4_000_000)
expected = float(ones.relu().sum())
with one_thread():
    child = os.fork()
    if not child:
        # Without a limit, torch waits in the child for threads that only the parent has.
        signal.alarm(20)
        with workers() as pool:
            sums = pool.map(lambda _: float(ones.relu().sum()), range(3))
        os._exit(0 if sums == [expected] * 3 and float(ones.relu().sum()) == expected else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if float(ones.relu().sum()) == expected else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_computes_and_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "0 2\n0\n"


# --- threads --------------------------------------------------------------------------------------------------------

WORKER = """
import torch
from ytuning.system.machine import one_thread, workers

def threads_after(_):
    with one_thread():
        pass
    return torch.get_num_threads()

torch.set_num_threads(2)
with workers() as pool:
    print(pool.map(threads_after, range(4)))
print(threads_after(0))
"""


def test_a_worker_that_asked_for_one_thread_keeps_one() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[1, 1, 1, 1]\n2\n"
