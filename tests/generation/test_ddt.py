"""DDT: what the velocity depends on, sizes, training, compilation, saving."""

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from genres.generation.ddt import DDTTransformer

TINY = {"hidden_size": 32, "num_heads": 2, "num_encoder_blocks": 2, "num_decoder_blocks": 1, "num_classes": 5}


def tiny(seed: int = 0, **arguments) -> DDTTransformer:
    """A small model whose zero-initialised layers are filled, so that everything has an effect."""
    torch.manual_seed(seed)
    model = DDTTransformer(**{**TINY, **arguments})
    for name, parameter in model.named_parameters():
        if "modulation" in name or "output" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(*shape: int):
    torch.manual_seed(1)
    return torch.randn(shape), torch.rand(shape[0]), torch.arange(shape[0]) % 5


@torch.inference_mode()
def test_an_untrained_model_gives_zero():
    assert not DDTTransformer(**TINY)(*inputs(2, 4, 8, 8)).sample.any()


@pytest.mark.parametrize(("channels", "patch", "height", "width"), [(4, 2, 8, 8), (3, 4, 8, 16), (1, 1, 3, 5)])
@torch.inference_mode()
def test_any_patch_and_size(channels, patch, height, width):
    model = tiny(in_channels=channels, patch_size=patch)
    sample, time, labels = inputs(2, channels, height, width)
    output = model(sample, time, labels)
    tokens = height * width // patch**2
    assert output.sample.shape == sample.shape and output.condition.shape == (2, tokens, 32)
    assert torch.equal(model.image(model.patches(sample), height, width), sample)
    alone = model(sample[:1], time[:1], labels[:1])  # images of a batch do not see each other
    assert torch.allclose(alone.sample, output.sample[:1], atol=1e-5)


@torch.inference_mode()
def test_patches_are_read_channel_by_channel():
    model = tiny()
    sample = inputs(2, 4, 6, 8)[0]
    assert torch.equal(model.patches(sample), torch.nn.functional.unfold(sample, 2, stride=2).transpose(1, 2))


@torch.inference_mode()
def test_with_a_condition_time_and_label_have_no_effect():
    model = tiny()
    sample, time, labels = inputs(2, 4, 8, 8)
    first = model(sample, time, labels, return_modulations=True)
    again = model(sample, 1 - time, None, condition=first.condition)
    assert torch.equal(again.sample, first.sample)
    quick = model(sample, 0.0, None, condition=first.condition, modulations=first.modulations)
    assert torch.allclose(quick.sample, first.sample, atol=1e-6)
    for other in (model(sample, 1 - time, labels), model(sample, time, labels + 1)):
        assert not torch.allclose(other.sample, first.sample, atol=1e-3)
    assert first.modulations is not None and again.modulations is None


@torch.inference_mode()
def test_in_a_perturbed_block_tokens_do_not_see_each_other():
    model = tiny()
    sample, time, labels = inputs(1, 4, 8, 8)
    changed = sample.clone()
    changed[..., :2, :2] += 1  # one patch of 2x2, the first token
    for blocks, alone in [((0, 1), True), ((0,), False), ((), False)]:
        before, after = (
            model(image, time, labels, perturbed_blocks=blocks).condition[0] for image in (sample, changed)
        )
        moved = (after - before).abs().amax(-1) > 1e-6  # by token
        assert moved[0] and moved[1:].any() != alone
    block = model.condition_encoder.blocks[0].attention
    x, rotary = torch.randn(1, 16, 32), model.rotary(4, 4, sample.device)
    weight, projection = block.qkv.weight[64:], block.projection
    assert torch.allclose(block(x, rotary, perturbed=True), projection(x @ weight.T), atol=1e-6)


@torch.inference_mode()
def test_time_may_be_a_number_and_the_output_a_tuple():
    model = tiny()
    sample, _, labels = inputs(2, 4, 8, 8)
    velocity, condition = model(sample, 0.25, labels, return_dict=False)
    output = model(sample, torch.tensor([0.25, 0.25]), labels)
    assert torch.equal(velocity, output.sample) and torch.equal(condition, output.condition)


def test_wrong_shapes_are_explained():
    model = tiny()
    sample, time, labels = inputs(2, 4, 8, 8)
    with pytest.raises(ValueError, match="7x8 are not multiples of the patch size 2"):
        model(sample[:, :, :7], time, labels)
    with pytest.raises(ValueError, match="does not fit"):
        model(sample, time, labels, condition=torch.zeros(2, 15, 32))
    with pytest.raises(ValueError, match="cannot be divided among 3 heads"):
        tiny(num_heads=3)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny().train()
    sample, time, labels = inputs(2, 4, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(sample, time, labels).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert model.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


def test_training_after_inference_mode():
    model = tiny()
    data = inputs(2, 4, 8, 8)
    with torch.inference_mode():
        model(*data)
    model(*data).sample.sum().backward()


@pytest.mark.slow
def test_no_graph_breaks():
    model = tiny()
    data = inputs(2, 4, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(*data)
        output = compiled(*data, return_modulations=True)
        shared = compiled(*data, condition=output.condition, modulations=output.modulations)
    assert torch.allclose(output.sample, expected.sample, atol=1e-5)
    assert torch.allclose(shared.sample, expected.sample, atol=1e-5)


@torch.inference_mode()
def test_attention_backends():
    model = tiny()
    data = inputs(2, 4, 8, 8)
    expected = model(*data).sample
    with attention_backend("_native_math"):
        assert torch.allclose(model(*data).sample, expected, atol=1e-5)
    attention = model.velocity_decoder.blocks[0].attention
    attention.set_attention_backend("_native_math")
    assert attention.processor._attention_backend == "_native_math"
    assert torch.allclose(model(*data).sample, expected, atol=1e-5)


@torch.inference_mode()
def test_bfloat16():
    model = tiny()
    sample, time, labels = inputs(2, 4, 8, 8)
    expected = model(sample, time, labels).sample
    output = model.to(torch.bfloat16)(sample.bfloat16(), time, labels).sample
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


@torch.inference_mode()
def test_save_and_load(tmp_path):
    model = tiny(patch_size=1)
    data = inputs(2, 4, 4, 4)
    model.save_pretrained(tmp_path)
    assert torch.equal(DDTTransformer.from_pretrained(tmp_path)(*data).sample, model(*data).sample)
