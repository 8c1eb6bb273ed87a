"""A lane: a fixed number of slots for rows of one latent shape, advanced together by one network
call.

``Engine`` owns the lanes and decides which one runs; a lane only knows its slots. All per-row
differences (step count, position, sampler, guidance) are numbers in small tensors, so they cost
nothing.
"""

# Shapes: S slots, N=2S rows of a guided call (negative half first) or N=S, C=4 latent channels, H W
# latent size, T=77 tokens, D text width, P pooled width, I time ids, K coefficients of one
# evaluation.

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdxl_core.diffusion.guidance import apply_guidance, rescale_guidance
from sdxl_core.diffusion.tasks import DenoiseResult, DenoiseTask, LaneKey

# One network call: (x_NCHW, timestep_N, context_NTD, pooled_NP, time_ids_NI) -> prediction_NCHW.
Network = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# Order of the columns in a lane's coefficient tensor; the names are those of StepTable.
_COLUMNS = (
    "timestep_E",
    "input_scale_E",
    "skip_E",
    "out_E",
    "coef_x_E",
    "coef_d_E",
    "coef_kept_x_E",
    "coef_kept_d_E",
    "coef_noise_E",
    "keep_E",
)


@dataclasses.dataclass
class Row:
    """A task in flight: where it is, and its own random numbers. Moves between slot and queue
    whole.
    """

    task: DenoiseTask
    columns_EK: np.ndarray
    generator: torch.Generator
    num_draws: int
    position: int = 0
    entered: float = 0.0
    # Set while the row is outside a slot; None means that the row has never been in one.
    parked: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, task: DenoiseTask) -> "Row":
        """Prepares a task: its coefficients as one array, its generator wound to where the row left
        off.
        """
        columns = [np.asarray(getattr(task.table, name), dtype=np.float32) for name in _COLUMNS]
        row = cls(
            task=task,
            columns_EK=np.stack(columns, axis=1),
            generator=torch.Generator("cpu").manual_seed(task.seed),
            num_draws=0,
        )
        for _ in range(task.num_draws_done):
            row.draw_noise()
        return row

    def draw_noise(self) -> Tensor:
        """The next latent-sized draw, (C, H, W) float32 on the CPU, as diffusers draws it for one
        image.
        """
        shape = (1, 4, self.task.latent_height, self.task.latent_width)
        self.num_draws += 1
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)[0]

    def start_latents(self) -> Tensor:
        """The row's first x, (C, H, W) float32, in sigma space."""
        task = self.task
        if task.latents_CHW is None:
            return self.draw_noise() * task.table.initial_noise_scale
        if task.add_noise:
            return task.latents_CHW + self.draw_noise() * task.table.start_sigma
        return task.latents_CHW.to(torch.float32)


