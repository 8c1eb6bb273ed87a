import pytest
import torch

from sdxl_core.training.transfer import to_device


def test_a_tensor_that_is_there_is_not_copied() -> None:
    tensor = torch.arange(6.0)
    assert to_device(tensor, "cpu") is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait_for_what_the_device_has_still_to_do() -> None:
    numbers = torch.randn(1 << 20)
    to_device(numbers, "cuda")  # pinned memory is there from now on
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # about half a second of work
    done = torch.cuda.Event()
    done.record()
    copied = to_device(numbers, "cuda")
    assert not done.query()
    assert torch.equal(copied.cpu(), numbers)
