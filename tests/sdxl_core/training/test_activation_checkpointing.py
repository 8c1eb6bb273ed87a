import pytest
import torch
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.unet import UNet2DConditionModel, build_unet
from sdxl_core.training.activation_checkpointing import checkpoint_blocks
from tests.micro_models import MICRO_BASE

NUM_BLOCKS = 17 + 11  # residual blocks, transformer blocks


def kept_bytes_and_gradients(unet: UNet2DConditionModel) -> tuple[int, list[Tensor]]:
    """Bytes that autograd keeps of one forward pass (tensors counted once), and the gradients."""
    generator = torch.Generator().manual_seed(1)
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predicted = unet(
            torch.randn(1, 4, 16, 16, generator=generator),
            torch.tensor([7]),
            encoder_hidden_states=torch.randn(1, 77, 40, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, 16, generator=generator),
                "time_ids": torch.full((1, 6), 64.0),
            },
        ).sample
        num_bytes = sum(kept.values())
        unet.zero_grad()
        predicted.square().mean().backward()
    return num_bytes, [p.grad.clone() for p in unet.parameters() if p.grad is not None]


def test_gradients_keep_their_bits_and_memory_falls_with_the_share() -> None:
    unet = build_unet(MICRO_BASE).train()
    plain_bytes, plain = kept_bytes_and_gradients(unet)
    num_bytes = [plain_bytes]
    for share, num_blocks in ((0.25, NUM_BLOCKS // 4), (0.5, NUM_BLOCKS // 2), (1.0, NUM_BLOCKS)):
        assert checkpoint_blocks(unet, share=share) == num_blocks
        found_bytes, gradients = kept_bytes_and_gradients(unet)
        num_bytes.append(found_bytes)
        assert len(gradients) == len(plain)
        assert all(map(torch.equal, gradients, plain))
    assert num_bytes == sorted(num_bytes, reverse=True)
    assert num_bytes[-1] < 0.6 * plain_bytes
    assert checkpoint_blocks(unet, share=0.0) == 0
    assert kept_bytes_and_gradients(unet)[0] == plain_bytes


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpointed share: found 1\.5"):
        checkpoint_blocks(build_unet(MICRO_BASE), share=1.5)
