"""What a server counts (Prometheus) and logs; texts are in neither."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ytuning.tasks.cascade import CascadeFigures

__all__ = ["Telemetry", "log", "log_to_stderr"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_logger = logging.getLogger("ytuning.server")


class Telemetry:
    """Counters of one server process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry, "namespace": "ytuning"}
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **common)
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request to its reply.", ["route"], buckets=SECONDS, **common
        )
        self.in_flight = Gauge("requests_in_flight", "Requests that are being answered.", **common)
        self.queue_tokens = Gauge("queue_tokens", "Approximate number of waiting tokens.", **common)
        self.batch_tokens = Histogram("batch_tokens", "Tokens in a batch.", buckets=TOKENS, **common)
        self.batch_texts = Histogram("batch_texts", "Distinct texts in a batch.", buckets=TEXTS, **common)
        self.encoder_seconds = Counter("encoder_seconds", "Seconds spent in the encoder.", **common)
        self.head_seconds = Counter("head_seconds", "Seconds spent in heads and their calibration.", **common)
        self.answers = Counter(
            "answers", "Texts answered, by task. Equal texts in a batch count once.", ["task"], **common
        )
        self.cascade_answers = Counter(
            "cascade_answers", "Texts answered by each head of a task in a cascade.", ["task", "head"], **common
        )
        self.cascade_answered = Gauge(
            "cascade_light_share", "Share of the validation rows that the light head answers.", ["task"], **common
        )
        self.cascade_bound = Gauge(
            "cascade_changed_bound",
            "Upper bound of the share of answers that a cascade changes, from validation rows.",
            ["task"],
            **common,
        )
        self.truncated = Counter("truncated_texts", "Texts that were too long and were cut.", **common)
        self.rejected = Counter("rejected_requests", "Requests refused, by reason.", ["reason"], **common)
        self.dropped = Counter(
            "dropped_texts", "Texts that were not computed because their clients had gone.", **common
        )
        self.failures = Counter("failures", "Texts that could not be computed, by kind of error.", ["kind"], **common)
        self.fallback_requests = Counter("fallback_requests", "Requests sent to the fallback server.", **common)
        self.fallback_failures = Counter(
            "fallback_failures", "Requests that the fallback server did not answer, by reason.", ["reason"], **common
        )
        self.fallback_breaker_open = Gauge(
            "fallback_breaker_open", "1 while the fallback server is left alone after failures, else 0.", **common
        )
        self.tasks = Gauge("tasks", "Tasks that are served.", **common)
        self.reloads = Counter(
            "task_changes", "Tasks that were added, changed, removed or refused.", ["what"], **common
        )
        self.started = time.time()

    def count_answers(self, task: str, texts: int, by_light: np.ndarray | None) -> None:
        """Count the texts that a task has answered, and where it is in a cascade the head of each, (texts,) bool."""
        self.answers.labels(task=task).inc(texts)
        if by_light is not None:
            light = int(by_light.sum())
            self.cascade_answers.labels(task=task, head="light").inc(light)
            self.cascade_answers.labels(task=task, head="default").inc(texts - light)

    def show_cascades(self, figures: Mapping[str, CascadeFigures]) -> None:
        """Show what validation says of the cascade of each task that is in one."""
        for gauge in (self.cascade_answered, self.cascade_bound):
            gauge.clear()
        for task, own in figures.items():
            self.cascade_answered.labels(task=task).set(own.answered)
            self.cascade_bound.labels(task=task).set(own.bound)


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """A line of JSON on stderr; without a handler (in a program of somebody else's) it goes where their logs go."""
    if _logger.isEnabledFor(level):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        _logger.log(level, json.dumps({"time": f"{stamp}Z", "event": event, **fields}, ensure_ascii=False))


def log_to_stderr() -> None:
    """Let :func:`log` write to stderr, one line an event and nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.handlers, _logger.propagate = [handler], False
    _logger.setLevel(logging.INFO)
