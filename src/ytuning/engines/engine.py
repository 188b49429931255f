"""Which engine runs the workers of a run, how many there are and what each of them may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from ytuning.engines.pool import Pool, Work
from ytuning.errors import InputError, argument, must_be_one_of, parameter

__all__ = ["Engine", "EngineName"]

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class Engine:
    """Workers of a run.

    Attributes:
        name: "local" for processes of this machine; "ray" for actors of a Ray cluster.
        workers: how many there are.
        attempts: times that a unit is tried.
        cpus: processors of a worker; None: all of this machine are shared out, and with Ray it is 1.
        gpus: graphics processors of a worker of Ray, also a fraction of one.
        address: address of a Ray cluster, or "auto"; None starts Ray on this machine.

    Raises:
        InputError: a value is not allowed, or would do nothing.
    """

    name: EngineName = "local"
    workers: int = 1
    attempts: int = 3
    cpus: int | None = None
    gpus: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(EngineName):
            raise InputError(must_be_one_of(parameter("engine"), self.name, get_args(EngineName)))
        for name, value in (("workers", self.workers), ("attempts", self.attempts), ("worker_cpus", self.cpus)):
            if value is not None and value < 1:
                raise InputError(f"{parameter(name)} must be at least 1. Got {value} instead.")
        if self.gpus < 0:
            raise InputError(f"{parameter('worker_gpus')} must be at least 0. Got {self.gpus} instead.")
        if not (self.gpus <= 1 or float(self.gpus).is_integer()):
            problem = f"above 1, {parameter('worker_gpus')} must be a whole number. Got {self.gpus} instead. "
            raise InputError(f"{problem}Several workers can share a GPU, with 0.5 or less.")
        if self.name != "ray" and (self.address is not None or self.gpus):
            name = "address" if self.address is not None else "worker_gpus"
            problem = f"{parameter(name)} is for the engine 'ray'. "
            raise InputError(f"{problem}Leave it out, or use {argument('engine', 'ray')}.")

    def open_pool(self, work: Work) -> Pool:
        """Make the pool of the workers, none of which is started yet.

        Raises:
            MissingExtraError: Ray is not installed.
            InputError: the cluster cannot be reached.
        """
        if self.name == "ray":
            from ytuning.engines.ray_actors import RayPool

            return RayPool(work, workers=self.workers, cpus=self.cpus or 1, gpus=self.gpus, address=self.address)
        from ytuning.engines.processes import ProcessPool

        threads = self.cpus
        if threads is None and self.workers > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Workers that each took all processors would wait for each other.
            available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            threads = max(1, available // self.workers)
        return ProcessPool(work, threads=threads)
