"""The last pass with ``--latents``: actors that hold the networks finish the groups."""

import dataclasses
import threading
from typing import Any

import pyarrow as pa
import torch

from cluster.prepare_finish import finish_part
from cluster.prepare_work import PrepareWork
from cluster.work import DTYPES
from sdxl_core.diffusion.sample_encoding import SampleEncoder, StoredDtype
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.sample_parts import Bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeWork:
    """What encodes pictures, and how.

    Attributes:
        model: Name, folder or file.
        vae_dtype: Precision of the autoencoder.
        device: ``cpu`` or ``cuda``.
        num_threads: Torch threads on the CPU.
        batch_size: Pictures in one call of the autoencoder.
        stored_dtype: Of moments and text states.
        text: Encode captions too.
    """

    model: str
    vae_dtype: str
    device: str
    num_threads: int
    batch_size: int
    stored_dtype: StoredDtype
    text: bool


class FinishWithLatents:
    """Finishes groups, two at a time: while one is encoded, another is read or written."""

    def __init__(self, work: PrepareWork, encode: EncodeWork, hub: Any) -> None:
        torch.set_num_threads(encode.num_threads)
        texts = ("text_encoder", "text_encoder_2") if encode.text else ()
        model = load_model(
            encode.model,
            vae_dtype=DTYPES[encode.vae_dtype],
            device=encode.device,
            components=("vae", *texts),
        )
        self._work, self._hub = work, hub
        self._lock = threading.Lock()
        self._encoder = SampleEncoder(
            model=model,
            device=encode.device,
            batch_size=encode.batch_size,
            stored_dtype=encode.stored_dtype,
            text=encode.text,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """A group becomes a committed part and a report."""
        return finish_part(block, self._work, self._hub, self._encode)

    def _encode(self, _bucket: Bucket, samples: pa.Table) -> pa.Table:
        with self._lock:
            return self._encoder(samples)
