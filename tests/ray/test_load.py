"""The load of every node of a cluster of several, each under a name of its own, while something is done."""

import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster
from waiting import wait_until

from orchestrator.execution.load import Loads, node_loads, watched_loads

pytestmark = pytest.mark.ray

START_TIMEOUT_S = 180
"""Until every node has measured itself; a lonely one takes 17 s on a busy machine."""


def test_every_node_is_heard_under_its_own_name() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        wait_until(lambda: len(node_loads()) == 2, node_loads, interval_s=1)
        heard: list[Loads] = []
        twice = threading.Event()

        def hear(loads: Loads) -> None:
            heard.append(loads)
            if len(heard) == 2:
                twice.set()

        with watched_loads(0.2, hear):
            assert twice.wait(30)
        ids = {node["NodeID"][:6] for node in ray.nodes()}
        for loads in heard:
            assert {name.rpartition("-")[2] for name in loads} == ids  # two at one address
            for load in loads.values():
                assert 0 <= load["cpu_utilization_percentage"] <= 100
                assert load["system_memory_usage_megabytes"] > 100
        num_heard = len(heard)
        time.sleep(0.6)
        assert len(heard) == num_heard
        with watched_loads(0, lambda _: pytest.fail("heard though never was asked for")):
            time.sleep(0.3)
    finally:
        ray.shutdown()
        cluster.shutdown()
