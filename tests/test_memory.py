"""Freed memory: kept while there is work, given back afterwards, and nothing happens without glibc."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from ytuning import memory

FAULTS = """
import resource, sys, torch
from ytuning.memory import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    keep_freed_memory()
    keep_freed_memory()
def work():
    for _ in range(50):
        torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = resident()
give_back_freed_memory()
print(faults, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    found = {}
    for how in ("keep", "usual"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        found[how] = [int(word) for word in done.stdout.split()]
    assert found["keep"][0] < 50 < found["usual"][0]  # once filled, the pages are there
    assert found["keep"][1] > 15 << 20


@pytest.mark.parametrize("missing", [lambda _: (_ for _ in ()).throw(OSError()), lambda _: object()])
def test_without_glibc_nothing_happens(missing: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", missing)
    for function in (memory._glibc, memory.keep_freed_memory):
        function.cache_clear()
    try:
        memory.keep_freed_memory()
        memory.give_back_freed_memory()
    finally:
        for function in (memory._glibc, memory.keep_freed_memory):
            function.cache_clear()
