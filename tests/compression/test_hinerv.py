"""What must hold of decoders with grids and latents: sizes, true counts, independence of frames, frames in between."""

import pytest
import torch

from genres.compression.hinerv import FORMS, HiNeRV, Sizes, map_sizes, stored_values
from genres.compression.variants import KINDS, build_model, latent_values, least_values

SMALL = {
    "frame_size": [18, 26],
    "stored_frames": 5,
    "embedding_dim": 4,
    "width": 6,
    "widths": [5, 4],
    "kernels": [1, 3],
    "strides": [3, 2],
    "head_stride": 2,
    "grid_nodes": [3, 1],
    "grid_channels": [2, 1],
    "latent_channels": [1, 0],
}


def small(form: str = "bilinear", **changes) -> HiNeRV:
    torch.manual_seed(0)
    model = HiNeRV(**SMALL | {"form": form, "mlp_ratio": 2 if form == "bilinear" else 1} | changes).eval()
    for latents in model.latents.values():
        torch.nn.init.normal_(latents)
    return model.requires_grad_(False)


def decode(model: HiNeRV, *numbers: int) -> torch.Tensor:
    chosen = torch.tensor(numbers)
    return model.decode(chosen, {name: value[chosen] for name, value in model.frame_tensors.items()})


def counted(model: HiNeRV) -> int:
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return stored_values(Sizes(num_frames=config.pop("stored_frames"), **config))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", [{}, {"latent_channels": [0, 3]}, {"grid_channels": [0, 0]}, {"head_stride": 1}])
def test_values_are_counted_truly(form, changes):
    model = small(form, **changes)
    assert counted(model) == model.stored_values == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(18, 26), (17, 1), (1, 1), (24, 36)])
def test_frames_have_their_size(form, size):
    frames = decode(small(form, frame_size=list(size)), 0, 4)
    assert frames.shape == (2, 3, *size) and frames.min() >= 0 and frames.max() <= 1


def test_maps_cover_the_frame_and_no_more():
    assert map_sizes((160, 320), (5, 4, 4, 2)) == [(1, 2), (5, 10), (20, 40), (80, 160), (160, 320)]
    assert map_sizes((18, 26), (3, 2), 2) == [(2, 3), (5, 7), (9, 13)]


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_depends_on_its_own_features_only(form):
    model = small(form)
    before = decode(model, 0, 1, 2, 3, 4)
    for value in model.frame_tensors.values():
        value[2] += 1
    changed = (decode(model, 0, 1, 2, 3, 4) - before).abs().amax((1, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("form", FORMS)
def test_nodes_act_near_their_time(form):
    model = small(form)
    before = decode(model, 0, 1, 2, 3, 4)
    model.grids["0"][0] += 1  # three nodes for five frames: the first one reaches to the middle
    changed = (decode(model, 0, 1, 2, 3, 4) - before).abs().amax((1, 2, 3)) > 1e-6
    assert changed.tolist() == [True, True, False, False, False]
    before = decode(model, 0, 2, 4)
    model.grids["1"] += 1  # one node: a still grid
    assert ((decode(model, 0, 2, 4) - before).abs().amax((1, 2, 3)) > 1e-6).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "nearest"}, "no stage of the form 'nearest'"),
        ({"kernels": [1, 2]}, "must be odd"),
        ({"grid_nodes": [1]}, "Every stage needs"),
        ({"grid_nodes": [0, 1]}, "at least one"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        HiNeRV(**SMALL | changes)


@pytest.mark.parametrize("decoder", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (160, 320), (360, 640), (720, 90)])
@pytest.mark.parametrize("frames", [1, 24])
def test_a_solved_network_keeps_within_its_budget(decoder, size, frames):
    arguments = decoder, frames, size, (5, 4, 4, 2), None
    least = least_values(*arguments)
    with pytest.raises(ValueError, match=f"has {least:,} values"):
        build_model(least - 1, *arguments)
    sizes = []
    for budget in (least, 2 * least, 4 * least):
        model = build_model(budget, *arguments)
        assert counted(model) == model.stored_values <= budget
        sizes.append(model.stored_values)
    assert sizes[0] == least and sizes == sorted(sizes)
    latents = sum(value.numel() for value in model.latents.values())
    assert latent_values(*arguments) == latents and bool(latents) == (decoder == "hnerv-latents")


def test_grids_take_their_share():
    model = build_model(19_800, "hnerv-grids", 24, (160, 320), (5, 4, 4, 2), None)
    assert {name: tuple(grid.shape) for name, grid in model.grids.items()} == {"0": (8, 6, 5, 10), "1": (1, 4, 20, 40)}
    assert model.stored_values > 19_000
