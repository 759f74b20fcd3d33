"""Load of this machine, through a spool like all figures, under the names of MLflow's page of system metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from kebiolm.console import error_console
from kebiolm.errors import UserError
from kebiolm.tracking.metric_log import MetricLog
from kebiolm.tracking.metric_names import SYSTEM

SYSTEM_RECORDS = "system_metrics.jsonl"
"""Processor, memory, disk, network and GPUs of the machine of global rank 0; written by the sender's process."""

_MEGABYTE = 1e6


class SystemMetrics(threading.Thread):
    """Samples this machine until it is stopped.

    Args:
        output: the run's folder; its disk is the one that is watched.
        seconds: between two samples.
    """

    def __init__(self, output: Path, seconds: float) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._output, self._seconds = output, seconds
        self._log = MetricLog(output, SYSTEM_RECORDS)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample at once, and then every so many seconds."""
        parts = [_Part(_processor_and_memory), _Part(lambda: _disk(self._output)), _Part(_network), _Part(_gpus)]
        step = self._log.last_step(SYSTEM)
        while True:
            step += 1
            metrics = {name: round(value, 1) for part in parts for name, value in part.measure().items()}
            self._log.append(SYSTEM, step, metrics)
            if self._stopped.wait(self._seconds):
                return

    def stop(self) -> None:
        """End after the sample that is under way."""
        self._stopped.set()
        self.join()
        try:
            self._log.close()
        except UserError as error:
            error_console.print(f"[yellow]system metrics:[/] {error}")


Measure = Callable[[], dict[str, float]]


class _Part:
    """One part of the machine; where it cannot be measured, that is said once and the other parts go on.

    Args:
        prepare: returns what measures it.
    """

    def __init__(self, prepare: Callable[[], Measure]) -> None:
        self._prepare = prepare
        self._measure: Measure | None = None
        self._was_said = False

    def measure(self) -> dict[str, float]:
        """The part's figures by name; none where it cannot be measured now."""
        try:
            self._measure = self._measure or self._prepare()
            return self._measure()
        except Exception as error:  # a driver, a container or a card that is gone: each has errors of its own
            if not self._was_said:
                self._was_said = True
                error_console.print(f"[yellow]system metrics, a part is left out:[/] {escape(repr(error))}")
            return {}


def _processor_and_memory() -> Measure:
    import psutil

    psutil.cpu_percent()  # its first answer means nothing: it counts from the call before

    def measure() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }

    return measure


def _disk(folder: Path) -> Measure:
    import psutil

    def measure() -> dict[str, float]:
        disk = psutil.disk_usage(str(folder))
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
        }

    return measure


def _network() -> Measure:
    import psutil

    first = psutil.net_io_counters()

    def measure() -> dict[str, float]:
        now = psutil.net_io_counters()
        return {
            "network_receive_megabytes": (now.bytes_recv - first.bytes_recv) / _MEGABYTE,
            "network_transmit_megabytes": (now.bytes_sent - first.bytes_sent) / _MEGABYTE,
        }

    return measure


def _gpus() -> Measure:
    """Of all GPUs of this machine; none where NVIDIA's library (`pip install nvidia-ml-py`) is absent or finds none."""
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        monitor = GPUMonitor()
    except (ImportError, RuntimeError):
        return dict

    def measure() -> dict[str, float]:
        monitor.collect_metrics()
        measured = monitor.aggregate_metrics()
        monitor.clear_metrics()
        return measured

    return measure
