"""What the digest of a model depends on, and what it does not."""

import random

import pytest
import torch

from sdxl_core.nets.digest import Digest, networks_digest
from sdxl_core.nets.layouts import diffusers_slots, network_shapes


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return {"unet": torch.nn.Linear(3, 2), "vae": torch.nn.Linear(2, 2)}


def test_digest_does_not_depend_on_the_order_of_the_tensors(refiner):
    tensors = [
        (component, name, tensor)
        for component, network in refiner.networks.items()
        for name, tensor in network.state_dict().items()
    ]
    random.Random(0).shuffle(tensors)
    digest = Digest(diffusers_slots(network_shapes(refiner.networks)))
    for component, name, tensor in tensors:
        digest.add_network_tensor(component, name, tensor)
    assert digest.hexdigest() == networks_digest(refiner.networks)


def test_smallest_change_of_one_number_changes_the_digest(networks):
    before = networks_digest(networks)
    weight = networks["vae"].weight.data
    weight[1, 1] = torch.nextafter(weight[1, 1], torch.tensor(9.0))
    assert networks_digest(networks) != before


def test_same_numbers_under_other_names_or_shapes_have_another_digest(networks):
    before = networks_digest(networks)
    assert networks_digest({"unet": networks["unet"], "text": networks["vae"]}) != before
    networks["unet"].weight = torch.nn.Parameter(networks["unet"].weight.data.view(3, 2))
    assert networks_digest(networks) != before


def test_digest_of_a_precision_is_that_of_the_rounded_networks(networks):
    half = {f"{c}/{n}": torch.float16 for c in networks for n in ("weight", "bias")}
    rounded = networks_digest(networks, dtypes=half)
    assert rounded != networks_digest(networks)
    assert rounded == networks_digest({c: n.half() for c, n in networks.items()})
