"""How busy every node of the connected cluster is, as Ray measures it there and serves it to Prometheus."""

import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

ANSWER_TIMEOUT_S = 5.0
MAX_ASKED_AT_ONCE = 16

GAUGES = {
    "ray_node_cpu_utilization": ("cpu_utilization_percentage", 1.0),
    "ray_node_disk_utilization_percentage": ("disk_usage_percentage", 1.0),
    "ray_node_mem_used": ("system_memory_usage_megabytes", 1e-6),
    "ray_node_network_receive_speed": ("network_receive_megabytes_per_s", 1e-6),
    "ray_node_network_send_speed": ("network_transmit_megabytes_per_s", 1e-6),
    "ray_node_gpus_utilization": ("utilization_percentage", 1.0),
    "ray_node_gram_used": ("memory_usage_megabytes", 1.0),
}
"""What Ray calls them; what MLflow's own monitor calls them, if it has them, and in which unit."""

Loads = Mapping[str, Mapping[str, float]]
"""Values by name, by node."""


def node_loads() -> Loads:
    """Of every live node that answers, by its address, and by the beginning of its id where several have one."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    addresses = [node["NodeManagerAddress"] for node in nodes]
    with ThreadPoolExecutor(MAX_ASKED_AT_ONCE) as pool:
        texts = list(pool.map(_served, nodes))
    loads = {}
    for node, text in zip(nodes, texts, strict=True):
        address = node["NodeManagerAddress"]
        name = address if addresses.count(address) == 1 else f"{address}-{node['NodeID'][:6]}"
        if values := load_of(text):
            loads[name] = values
    return loads


def load_of(text: str) -> dict[str, float]:
    """The values that a node serves, in Prometheus' format; GPU i's begin with gpu_i."""
    from prometheus_client.parser import text_string_to_metric_families

    # A node serves thousands of lines about its processes.
    lines = [line for line in text.splitlines() if line.startswith(tuple(GAUGES))]
    values = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name in GAUGES:
                name, unit = GAUGES[sample.name]
                gpu = sample.labels.get("GpuIndex")
                values[name if gpu is None else f"gpu_{gpu}_{name}"] = sample.value * unit
    return values


@contextmanager
def watched_loads(every_s: float, hear: Callable[[Loads], None]) -> Iterator[None]:
    """During the block all loads are handed on so often, from a thread; 0: never."""
    if every_s == 0:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(every_s, hear, ended), name="rememe-load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(ANSWER_TIMEOUT_S)


def _watch(every_s: float, hear: Callable[[Loads], None], ended: threading.Event) -> None:
    from ray.exceptions import RayError

    while not ended.wait(every_s):
        try:
            loads = node_loads()
        # The cluster is gone, which whoever works on it says.
        except (OSError, RuntimeError, RayError):
            return
        hear(loads)


def _served(node: Mapping[str, Any]) -> str:
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    # A node that is starting, leaving, or behind a wall from here.
    except (OSError, ValueError):
        return ""
    return text
