"""Samples with pictures become samples with moments, in their order, null where not finite."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from sdxl_core.contract.samples import samples_schema, staged_table
from sdxl_core.diffusion.conditioning import TextPair, encode_pairs
from sdxl_core.diffusion.sample_encoding import SampleEncoder
from sdxl_core.nets.autoencoder import encode_image
from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.paced_threads import PacedThreads
from tests.micro_models import MICRO_BASE
from tests.sdxl_core.storage.staged_samples import make_sample


@pytest.fixture
def model() -> SdxlModel:
    return random_model(MICRO_BASE, seed=1)


@pytest.fixture(scope="module")
def samples() -> pa.Table:
    """Five samples of one bucket, 16 x 24 pixels."""
    rows = [make_sample(0, row) for row in range(1, 15, 3)]
    return staged_table(rows, source_slice=0).drop_columns(["phash"])


def encoder(model: SdxlModel, **fields: object) -> SampleEncoder:
    values = {"device": "cpu", "batch_size": 2, "stored_dtype": "float32"} | fields
    return SampleEncoder(model=model, **values)


def test_moments_are_those_of_each_picture_whatever_the_batch(
    model: SdxlModel, samples: pa.Table
) -> None:
    encoded = encoder(model)(samples)
    assert encoded.schema == samples_schema(latents=True)
    assert encoded["id"].to_pylist() == samples["id"].to_pylist()
    for row, image in zip(encoded.to_pylist(), samples["image"].to_pylist(), strict=True):
        rgb_HWC = decode_image(image)
        image_BCHW = torch.from_numpy(rgb_HWC.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            expected_CHW = encode_image(model.vae, image_BCHW)[0].numpy()
        assert row["moments_shape"] == [8, 2, 3]
        found_CHW = np.frombuffer(row["moments"], row["moments_dtype"]).reshape(8, 2, 3)
        np.testing.assert_allclose(found_CHW, expected_CHW, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_moments_are_the_same_bits_whatever_the_number_of_decoding_threads(
    model: SdxlModel, samples: pa.Table, batch_size: int
) -> None:
    plain = encoder(model, batch_size=batch_size)(samples)
    decoders = PacedThreads(4)
    with_many = encoder(model, batch_size=batch_size, decoders=decoders)
    with_many(samples)  # measures how long decoding takes
    for _ in range(20):
        decoders.consumed(1, 1e-9)  # a GPU that nothing keeps up with
    assert decoders.pace.num_threads == 4
    with ThreadPoolExecutor(2) as groups:  # as an encoder of prepare works at two groups
        assert list(groups.map(with_many, [samples] * 4)) == [plain] * 4


def test_encoder_measures_decoding_and_encoding(model: SdxlModel, samples: pa.Table) -> None:
    one = encoder(model)
    assert one.decoders.pace.prepare_s == one.decoders.pace.consume_s == 0
    one(samples)
    pace = one.decoders.pace
    assert 0 < pace.prepare_s < 1
    assert 0 < pace.consume_s < 10
    assert (pace.num_threads, pace.max_threads) == (1, 1)


def test_text_states_are_those_of_every_caption_in_order(
    model: SdxlModel, samples: pa.Table
) -> None:
    encoded = encoder(model, text=True)(samples)
    assert encoded.schema == samples_schema(latents=True, text=True)
    for row in encoded.to_pylist():
        states = encode_pairs(model, [TextPair(text, text) for text in row["captions"]])
        found_KTD = np.frombuffer(row["text_states"], np.float32).reshape(row["text_shape"])
        expected_KTD = torch.stack([state.context_TD for state in states]).numpy()
        np.testing.assert_allclose(found_KTD, expected_KTD, atol=1e-5)
        pooled_KP = torch.stack([state.pooled_P for state in states]).numpy()
        np.testing.assert_allclose(
            np.frombuffer(row["text_pooled"], np.float32), pooled_KP.ravel(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("scale", "stored_dtype", "is_null"),
    [(1e6, "float16", True), (1e6, "float32", False), (1e38, "float32", True)],
)
def test_moments_that_are_not_finite_where_they_are_stored_are_null(
    scale: float, stored_dtype: str, is_null: bool, model: SdxlModel, samples: pa.Table
) -> None:
    with torch.no_grad():
        model.vae.quant_conv.weight.mul_(scale)
        model.vae.quant_conv.weight.mul_(10)
    encoded = encoder(model, stored_dtype=stored_dtype)(samples)
    assert encoded["moments"].is_null().to_pylist() == [is_null] * samples.num_rows
