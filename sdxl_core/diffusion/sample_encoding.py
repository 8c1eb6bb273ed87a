"""Prepared pictures to what the networks see of them: the autoencoder's moments, and text states.

In: samples of one bucket with their pictures. Out: the same rows in the same order with
``samples_schema(latents=True)``. Moments are unscaled, mean and then log-variance, so that training
can draw from them; see ``nets.autoencoder.sample_latents``.
"""

# Shapes: B pictures of a batch, C=3 or 8 moments, H W pixels or, in moments, an eighth of them;
# K captions of a row, T tokens, D text width, P pooled width.

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN, samples_schema
from sdxl_core.diffusion.conditioning import TextPair, encode_pairs
from sdxl_core.nets.autoencoder import encode_image
from sdxl_core.nets.model import SdxlModel
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.paced_threads import PacedThreads

StoredDtype = Literal["float16", "float32"]

# Decoded pictures that wait for the autoencoder, in batches; each caller has as many.
_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleEncoder:
    """A model's autoencoder, and its text encoders if text is wanted, as a function of samples.

    Several threads may call it: they share the networks, which make one batch at a time, and the
    threads that decode. Memory beside the tables: for each caller ``_BATCHES_AHEAD`` batches of
    decoded pictures and one picture for each decoding thread, 3 MB for a megapixel.

    Args:
        model: with the autoencoder loaded, and the text encoders if ``text``.
        device: where the networks are.
        batch_size: pictures in one call of the autoencoder.
        stored_dtype: of moments and text states in the table.
        text: encode captions too.
        decoders: decode pictures while the autoencoder is at work; moments do not depend on them.
    """

    model: SdxlModel
    device: str
    batch_size: int
    stored_dtype: StoredDtype = "float16"
    text: bool = False
    decoders: PacedThreads = dataclasses.field(default_factory=PacedThreads)
    _networks: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)

    def __call__(self, samples: pa.Table) -> pa.Table:
        """The rows of ``samples``, all of one bucket, with moments in place of pictures.

        Moments that are not finite, in the networks or as they are stored, are null.

        Raises:
            RowError: if a picture cannot be decoded, which a finished one can.
        """
        columns: dict[str, Any] = {name: samples[name] for name in samples.column_names}
        images = columns.pop(SAMPLE_IMAGE_COLUMN)
        moments = [one for some in self._moments(images) for one in some]
        columns["moments"] = pa.array(
            [None if one is None else one.tobytes() for one in moments], pa.binary()
        )
        columns["moments_dtype"] = pa.array([self.stored_dtype] * len(moments), pa.string())
        shapes = [_moments_shape(row) for row in zip(*_sizes(samples), strict=True)]
        columns["moments_shape"] = pa.array(shapes, pa.list_(pa.int32()))
        if self.text:
            columns |= self._texts(samples["captions"].to_pylist())
        schema = samples_schema(latents=True, text=self.text)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _moments(self, images: pa.ChunkedArray) -> Iterator[list[npt.NDArray[Any] | None]]:
        files = (image.as_py() for image in images)
        num_ahead = _BATCHES_AHEAD * self.batch_size
        pictures = self.decoders.map_in_order(decode_image, files, num_ahead=num_ahead)
        while batch := list(itertools.islice(pictures, self.batch_size)):
            moments_BCHW = self._encode(np.stack(batch))
            with np.errstate(over="ignore", invalid="ignore"):  # looked for right after
                stored_BCHW = moments_BCHW.astype(self.stored_dtype)
            yield [_finite(one) for one in stored_BCHW]

    @torch.inference_mode()
    def _encode(self, rgb_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with self._networks:
            started = time.perf_counter()
            image_BCHW = torch.from_numpy(rgb_BHWC).permute(0, 3, 1, 2).to(self.device)
            moments_BCHW = encode_image(self.model.vae, image_BCHW.float() / 127.5 - 1)
            found: npt.NDArray[np.float32] = moments_BCHW.cpu().numpy()
            self.decoders.consumed(len(rgb_BHWC), time.perf_counter() - started)
        return found

    def _texts(self, captions: Sequence[Sequence[str]]) -> dict[str, pa.Array]:
        """The columns of text states; each distinct caption of the bucket is encoded once."""
        distinct = list(dict.fromkeys(text for texts in captions for text in texts))
        with self._networks:
            encoded = encode_pairs(self.model, [TextPair(text, text) for text in distinct])
        found = dict(zip(distinct, encoded, strict=True))
        states_KTD = [[found[text].context_TD for text in texts] for texts in captions]
        pooled_KP = [[found[text].pooled_P for text in texts] for texts in captions]
        shapes = [(len(states), *states[0].shape) for states in states_KTD]
        return {
            "text_states": pa.array([self._stacked(states) for states in states_KTD], pa.binary()),
            "text_pooled": pa.array([self._stacked(pooled) for pooled in pooled_KP], pa.binary()),
            "text_dtype": pa.array([self.stored_dtype] * len(captions), pa.string()),
            "text_shape": pa.array(shapes, pa.list_(pa.int32())),
        }

    def _stacked(self, tensors: Sequence[torch.Tensor]) -> bytes:
        return torch.stack(list(tensors)).float().numpy().astype(self.stored_dtype).tobytes()


def _sizes(samples: pa.Table) -> tuple[list[int], list[int]]:
    return samples["target_height"].to_pylist(), samples["target_width"].to_pylist()


def _moments_shape(size: tuple[int, int]) -> tuple[int, int, int]:
    return 8, size[0] // 8, size[1] // 8


def _finite(moments_CHW: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    return moments_CHW if np.isfinite(moments_CHW).all() else None
