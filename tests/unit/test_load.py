"""What a node's metrics say of its load."""

from orchestrator.execution.load import load_of

SERVED = """# HELP ray_node_cpu_utilization Total CPU usage on a ray node
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{SessionName="s",ip="192.0.2.2"} 93.5
# TYPE ray_node_mem_used gauge
ray_node_mem_used{SessionName="s",ip="192.0.2.2"} 2.5e9
ray_node_mem_used_host{SessionName="s",ip="192.0.2.2"} 7.5e9
# TYPE ray_node_gpus_utilization gauge
ray_node_gpus_utilization{GpuDeviceName="H100",GpuIndex="0",ip="192.0.2.2"} 80.0
ray_node_gpus_utilization{GpuDeviceName="H100",GpuIndex="1",ip="192.0.2.2"} 20.0
ray_node_gram_used{GpuDeviceName="H100",GpuIndex="1",ip="192.0.2.2"} 512.0
ray_node_network_send_speed{ip="192.0.2.2"} 3000000.0
ray_tasks{State="RUNNING"} 4.0
"""


def test_a_node_has_one_value_of_each_and_each_of_its_gpus_too() -> None:
    assert load_of(SERVED) == {
        "cpu_utilization_percentage": 93.5,
        "system_memory_usage_megabytes": 2500.0,
        "gpu_0_utilization_percentage": 80.0,
        "gpu_1_utilization_percentage": 20.0,
        "gpu_1_memory_usage_megabytes": 512.0,
        "network_transmit_megabytes_per_s": 3.0,
    }
    assert load_of("") == {}
