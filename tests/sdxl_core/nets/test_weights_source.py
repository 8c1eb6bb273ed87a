"""Files of the released size are recognised from their headers alone."""

import json
import math
import struct

import pytest
import torch

from sdxl_core.nets.build import build_networks
from sdxl_core.nets.layouts import network_shapes, single_file_slots
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER
from sdxl_core.nets.weights_matching import match_tensors
from sdxl_core.nets.weights_source import open_source


def write_hollow_file(path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> None:
    """A float16 safetensors file of full length whose tensors are holes, which take no disk."""
    header: dict = {"__metadata__": metadata}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + stop)


@pytest.mark.parametrize(
    ("preset", "constants", "num_tensors", "num_gigabytes"),
    [
        (
            SDXL_BASE,
            {
                "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
                "conditioner.embedders.1.model.logit_scale": (),
            },
            2515,
            6.94,
        ),
        (SDXL_REFINER, {"conditioner.embedders.0.model.logit_scale": ()}, 1858, 6.08),
    ],
    ids=["base", "refiner"],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_single_file_with_the_released_tensors_is_the_released_preset(
    preset, constants, num_tensors, num_gigabytes, prediction, tmp_path
):
    with torch.device("meta"):
        shapes = network_shapes(build_networks(preset))
    stored = {slot.stored_name: slot.stored_shape for slot in single_file_slots(preset, shapes)}
    path = tmp_path / "released.safetensors"
    write_hollow_file(path, {**stored, **constants}, {"modelspec.prediction_type": prediction})

    source = open_source(path, variant=None)

    assert source.preset == preset
    assert source.settings.force_zeros_for_empty_prompt == (preset.kind == "base")
    expected = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    assert source.settings.prediction_type == expected
    assert len(source.files[0].header.tensors) == num_tensors
    assert path.stat().st_size / 1e9 == pytest.approx(num_gigabytes, abs=0.01)
    assert len(match_tensors(source, shapes)) == num_tensors - len(constants)
