"""DDTPipeline: labels, determinism, sharing and its calibration, latents, schedulers, caches, saving and loading."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FirstBlockCacheConfig,
    FlowMatchHeunDiscreteScheduler,
    TaylorSeerCacheConfig,
)
from PIL import Image

from genres.generation.condition_sharing import plan_cost, uniform_plan
from pipelines import DDTPipeline, Interrupted, flow_scheduler
from pipelines.ddt import SIMILARITY_FILE
from tests.generation.test_ddt import tiny

NAMES = {0: "cat", 1: "dog, hound", 2: "cart", 3: "tree", 4: "house"}


def pixels(seed: int = 0, **arguments) -> DDTPipeline:
    pipe = DDTPipeline(tiny(seed, in_channels=3, **arguments), flow_scheduler(), id2label=NAMES, sample_size=8)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, labels=(0, 3), **arguments):
    settings = {"num_inference_steps": 6, "generator": generators(*range(len(labels))), "output_type": "pt"}
    return pipe(list(labels), **{**settings, **arguments}).images


@pytest.fixture
def pipe():
    return pixels()


def test_labels_are_numbers_or_names(pipe):
    assert pipe.get_label_ids("hound") == [1] == pipe.get_label_ids(1)
    assert pipe.get_label_ids(["Cat", " dog", 4, "3"]) == [0, 1, 4, 3]
    assert pipe.get_label_ids(torch.tensor([2, 0])) == [2, 0]
    assert torch.equal(draw(pipe, ["cat", "tree"]), draw(pipe, [0, 3]))
    for wrong, message in [
        ("cad", "no class named 'cad': the nearest are cat"),
        (5, "numbered 0 to 4; there is no 5"),
        (-1, "there is no -1"),
        ("7", "there is no 7"),
        (True, "there is no True"),
        (1.5, "there is no 1.5"),
        ([], "no class label"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe(wrong)


def test_kinds_of_output(pipe):
    tensor = draw(pipe)
    assert tensor.shape == (2, 3, 8, 8) and tensor.min() >= 0 and tensor.max() <= 1
    array = draw(pipe, output_type="np")
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    images = draw(pipe, output_type="pil")
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    np.testing.assert_array_equal(np.asarray(images[1]), np.rint(array[1] * 255))
    latents = draw(pipe, output_type="latent")
    assert torch.allclose((latents / 2 + 0.5).clamp(0, 1), tensor)
    assert torch.equal(pipe.decode(latents, "pt"), tensor)
    assert isinstance(pipe(0, num_inference_steps=1, return_dict=False), tuple)


def test_grey_images():
    pipe = DDTPipeline(tiny(in_channels=1), flow_scheduler(), sample_size=8)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(2, num_inference_steps=2).images
    assert image.mode == "L" and image.size == (8, 8)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_an_image_does_not_depend_on_its_batch(pipe, solver):
    pipe.scheduler = flow_scheduler(solver)
    options = {"condition_steps": 3, "guidance_scale": 3.0}
    batch = draw(pipe, [0, 3, 1], generator=generators(5, 6, 7), **options)
    alone = draw(pipe, [3], generator=generators(6), **options)
    assert torch.allclose(alone[0], batch[1], atol=1e-5)
    one = draw(pipe, [0, 3, 1], generator=generators(5)[0], **options)
    fewer = draw(pipe, [0, 3], generator=generators(5)[0], **options)
    assert torch.allclose(one[:2], fewer, atol=1e-5)
    assert not torch.allclose(one[1], batch[1], atol=1e-3)


def test_latents_and_sizes(pipe):
    noise = torch.cat([torch.randn((1, 3, 8, 8), generator=one) for one in generators(0, 1)])
    assert torch.equal(draw(pipe, latents=noise, generator=None), draw(pipe))
    wide = draw(pipe, height=4, width=12)
    assert wide.shape == (2, 3, 4, 12)
    several = draw(pipe, [0], num_images_per_label=2, generator=generators(0, 1))
    assert torch.allclose(several, draw(pipe, [0, 0]))
    for wrong, message in [
        ({"height": 7}, "multiples of 2 pixels, not 7"),
        ({"latents": noise[:1]}, r"shape \(2, 3, h, w\)"),
        ({"generator": generators(1)}, "1 generators for 2 images"),
        ({"guidance_scale": -1}, "guidance scale"),
        ({"guidance_interval": (0.5, 0.2)}, "ascending times"),
        ({"sharing": "often"}, "dp, uniform or None"),
        ({"sharing": None, "condition_steps": 3}, "need a sharing"),
        ({"condition_steps": 0}, "1 or more"),
        ({"condition_steps": 7}, "1 to 6 steps, not 7"),
        ({"num_inference_steps": 0}, "1 or more"),
        ({"output_type": "jpg"}, "output type"),
        ({"callback_on_step_end_tensor_inputs": ["velocity"]}, "not .'velocity'"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(pipe, **wrong)


def test_sharing_at_every_step_changes_nothing(pipe):
    plain = draw(pipe, guidance_scale=3.0)
    assert torch.equal(plain, draw(pipe, guidance_scale=3.0, sharing=None))
    for sharing in ("linear", "dp", "uniform"):
        assert torch.equal(plain, draw(pipe, guidance_scale=3.0, sharing=sharing, condition_steps=6))
        assert not torch.equal(plain, draw(pipe, guidance_scale=3.0, sharing=sharing, condition_steps=2))
    assert len(pipe.similarities) == 1


def test_similarities_are_measured_once_for_what_they_depend_on(pipe, monkeypatch):
    counted = []
    measure = DDTPipeline._measure
    monkeypatch.setattr(DDTPipeline, "_measure", lambda *given: counted.append(0) or measure(*given))
    draw(pipe, condition_steps=2)
    draw(pipe, [1], condition_steps=3, generator=generators(9))  # other samples, other number of condition steps
    assert len(counted) == 1
    for changed in (
        {"num_inference_steps": 7},
        {"guidance_scale": 4.0},
        {"guidance_interval": (0.0, 1.0)},
        {"last_step": 0.1},
        {"height": 4},
    ):
        draw(pipe, condition_steps=3, **changed)
    assert len(counted) == 6
    pipe.scheduler = flow_scheduler(shift=2.0)
    draw(pipe, condition_steps=3)
    pipe.scheduler = flow_scheduler("unipc")
    draw(pipe, condition_steps=3)
    assert len(counted) == 8
    pipe.to(torch.bfloat16)
    draw(pipe, condition_steps=3)
    assert len(counted) == 8
    pipe.transformer.condition_encoder.blocks[0].norm1.weight.data.mul_(1.5)
    draw(pipe, condition_steps=3)
    assert len(counted) == 9


def test_the_measured_plan_costs_no_more_than_the_uniform_one(pipe):
    from genres.generation.condition_sharing import optimal_plan

    table = pipe.calibrate(10, 3.0)
    assert table.shape == (10, 10) and np.allclose(np.diag(table), 1) and np.allclose(table, table.T)
    assert plan_cost(table, optimal_plan(table, 4)) <= plan_cost(table, uniform_plan(10, 4))


def test_saved_and_loaded(pipe, tmp_path):
    before = draw(pipe, condition_steps=2)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / SIMILARITY_FILE).is_file()
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["id2label"]["1"] == "dog, hound" and index["vae"] == [None, None]
    again = DDTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.labels == pipe.labels and again.config["sample_size"] == 8
    again._measure = None  # the table came with the folder
    assert torch.equal(draw(again, ["cat", "tree"], condition_steps=2), before)


def test_guidance_is_the_pipelines_unless_a_call_says_otherwise(tmp_path):
    plain = pixels()
    ours = DDTPipeline(
        plain.transformer, flow_scheduler(), id2label=NAMES, sample_size=8, guidance_scale=3.0, pag_scale=1.5
    )
    ours.save_pretrained(tmp_path)
    ours = DDTPipeline.from_pretrained(tmp_path)
    ours.set_progress_bar_config(disable=True)
    said = draw(plain, guidance_scale=3.0, pag_scale=1.5)
    assert torch.equal(draw(ours), said) and not torch.allclose(draw(plain), said, atol=1e-3)
    assert torch.equal(draw(ours, guidance_scale=2.0, pag_scale=0.0), draw(plain))
    for arguments, message in [({"pag_scale": -1.0}, "perturbed-attention"), ({"guidance_scale": -1.0}, "guidance")]:
        with pytest.raises(ValueError, match=f"{message}.* must be 0 or more, not -1.0"):
            draw(plain, **arguments)
    assert draw(plain, pag_scale=1.0, condition_steps=3).isfinite().all() and len(plain.similarities) == 1
    plain.calibrate(6, pag_scale=1.0)
    assert len(plain.similarities) == 1
    plain.calibrate(6)
    assert len(plain.similarities) == 2


def test_loaded_from_a_transformer_or_a_checkpoint(pipe, tmp_path):
    pipe.transformer.save_pretrained(tmp_path / "alone")
    alone = DDTPipeline.from_pretrained(tmp_path / "alone")
    alone.set_progress_bar_config(disable=True)
    assert torch.equal(draw(alone, height=8, width=8), draw(pipe))
    from tests.parity.cases import load_case

    torch.save(load_case("ddt", "tiny").state(), tmp_path / "ddt.ckpt")
    official = DDTPipeline.from_pretrained(tmp_path / "ddt.ckpt")
    assert official.vae is None and official.transformer.config["in_channels"] == 4
    for wrong, message in [
        (tmp_path / "nothing", "no file or folder"),
        (tmp_path, "neither config.json nor model_index.json"),
        ("adair-all-in-one", "AdaIR; generation needs DDTTransformer"),
        ("ddt-official-xl-256", "is not embedded: get"),
    ]:
        with pytest.raises(ValueError, match=message):
            DDTPipeline.from_pretrained(wrong)


def test_latent_space(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.5,
    ).eval()
    pipe = DDTPipeline(tiny(), flow_scheduler(), vae, sample_size=8)
    pipe.set_progress_bar_config(disable=True)
    images, latents = draw(pipe), draw(pipe, output_type="latent")
    assert images.shape == (2, 3, 16, 16) and latents.shape == (2, 4, 8, 8)
    assert torch.allclose((vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1), images, atol=1e-5)
    assert draw(pipe, height=8, width=24).shape == (2, 3, 8, 24)
    pipe.save_pretrained(tmp_path)
    again = DDTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), images)
    given = DDTPipeline.from_pretrained(tmp_path / "transformer", vae=tmp_path / "vae")
    assert given.vae_scale_factor == 2
    with pytest.raises(ValueError, match="works on 3 channels, the autoencoder on 4"):
        DDTPipeline(tiny(in_channels=3), flow_scheduler(), vae)
    with pytest.raises(ValueError, match="needs an autoencoder"):
        DDTPipeline(tiny(in_channels=6), flow_scheduler())


def test_other_solvers(pipe):
    exact = draw(pipe, num_inference_steps=100, output_type="latent")
    coarse = draw(pipe, num_inference_steps=10, output_type="latent")
    pipe.scheduler = flow_scheduler("unipc")
    assert (draw(pipe, num_inference_steps=10, output_type="latent") - exact).norm() < (coarse - exact).norm() / 2
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    assert (draw(pipe, num_inference_steps=5, output_type="latent") - exact).norm() < (coarse - exact).norm()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="not set up for flow matching"):
        draw(pipe)
    with pytest.raises(ValueError, match="euler or unipc"):
        flow_scheduler("magic")


def test_callback_sees_and_replaces_latents(pipe):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, float(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 5 else tensors

    assert torch.equal(draw(pipe, callback_on_step_end=callback), torch.full((2, 3, 8, 8), 0.5))
    assert [index for index, _, _ in seen] == list(range(6)) and seen[0][1] == 1000
    draw(pipe, callback_on_step_end=lambda *given: {})


def test_interruption(pipe):
    seen = []

    def stop(how):
        def callback(pipe, index, timestep, tensors):
            seen.append(index)
            if index == 2:
                how(pipe)
            return tensors

        return callback

    with pytest.raises(Interrupted):
        draw(pipe, callback_on_step_end=stop(DDTPipeline.interrupt))
    assert seen == [0, 1, 2]
    seen.clear()
    early = draw(pipe, callback_on_step_end=stop(lambda pipe: setattr(pipe, "_interrupt", True)))
    assert seen == [0, 1, 2] and early.shape == (2, 3, 8, 8)
    assert draw(pipe).isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=1e9),
        TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32),
        TaylorSeerCacheConfig(use_lite_mode=True, cache_interval=3, disable_cache_before_step=2),
    ],
    ids=["first-block", "taylor", "taylor-lite"],
)
def test_caches_work_beside_sharing(config):
    pipe = pixels(num_decoder_blocks=2)
    plain = draw(pipe, num_inference_steps=12, guidance_scale=3.0)
    shared = draw(pipe, num_inference_steps=12, guidance_scale=3.0, condition_steps=4)
    calls = []
    for part in (pipe.transformer.condition_encoder, pipe.transformer.velocity_decoder):
        part.blocks[1].feed_forward.project.register_forward_hook(lambda *given: calls.append(1))
    draw(pipe, num_inference_steps=12, guidance_scale=3.0)
    every = len(calls)
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match="already"):
        pipe.transformer.enable_cache(config)
    calls.clear()
    cached = draw(pipe, num_inference_steps=12, guidance_scale=3.0)
    assert len(calls) < every and cached.isfinite().all() and not torch.equal(cached, plain)
    assert torch.equal(cached, draw(pipe, num_inference_steps=12, guidance_scale=3.0))  # nothing is left of a run
    both = draw(pipe, num_inference_steps=12, guidance_scale=3.0, condition_steps=4)
    assert both.isfinite().all() and not torch.equal(both, shared)
    pipe.similarities.clear()
    assert torch.equal(draw(pipe, num_inference_steps=12, guidance_scale=3.0, condition_steps=4), both)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe, num_inference_steps=12, guidance_scale=3.0, condition_steps=4), shared)


def test_a_cache_that_never_applies_changes_nothing():
    pipe = pixels(num_decoder_blocks=2)
    plain = draw(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(draw(pipe), plain)
    pipe = pixels(num_decoder_blocks=1)  # a part of one block has nothing to leave out
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert draw(pipe).isfinite().all()
    pipe.transformer.disable_cache()


def test_half_precision(pipe):
    exact = draw(pipe)
    pipe.to(torch.bfloat16)
    assert (draw(pipe, condition_steps=3) - exact).abs().mean() < 0.1


def test_values_that_are_not_finite_are_refused(pipe):
    pipe.transformer.velocity_decoder.output.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        draw(pipe)


def test_names_of_imagenet():
    from pipelines.ddt import imagenet_names

    assert len(imagenet_names()) == 1000 and imagenet_names()[281] == "tabby"
