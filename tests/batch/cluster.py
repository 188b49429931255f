"""A cluster of Ray on one machine: each node has a network of its own, whose cable can be pulled."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORT = 6399
# A node that does not answer is given up after some seconds, instead of half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Cluster:
    """A head without processors and two nodes with one each, in networks of their own on a bridge."""

    nodes = ("first", "second")

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("networks of their own need root and the command ip (Debian's package iproute2)")
        self._mark, self._number = f"yt{os.getpid() % 10000}", os.getpid() % 200
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **own, **QUICK, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.address = f"{self._ip('head')}:{PORT}"
        self._folder = folder

    def start(self) -> None:
        """Make the networks and start Ray in each."""
        if _ip("link", "add", self._bridge, "type", "bridge", check=False):
            pytest.skip("this machine allows no bridge between networks")
        _ip("link", "set", self._bridge, "up")
        for node in ("head", *self.nodes):
            space, cable = self.space(node), self._cable(node)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self._bridge, "up")
            _ip("-n", space, "addr", "add", f"{self._ip(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        # The names of sockets have a largest length, and paths of tests are long.
        self._temporary = Path("/tmp", f"{self._mark}ray")
        common = ["--disable-usage-stats", "--object-store-memory", str(100 << 20)]
        head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        self._ray("head", [*head, f"--temp-dir={self._temporary}", *common])
        for node in self.nodes:
            self._ray(node, [f"--address={self.address}", "--num-cpus=1", *common])

    def run(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command of ytuning on the head."""
        return subprocess.Popen(
            self._within("head", [sys.executable, "-m", "ytuning", *words]),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
        )

    def pids(self, node: str) -> list[int]:
        """Processes of a node."""
        listed = subprocess.run(["ip", "netns", "pids", self.space(node)], capture_output=True, text=True, check=False)
        return [int(word) for word in listed.stdout.split()]

    def runs_a_unit(self, node: str) -> bool:
        """Whether an actor on the node is in the middle of a unit; Ray says so in the name of the process."""
        for pid in self.pids(node):
            try:
                if b"_Actor.run" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
            except OSError:
                pass
        return False

    def kill_actors(self, node: str) -> None:
        """Kill the worker processes of a node."""
        for pid in self.pids(node):
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Actor"):
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

    def kill_node(self, node: str) -> None:
        """Kill all of a node, as a machine that loses its power."""
        for pid in self.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pull_cable(self, node: str) -> None:
        """Cut a node off; its processes go on."""
        _ip("link", "set", self._cable(node), "down")

    def renew(self, node: str) -> None:
        """Kill what is left of a node, and start it again with its cable in place."""
        self._kill_all(node)
        _ip("link", "set", self._cable(node), "up")
        self._ray(node, [f"--address={self.address}", "--num-cpus=1", "--object-store-memory", str(100 << 20)])

    def _kill_all(self, node: str) -> None:
        deadline = time.monotonic() + 20
        while self.pids(node) and time.monotonic() < deadline:
            self.kill_node(node)
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill everything, and remove the networks."""
        for node in ("head", *self.nodes):
            self._kill_all(node)
            # The cable goes first, as the next one of its name could not be made otherwise.
            _ip("link", "del", self._cable(node), check=False)
            _ip("netns", "del", self.space(node), check=False)
        _ip("link", "del", self._bridge, check=False)
        shutil.rmtree(getattr(self, "_temporary", "/nonexistent"), ignore_errors=True)

    def space(self, node: str) -> str:
        """Name of a node's network."""
        return f"{self._mark}{node}"

    @property
    def _bridge(self) -> str:
        return f"{self._mark}br"

    def _cable(self, node: str) -> str:
        return f"{self._mark}{node[:5]}"

    def _ip(self, node: str) -> str:
        return f"10.99.{self._number}.{1 + ('head', *self.nodes).index(node)}"

    def _within(self, node: str, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.space(node), *words]

    def _ray(self, node: str, words: Sequence[str]) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        command = self._within(node, [ray, "start", f"--node-ip-address={self._ip(node)}", *words])
        # The processes of Ray keep the streams open, so that reading them would wait for ever.
        log = self._folder / f"{node}.log"
        with log.open("wb") as stream:
            done = subprocess.run(
                command, env=self.environment, stdout=stream, stderr=stream, cwd=self._folder, timeout=90, check=False
            )
        assert done.returncode == 0, log.read_text()


def _ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], capture_output=True, check=check).returncode
