"""The chain in one process: the same bits as the parts of the cluster's workers, and bad rows."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import condition
from sdxl_core.diffusion.decoding import decode_row
from sdxl_core.diffusion.engine import Engine, unet_network
from sdxl_core.diffusion.generate import GeneratedImage, generate
from sdxl_core.diffusion.refinement import base_task, refiner_task
from sdxl_core.diffusion.service import EngineService
from sdxl_core.diffusion.text_stage import TextStage
from tests.micro_models import MICRO_BASE, attentive_model, micro_model

BASE, REFINER = micro_model("base"), micro_model("refiner")

ROWS = [
    Request(**({"height": 64, "width": 64, "steps": 3} | values))
    for values in (
        {"prompt": "a red fox", "seed": 1},
        {"prompt": "a blue box", "seed": 2, "width": 72, "steps": 2},
        {"prompt": "a red fox", "seed": 3, "refiner": True, "handoff": 0.5, "steps": 4},
        {"prompt": "a hat", "seed": 4, "refiner": True, "strength": 0.5, "negative_prompt": "b"},
        {"prompt": "a hat", "seed": 5, "guidance_scale": 1.0, "sampler": "heun"},
        {"prompt": "a hat", "seed": 6, "sampler": "euler_ancestral", "refiner": True},
    )
]


def images(requests, **options) -> list[GeneratedImage]:
    return list(generate(requests, model=BASE, **({"refiner": REFINER} | options)))


def test_images_have_the_bits_that_a_service_makes_of_each_row_alone():
    models = {"base": BASE, "refiner": REFINER}
    expected = []
    with EngineService(
        {kind: Engine(unet_network(model.unet), slots_for=2) for kind, model in models.items()}
    ) as service:
        for row in ROWS:
            (texts,) = TextStage(models).encode([row])
            task = base_task(row, BASE, *condition(row, BASE, *texts["base"]))
            result = service.submit("base", task).result(60)
            if row.refiner:
                task = refiner_task(
                    row,
                    REFINER,
                    *condition(row, REFINER, *texts["refiner"]),
                    latents_CHW=result.latents_CHW,
                    num_draws_done=result.num_draws_done,
                )
                result = service.submit("refiner", task).result(60)
            expected.append(result.latents_CHW)

    found = images(ROWS, slots=2)

    for row, image, latents_CHW in zip(ROWS, found, expected, strict=True):
        assert image.error is None
        assert image.request is row
        assert image.num_slots == 2
        assert torch.equal(image.latents_CHW, latents_CHW)
        rgb_HWC, _ = decode_row(BASE, latents_CHW, device="cpu")
        np.testing.assert_array_equal(image.rgb_HWC, rgb_HWC)
        assert rgb_HWC.shape == (row.height, row.width, 3)


def test_images_come_in_the_order_of_the_requests_whatever_their_length():
    steps = [5, 1, 3, 1, 1, 4]
    rows = [dataclasses.replace(ROWS[0], steps=number, seed=number) for number in steps]

    assert [image.request.steps for image in images(rows)] == steps


def test_an_endless_iterable_is_taken_a_few_at_a_time():
    taken = []

    def requests():
        for seed in itertools.count():
            taken.append(seed)
            yield dataclasses.replace(ROWS[0], seed=seed, steps=1)

    first = list(itertools.islice(generate(requests(), model=BASE), 3))

    assert [image.request.seed for image in first] == [0, 1, 2]
    assert len(taken) < 50


def test_bad_rows_end_with_an_error_and_the_others_go_on():
    good = ROWS[0]
    bad = dataclasses.replace(good, refiner=True, handoff=0.999)

    found = images([good, bad, good])

    assert found[1].error.reason == "invalid_handoff"
    assert found[1].rgb_HWC is None
    np.testing.assert_array_equal(found[0].rgb_HWC, found[2].rgb_HWC)


def test_a_row_that_wants_a_refiner_fails_where_there_is_none():
    found = images(ROWS[:3], refiner=None)

    assert [image.error is None for image in found] == [True, True, False]
    assert "no refiner model is loaded" in found[2].error.detail


def test_a_picture_that_is_not_finite_is_an_error_and_no_black_square():
    overflowing = dataclasses.replace(BASE, vae=_overflowing_vae())

    (image,) = generate(ROWS[:1], model=overflowing, slots=1)

    assert isinstance(image.error, RowError)
    assert image.error.reason == "non_finite_image"
    assert "autoencoder" in image.error.detail
    assert image.rgb_HWC is None
    assert torch.isfinite(image.latents_CHW).all()


def _overflowing_vae():
    vae = attentive_model(MICRO_BASE, seed=3).vae
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("inf"))
    return vae


def test_cut_tokens_are_reported_on_the_image():
    rows = [dataclasses.replace(ROWS[1], prompt="fox " * 90), ROWS[1]]

    assert [image.num_tokens_cut for image in images(rows)] == [15, 0]


def test_no_requests_make_no_images():
    assert images([]) == []


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"model": REFINER}, "model: found the refiner"),
        ({"model": BASE, "refiner": BASE}, "refiner: found the base"),
    ],
)
def test_models_in_the_wrong_place_are_refused(models, message):
    with pytest.raises(ConfigError, match=message):
        list(generate(ROWS, **models))


def test_a_slot_number_that_is_not_registered_is_refused():
    with pytest.raises(ConfigError, match="found 3, expected one of"):
        list(generate(ROWS, model=BASE, slots=3))
