"""Images in one process, for notebooks and tests: the chain that the cluster runs, without one.

Every step is the function that the cluster's workers call. With equal slots, precision, device and
thread count a request gives the same pixels here and there.
"""

# Shapes: C=4 latent channels, H W latent size in latents_CHW and pixels in rgb_HWC, where C=3.

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.decoding import decode_error, decode_row, denoise_error
from sdxl_core.diffusion.engine import Engine, Numerics, OutOfMemoryRow, unet_network
from sdxl_core.diffusion.refinement import row_task
from sdxl_core.diffusion.service import Outcome, fullest
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.diffusion.text_stage import RowTexts, TextStage
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.presets import ModelKind

_NUM_AHEAD = 16
"""Requests in flight: enough to fill the slots while some of them end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One request's result.

    Attributes:
        request: What was asked for.
        rgb_HWC: The picture, uint8; None if the request failed.
        latents_CHW: Finished latents, float32 on the CPU; None if the networks did not get there.
        num_slots: Slots of the lane in which the last network ran it; they are part of what fixes
            its bits. 0 if no network ran it.
        num_tokens_cut: Tokens of the prompts that the encoders could not take.
        error: Why there is no picture; None if there is one.
    """

    request: Request
    rgb_HWC: npt.NDArray[np.uint8] | None = None
    latents_CHW: Tensor | None = None
    num_slots: int = 0
    num_tokens_cut: int = 0
    error: RowError | None = None


def generate(
    requests: Iterable[Request],
    *,
    model: SdxlModel,
    refiner: SdxlModel | None = None,
    slots: Mapping[LaneKey, int] | int = 4,
    numerics: Numerics = "exact",
) -> Iterator[GeneratedImage]:
    """Makes images, in the order of the requests.

    Requests are taken a few ahead, so the iterable may be endless. A request that fails gives a
    ``GeneratedImage`` with an ``error``, and the others go on. Equal ids are no matter here.

    Args:
        requests: What to make.
        model: The base. Its networks' precision and device are used.
        refiner: For requests with ``refiner`` set, which fail without one.
        slots: Rows of one shape that share a network call: 1, 2, 4, 8, 16, 32 or 64, or a number
            for every shape. Idle slots cost as much as used ones under ``exact``: take 1 for one
            image.
        numerics: ``exact`` or ``fast``; see ``sdxl_core.diffusion.engine``.

    Raises:
        ConfigError: if the models are not a base and a refiner, or the slots cannot be had.
    """
    chain = _Chain(_checked_models(model, refiner), slots, numerics)
    source = iter(requests)
    waiting: collections.deque[_Row] = collections.deque()
    while True:
        if len(waiting) < _NUM_AHEAD:
            fresh = [_Row(request) for request in itertools.islice(source, _NUM_AHEAD)]
            chain.begin(fresh)
            waiting.extend(fresh)
        if not waiting:
            return
        while not waiting[0].is_denoised:
            chain.tick()
        yield _decoded(waiting.popleft(), model)


@dataclasses.dataclass
class _Row:
    """A request on its way."""

    request: Request
    texts: RowTexts = dataclasses.field(default_factory=dict)
    latents_CHW: Tensor | None = None
    num_draws: int = 0
    num_slots: int = 0
    is_denoised: bool = False
    error: RowError | None = None

    def fail(self, error: RowError) -> None:
        """Ends the row without a picture."""
        self.error, self.is_denoised = error, True

    @property
    def num_tokens_cut(self) -> int:
        """Of its longest text."""
        pairs = self.texts.values()
        return max((text.num_tokens_cut for pair in pairs for text in pair if text), default=0)


class _Chain:
    """Text encoders and engines of a base and possibly a refiner."""

    def __init__(
        self,
        models: dict[ModelKind, SdxlModel],
        slots: Mapping[LaneKey, int] | int,
        numerics: Numerics,
    ) -> None:
        self._models = models
        self._texts = TextStage(models)
        self._engines: dict[str, Engine] = {
            kind: Engine(
                unet_network(model.unet),
                slots_for=slots,
                device=model.unet.device,
                dtype=model.unet.dtype,
                numerics=numerics,
            )
            for kind, model in models.items()
        }
        self._running: dict[str, tuple[_Row, ModelKind]] = {}
        self._keys = map(str, itertools.count())

    def begin(self, rows: Sequence[_Row]) -> None:
        """Encodes the rows' texts and queues the rows."""
        self._encode(rows)
        for row in rows:
            if row.request.refiner and "refiner" not in self._models:
                row.fail(
                    RowError(
                        Reason.INVALID_HANDOFF,
                        "refiner: found true, expected false: no refiner model is loaded",
                    )
                )
            if row.error is None:
                self._submit(row, "base")

    def tick(self) -> None:
        """One network call, for the engine that makes the most of it."""
        name = fullest(self._engines)
        assert name is not None, "a row waits for an engine that has nothing to do"
        for outcome in self._engines[name].tick():
            self._take(outcome)

    def _encode(self, rows: Sequence[_Row]) -> None:
        try:
            for row, texts in zip(
                rows, self._texts.encode([row.request for row in rows]), strict=True
            ):
                row.texts = texts
        except RowError as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            for row in rows:
                self._encode([row])

    def _submit(self, row: _Row, kind: ModelKind) -> None:
        try:
            task = row_task(
                row.request,
                self._models[kind],
                row.texts[kind],
                latents_CHW=row.latents_CHW,
                num_draws_done=row.num_draws,
            )
        except RowError as error:
            row.fail(error)
            return
        key = next(self._keys)
        self._engines[kind].submit(dataclasses.replace(task, key=key))
        self._running[key] = (row, kind)

    def _take(self, outcome: Outcome) -> None:
        row, kind = self._running.pop(outcome.key)
        error = denoise_error(outcome, kind=kind, dtype=self._models[kind].unet.dtype)
        if error is not None:
            row.fail(error)
        if isinstance(outcome, OutOfMemoryRow):
            return
        row.latents_CHW = outcome.latents_CHW
        row.num_draws, row.num_slots = outcome.num_draws_done, outcome.num_slots
        if row.error is None and kind == "base" and row.request.refiner:
            self._submit(row, "refiner")
        else:
            row.is_denoised = True


def _checked_models(model: SdxlModel, refiner: SdxlModel | None) -> dict[ModelKind, SdxlModel]:
    if model.kind != "base":
        raise ConfigError(f"model: found the {model.kind} {model.preset.name!r}, expected a base")
    if refiner is None:
        return {"base": model}
    if refiner.kind != "refiner":
        raise ConfigError(
            f"refiner: found the {refiner.kind} {refiner.preset.name!r}, expected a refiner"
        )
    return {"base": model, "refiner": refiner}


def _decoded(row: _Row, model: SdxlModel) -> GeneratedImage:
    rgb_HWC, error = None, row.error
    if error is None:
        assert row.latents_CHW is not None
        rgb_HWC, is_finite = decode_row(model, row.latents_CHW, device=model.vae.device)
        if not is_finite:
            rgb_HWC, error = None, decode_error(model)
    return GeneratedImage(
        request=row.request,
        rgb_HWC=rgb_HWC,
        latents_CHW=row.latents_CHW,
        num_slots=row.num_slots,
        num_tokens_cut=row.num_tokens_cut,
        error=error,
    )
