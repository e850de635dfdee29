"""The workers of a Slurm job step, from the variables that `srun` sets in each of its tasks."""

import os

from .._check import require
from .._keras import slurm_hosts, slurm_tasks, tf

_NAMES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID",
          "SLURM_LOCALID")
_FIRST_PORT, _PORTS = 20_000, 11_900                       # below those that systems hand out by themselves


def resolver():
    """The cluster resolver of this task: the tasks of each node in turn are the workers.

    TensorFlow's SlurmClusterResolver asks nvidia-smi, fails without a GPU, and sorts the nodes by name while Slurm
    numbers its tasks in the order of the nodes. Here a worker's place follows from its node and its place there.
    """
    found = {name: os.environ.get(name) for name in _NAMES}
    require(all(found.values()), "the variables of a Slurm job step must be set", do="Start the script with srun.",
            **{name: value for name, value in found.items() if not value})
    try:
        hosts, tasks = slurm_hosts(found["SLURM_STEP_NODELIST"]), slurm_tasks(found["SLURM_STEP_TASKS_PER_NODE"])
        job, step, node, place = (int(found[name]) for name in (*_NAMES[:2], *_NAMES[4:]))
    except ValueError:
        hosts, tasks, job, step, node, place = [], [], 0, 0, 0, 0
    require(hosts and len(hosts) == len(tasks) and 0 <= node < len(hosts) and 0 <= place < tasks[node],
            "the variables of the Slurm job step do not fit together", **found)
    port = _FIRST_PORT + (97 * job + step) % _PORTS
    workers = [f"{host}:{port + local}" for host, count in zip(hosts, tasks, strict=True) for local in range(count)]
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": workers}), task_type="worker", task_id=sum(tasks[:node]) + place,
        rpc_layer="grpc")