class Lane:
    """Slots for one latent shape. Occupied slots are always the first ``len(rows)`` ones."""

    def __init__(
        self, key: LaneKey, *, num_slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.key = key
        self.num_slots = num_slots
        self.rows: list[Row] = []
        self._device = device
        self._dtype = dtype
        shape = (num_slots, 4, key.latent_height, key.latent_width)
        self._x_SCHW = torch.zeros(shape, device=device)
        self._kept_x_SCHW = torch.zeros(shape, device=device)
        self._kept_d_SCHW = torch.zeros(shape, device=device)
        self._guidance_S = torch.ones(num_slots, device=device)
        self._rescale_S = torch.zeros(num_slots, device=device)
        # Text buffers are made when the first row shows the widths: [negative half, positive half].
        self._text: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def num_free(self) -> int:
        """Slots without a row."""
        return self.num_slots - len(self.rows)

    def admit(self, row: Row) -> None:
        """Puts a row into the next free slot; a parked row goes on where it was."""
        slot = len(self.rows)
        self.rows.append(row)
        if row.parked is None:
            row.entered = time.perf_counter()
            self._x_SCHW[slot] = row.start_latents().to(self._device)
            self._kept_x_SCHW[slot] = 0.0
            self._kept_d_SCHW[slot] = 0.0
        else:
            self._x_SCHW[slot], self._kept_x_SCHW[slot], self._kept_d_SCHW[slot] = row.parked
            row.parked = None
        self._guidance_S[slot] = row.task.guidance_scale
        self._rescale_S[slot] = row.task.guidance_rescale
        self._write_text(slot, row.task)

    def park_all(self) -> list[Row]:
        """Empties the lane, keeping each row's state with the row, in slot order."""
        for slot, row in enumerate(self.rows):
            state = (self._x_SCHW, self._kept_x_SCHW, self._kept_d_SCHW)
            row.parked = tuple(buffer[slot].clone() for buffer in state)  # type: ignore[assignment]
        rows, self.rows = self.rows, []
        return rows

    def advance(self, network: Network, *, num_places: int) -> list[DenoiseResult]:
        """One network call over the first ``num_places`` slots, one step for each row, finished
        rows out.

        If the network raises (out of memory), no row has changed and the call may be repeated.
        """
        columns_SK = self._columns(num_places)
        x_SCHW = self._x_SCHW[:num_places]
        denoised_SCHW = self._denoise(network, x_SCHW, columns_SK)
        new_x_SCHW = self._combine(x_SCHW, denoised_SCHW, columns_SK)
        if any(row.columns_EK[row.position, -1] for row in self.rows):
            keep_S111 = columns_SK[:, 9, None, None, None] > 0
            for kept, value in ((self._kept_x_SCHW, x_SCHW), (self._kept_d_SCHW, denoised_SCHW)):
                kept[:num_places] = torch.where(keep_S111, value, kept[:num_places])
        self._x_SCHW[:num_places] = new_x_SCHW
        for row in self.rows:
            row.position += 1
        return self._release_finished()

    def _columns(self, num_places: int) -> Tensor:
        """This evaluation's coefficients of every place, (S, K) float32; zeros where nobody is."""
        values = np.zeros((num_places, len(_COLUMNS)), dtype=np.float32)
        for slot, row in enumerate(self.rows):
            values[slot] = row.columns_EK[row.position]
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def _denoise(self, network: Network, x_SCHW: Tensor, columns_SK: Tensor) -> Tensor:
        """The network's estimate of the clean latents, float32, guidance applied."""
        assert self._text is not None
        places = x_SCHW.shape[0]
        scaled_SCHW = (x_SCHW * columns_SK[:, 1, None, None, None]).to(self._dtype)
        timestep_S = columns_SK[:, 0]
        if self.key.guided:
            # Both halves in one call; [negative, positive] is the order of the original code.
            index = slice(None) if places == self.num_slots else self._half_index(places)
            texts = tuple(text[index] for text in self._text)
            both_NCHW = network(
                scaled_SCHW.repeat(2, 1, 1, 1), timestep_S.repeat(2), *texts
            ).float()
            negative_SCHW, positive_SCHW = both_NCHW.chunk(2)
            guided_SCHW = apply_guidance(positive_SCHW, negative_SCHW, self._guidance_S[:places])
            if any(row.task.guidance_rescale for row in self.rows):
                guided_SCHW = rescale_guidance(guided_SCHW, positive_SCHW, self._rescale_S[:places])
        else:
            texts = tuple(text[:places] for text in self._text)
            guided_SCHW = network(scaled_SCHW, timestep_S, *texts).float()
        skip, out = columns_SK[:, 2, None, None, None], columns_SK[:, 3, None, None, None]
        return skip * x_SCHW + out * guided_SCHW

    def _half_index(self, places: int) -> Tensor:
        """Rows of the text buffers that a shortened guided call uses."""
        first = torch.arange(places, device=self._device)
        return torch.cat([first, first + self.num_slots])

    def _combine(self, x_SCHW: Tensor, denoised_SCHW: Tensor, columns_SK: Tensor) -> Tensor:
        """The next x of every place: a linear combination whose weights are the row's own."""
        places = x_SCHW.shape[0]
        weight = columns_SK[:, :, None, None, None]
        new_x_SCHW = weight[:, 4] * x_SCHW + weight[:, 5] * denoised_SCHW
        # Added for every row, also where the weight is 0: whether -0.0 becomes 0.0 must not depend
        # on the neighbours.
        new_x_SCHW += weight[:, 6] * self._kept_x_SCHW[:places]
        new_x_SCHW += weight[:, 7] * self._kept_d_SCHW[:places]
        for slot, row in enumerate(self.rows):
            if row.columns_EK[row.position, 8]:
                noise_CHW = row.draw_noise().to(self._device)
                new_x_SCHW[slot] += weight[slot, 8] * noise_CHW
        return new_x_SCHW

    def _release_finished(self) -> list[DenoiseResult]:
        """Takes rows that are through out of their slots and closes the gaps from the end."""
        results = []
        for slot in reversed(range(len(self.rows))):
            row = self.rows[slot]
            if row.position < row.task.table.num_evaluations:
                continue
            latents_CHW = self._x_SCHW[slot].cpu().clone()
            results.append(
                DenoiseResult(
                    key=row.task.key,
                    latents_CHW=latents_CHW,
                    num_draws_done=row.num_draws,
                    num_slots=self.num_slots,
                    seconds=time.perf_counter() - row.entered,
                    is_finite=bool(torch.isfinite(latents_CHW).all()),
                )
            )
            self._move_slot(len(self.rows) - 1, slot)
            self.rows[slot] = self.rows[-1]
            self.rows.pop()
        return results

    def _move_slot(self, source: int, target: int) -> None:
        """Copies everything that belongs to a slot; the source slot is then idle."""
        if source == target:
            return
        for buffer in (
            self._x_SCHW,
            self._kept_x_SCHW,
            self._kept_d_SCHW,
            self._guidance_S,
            self._rescale_S,
        ):
            buffer[target] = buffer[source]
        assert self._text is not None
        for text in self._text:
            text[target] = text[source]
            if self.key.guided:
                text[self.num_slots + target] = text[self.num_slots + source]

    def _write_text(self, slot: int, task: DenoiseTask) -> None:
        """Copies the row's conditioning into its place in both halves of the text buffers."""
        sides = [task.negative, task.positive] if self.key.guided else [task.positive]
        if self._text is None:
            num_rows = self.num_slots * len(sides)
            context, pooled, ids = (
                task.positive.context_TD,
                task.positive.pooled_P,
                task.positive.time_ids_I,
            )
            self._text = (
                torch.zeros((num_rows, *context.shape), device=self._device, dtype=self._dtype),
                torch.zeros((num_rows, *pooled.shape), device=self._device, dtype=self._dtype),
                torch.zeros((num_rows, *ids.shape), device=self._device, dtype=torch.float32),
            )
        for half, side in enumerate(sides):
            assert side is not None, "a guided task has a negative side"
            place = half * self.num_slots + slot
            for buffer, value in zip(
                self._text, (side.context_TD, side.pooled_P, side.time_ids_I), strict=True
            ):
                buffer[place] = value.to(self._device)
