"""The last pass with ``--latents``: actors that hold the networks finish the groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from cluster.prepare_finish import finish_part
from cluster.prepare_work import PrepareWork
from cluster.work import DTYPES
from sdxl_core.diffusion.sample_encoding import SampleEncoder, StoredDtype
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.paced_threads import PacedThreads


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
    """Finishes groups, two at a time: while one is read or written, another is encoded.

    Pictures of both are decoded by one pool of threads beside the networks, as many threads as were
    measured to keep these busy and at most ``max_decode_threads``.
    """

    def __init__(
        self, work: PrepareWork, encode: EncodeWork, hub: Any, max_decode_threads: int
    ) -> None:
        torch.set_num_threads(encode.num_threads)
        texts = ("text_encoder", "text_encoder_2") if encode.text else ()
        model = load_model(
            encode.model,
            vae_dtype=DTYPES[encode.vae_dtype],
            device=encode.device,
            components=("vae", *texts),
        )
        self._work, self._hub = work, hub
        self._encoder = SampleEncoder(
            model=model,
            device=encode.device,
            batch_size=encode.batch_size,
            stored_dtype=encode.stored_dtype,
            text=encode.text,
            decoders=PacedThreads(max_decode_threads),
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """A group becomes a committed part and a report."""
        return finish_part(
            block,
            self._work,
            self._hub,
            lambda _bucket, samples: self._encoder(samples),
            describe=self._pace,
        )

    def _pace(self) -> str:
        pace = self._encoder.decoders.pace
        return (
            f"decode_s={pace.prepare_s:.6f} encode_s={pace.consume_s:.6f} a picture, "
            f"decode_threads={pace.num_threads} of {pace.max_threads}"
        )


def max_decode_threads(encode: EncodeWork, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Threads that may decode beside one encoder: as many as it has CPUs.

    Args:
        encode: What it does. On a GPU it has an equal share of its node's CPUs: nothing else runs
            in this pass.
        nodes: ``ray.nodes()``; of nodes that differ, the smallest share counts.
    """
    if encode.device != "cuda":
        return encode.num_threads
    found = [node["Resources"] for node in nodes if node["Alive"]]
    shares = [one.get("CPU", 0.0) // one["GPU"] for one in found if one.get("GPU", 0.0) >= 1]
    return max(1, int(min(shares, default=1.0)))
