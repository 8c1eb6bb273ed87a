import torch
from torch import Tensor, nn

from sdxl_core.nets.unet import UNet2DConditionModel, build_unet
from sdxl_core.training.activation_checkpointing import checkpoint_blocks
from sdxl_core.training.memory_layout import use_channels_last_activations
from tests.micro_models import MICRO_BASE


def predict(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    predicted: Tensor = unet(
        torch.randn(2, 4, 16, 16, generator=generator),
        torch.tensor([7, 70]),
        encoder_hidden_states=torch.randn(2, 77, 40, generator=generator),
        added_cond_kwargs={
            "text_embeds": torch.randn(2, 16, generator=generator),
            "time_ids": torch.full((2, 6), 64.0),
        },
    ).sample
    return predicted


def test_large_convolutions_see_channels_last_and_say_the_same() -> None:
    unet = build_unet(MICRO_BASE).train()
    plain = predict(unet)
    layouts: list[bool] = []

    def look(_conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in unet.modules():
        # 1x1 convolutions of the shortcuts are given the usual layout in training, by diffusers.
        is_large = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        if is_large and module not in (unet.conv_in, unet.conv_out):
            module.register_forward_pre_hook(look)
    predict(unet)
    assert not all(layouts)
    layouts.clear()
    use_channels_last_activations(unet)
    use_channels_last_activations(unet)
    torch.testing.assert_close(predict(unet), plain, rtol=1e-4, atol=1e-5)
    assert len(layouts) > 30  # two in each of 17 residual blocks, and those that change sizes
    assert all(layouts)
    assert all(weight.is_contiguous() for weight in unet.parameters())
    blocks = [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D"]
    assert all(len(block._forward_pre_hooks) == 1 for block in blocks)


def test_it_goes_with_activation_checkpointing() -> None:
    unet = build_unet(MICRO_BASE).train()
    plain = torch.autograd.grad(predict(unet).square().mean(), unet.conv_in.weight)[0]
    use_channels_last_activations(unet)
    checkpoint_blocks(unet)
    again = torch.autograd.grad(predict(unet).square().mean(), unet.conv_in.weight)[0]
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
