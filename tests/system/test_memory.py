"""Freed memory: kept while there is work, given back afterwards, and nothing happens without glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ytuning.system import machine as memory

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


def test_peak_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: "")
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert memory.peak_bytes() == pytest.approx(expected, rel=0.05)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes() is None
