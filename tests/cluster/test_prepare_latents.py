"""How many threads may decode beside one encoder of prepare."""

import dataclasses
from typing import Any

from cluster.prepare_latents import EncodeWork, max_decode_threads

ON_CPU = EncodeWork(
    model="tiny", vae_dtype="float32", device="cpu", num_threads=3, batch_size=8,
    stored_dtype="float16", text=False,
)  # fmt: skip
ON_GPU = dataclasses.replace(ON_CPU, device="cuda")


def node(num_cpus: float, num_gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    """A node as ``ray.nodes()`` tells of it; resources that it lacks are not named."""
    found = {"CPU": num_cpus, "GPU": num_gpus, "memory": 1e9}
    return {"Alive": alive, "Resources": {name: num for name, num in found.items() if num}}


def test_decoding_on_the_cpu_may_use_the_threads_of_its_encoder() -> None:
    assert max_decode_threads(ON_CPU, [node(64, 8)]) == 3


def test_decoding_beside_a_gpu_may_use_its_share_of_the_nodes_cpus() -> None:
    assert max_decode_threads(ON_GPU, [node(16, 1)]) == 16
    assert max_decode_threads(ON_GPU, [node(64, 8), node(96), node(24, 4)]) == 6
    assert max_decode_threads(ON_GPU, [node(64, 8), node(4, 4, alive=False)]) == 8
    assert max_decode_threads(ON_GPU, [node(2, 4)]) == 1
    assert max_decode_threads(ON_GPU, [node(0, 1), {"Alive": False, "Resources": {}}]) == 1
