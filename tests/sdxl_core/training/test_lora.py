"""Low-rank adapters in training."""

import pytest
import torch
from peft.utils import get_peft_model_state_dict

from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.nets.build import build_unet
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER, ModelKind, ModelPreset
from sdxl_core.training.lora import (
    LoraSettings,
    add_lora,
    lora_of_parameters,
    lora_weights,
    num_lora_parameters,
    set_lora_weights,
)
from sdxl_core.training.lora_files import merge_lora
from tests.micro_models import micro_model
from tests.sdxl_core.training.adapters import KINDS, SETTINGS, answer, fill, fresh_unet


@pytest.mark.parametrize("kind", KINDS)
def test_add_lora_changes_no_answer_and_trains_the_adapter_alone(kind: ModelKind) -> None:
    unet = fresh_unet(kind)
    with torch.no_grad():
        before = answer(unet, kind)
        trained = add_lora(unet, SETTINGS, seed=1)
        assert torch.equal(answer(unet, kind), before)
    names = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) == len(trained)
    answer(unet, kind).square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained)
    assert sum(parameter.grad is not None for parameter in unet.parameters()) == len(trained)


def test_training_an_adapter_lowers_the_loss_and_leaves_the_network_as_it_was() -> None:
    unet = fresh_unet("base")
    own = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(add_lora(unet, SETTINGS, seed=1), lr=0.02)
    target = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(12):
        loss = (answer(unet, "base") - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = {
        name.replace(".base_layer.", "."): tensor for name, tensor in unet.state_dict().items()
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in own.items())


def test_add_lora_starts_from_its_seed_alone() -> None:
    first, second, other = (fresh_unet("base") for _ in range(3))
    add_lora(first, SETTINGS, seed=1)
    before = torch.get_rng_state()
    torch.manual_seed(99)
    add_lora(second, SETTINGS, seed=1)
    add_lora(other, SETTINGS, seed=2)
    torch.set_rng_state(before)
    name = "mid_block.attentions.0.proj_in"
    assert torch.equal(lora_weights(first).down[name], lora_weights(second).down[name])
    assert not torch.equal(lora_weights(first).down[name], lora_weights(other).down[name])


def test_adapter_of_a_bfloat16_network_is_float32() -> None:
    unet = fresh_unet("base").to(torch.bfloat16)
    trained = add_lora(unet, SETTINGS, seed=1)
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_lora_weights_are_those_of_pefts_own_state() -> None:
    unet = fresh_unet("base")
    add_lora(unet, SETTINGS, seed=1)
    fill(unet)
    lora = lora_weights(unet)
    expected = get_peft_model_state_dict(unet)
    found = {
        **{f"{name}.lora_A.weight": tensor for name, tensor in lora.down.items()},
        **{f"{name}.lora_B.weight": tensor for name, tensor in lora.up.items()},
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (lora.rank, lora.alpha) == (3, 1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapter_answers_as_the_adapter_does(kind: ModelKind) -> None:
    plain, adapted = fresh_unet(kind), fresh_unet(kind)
    add_lora(adapted, SETTINGS, seed=1)
    fill(adapted)
    merge_lora(plain, lora_weights(adapted))
    with torch.no_grad():
        before = answer(micro_model(kind).unet, kind)
        expected = answer(adapted, kind)
        torch.testing.assert_close(answer(plain, kind), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(before, expected, atol=0.01)
        merge_lora(plain, lora_weights(adapted), strength=-1)
        torch.testing.assert_close(answer(plain, kind), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("preset", "num_attention", "num_transformer"),
    # 70 and 44 blocks of 8 attention layers and 2 of feed-forward, in 11 transformers of 2.
    [(SDXL_BASE, 560, 722), (SDXL_REFINER, 352, 462)],
    ids=lambda value: getattr(value, "name", None),
)
def test_adapter_of_a_full_size_network_has_the_known_number_of_layers(
    preset: ModelPreset, num_attention: int, num_transformer: int
) -> None:
    for targets, expected in (("attention", num_attention), ("transformer", num_transformer)):
        with torch.device("meta"):
            unet = build_unet(preset)
            add_lora(unet, LoraSettings(rank=4, targets=targets), seed=0)  # type: ignore[arg-type]
        assert len(lora_weights(unet).down) == expected


def test_set_lora_weights_makes_a_fresh_adapter_the_same() -> None:
    first, second = fresh_unet("base"), fresh_unet("base")
    for seed, unet in enumerate((first, second)):
        add_lora(unet, SETTINGS, seed=seed)
    fill(first)
    set_lora_weights(second, lora_weights(first))
    with torch.no_grad():
        assert torch.equal(answer(first, "base"), answer(second, "base"))


def test_set_lora_weights_of_another_adapter_is_refused() -> None:
    first, second = fresh_unet("base"), fresh_unet("base")
    add_lora(first, SETTINGS, seed=0)
    add_lora(second, LoraSettings(rank=3, alpha=1.5), seed=0)
    with pytest.raises(ConfigError, match="found rank 3"):
        set_lora_weights(second, lora_weights(first))


def test_lora_where_it_cannot_be_is_refused() -> None:
    unet = fresh_unet("base")
    with pytest.raises(ConfigError, match="without an adapter"):
        lora_weights(unet)
    add_lora(unet, SETTINGS, seed=0)
    with pytest.raises(ConfigError, match="with an adapter"):
        add_lora(unet, SETTINGS, seed=0)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_lora_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"lora {next(iter(settings))}: found"):
        LoraSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_an_adapter_are_counted_before_it_is_made(kind: ModelKind) -> None:
    for settings in (SETTINGS, LoraSettings(rank=2)):
        expected = num_lora_parameters(fresh_unet(kind), settings)
        added = add_lora(fresh_unet(kind), settings, seed=1)
        assert sum(parameter.numel() for parameter in added) == expected


def test_an_adapter_is_put_together_from_its_named_parameters() -> None:
    unet = fresh_unet("base")
    add_lora(unet, SETTINGS, seed=1)
    fill(unet)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    found = lora_of_parameters(trained, rank=3, alpha=1.5)
    expected = lora_weights(unet)
    assert (found.rank, found.alpha) == (expected.rank, expected.alpha)
    for side in ("down", "up"):
        mine, theirs = getattr(found, side), getattr(expected, side)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(WeightsError, match=r"found the parameter conv_in\.weight"):
        lora_of_parameters({"conv_in.weight": torch.zeros(3, 3)}, rank=3, alpha=1.0)
