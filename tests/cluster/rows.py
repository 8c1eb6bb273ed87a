"""Parts with real requests, texts and latents, for tests of what happens to them."""

from typing import Any

import pyarrow as pa
import torch

from cluster.messages import PartWork, RowWork
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import TextStates


def make_part(num_rows: int, **columns: Any) -> PartWork:
    """A part whose rows have nothing but a request."""
    prompts = [f"prompt {index}" for index in range(num_rows)]
    rows = [
        RowWork(input_row=100 + index, request=Request(prompt=prompt, id=f"r{index}", **columns))
        for index, prompt in enumerate(prompts)
    ]
    return PartWork(part=7, table=pa.table({"prompt": prompts}), rows=rows)


def make_texts(seed: int) -> TextStates:
    """States as an encoder gives them, in a toy width."""
    generator = torch.Generator().manual_seed(seed)
    return TextStates(
        context_TD=torch.randn(77, 8, generator=generator).to(torch.bfloat16),
        pooled_P=torch.randn(4, generator=generator),
        num_tokens_cut=seed,
    )
