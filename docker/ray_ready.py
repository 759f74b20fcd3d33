#!/usr/bin/env python
"""Connect to this container's Ray node as a job does, with the token, and print the number of CPUs in the cluster.

The health check of `ray-head` and `ray-worker`: its status is not 0 where no job could run, because there is no
cluster, the token is wrong, or the head has given this node up.
"""

import logging
import sys

import ray

ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
this_node = ray.get_runtime_context().get_node_id()
if not any(node["NodeID"] == this_node and node["Alive"] for node in ray.nodes()):
    sys.exit("the head has given this node up")
print(int(ray.cluster_resources().get("CPU", 0)))
