"""DDT gives the numbers of the authors' code, through their key names: network, samplers and sharing."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from genres.generation.condition_sharing import condition_similarity, optimal_plan, plan_cost, segment_costs
from genres.generation.ddt import SIZES, DDTTransformer
from genres.generation.flow_sampling import flow_steps, set_flow_timesteps
from tests.parity.cases import TOLERANCE, Case, load_case, relative_error
from weights import load_official
from weights.official import ddt

SAMPLER_TOLERANCE = 1e-3


@torch.inference_mode()
def test_network():
    case = load_case("ddt", "tiny")
    model = load_official(case.state())
    first = model(case["x"], case["t"], case["y"], return_modulations=True)
    shared = model(case["x2"], case["t2"], case["y2"], first.condition)
    quick = model(case["x2"], case["t2"], case["y2"], first.condition, first.modulations)
    fresh = model(case["x2"], case["t2"], case["y2"])
    null = model(case["x"], case["t"], torch.full_like(case["y"], model.null_label))
    for actual, name in [
        (first.sample, "velocity"),
        (first.condition, "s"),
        (shared.sample, "velocity2_shared"),
        (quick.sample, "velocity2_shared"),
        (fresh.sample, "velocity2_fresh"),
        (fresh.condition, "s2_fresh"),
        (null.sample, "velocity_null"),
    ]:
        assert relative_error(actual, case[name]) <= TOLERANCE, name
    assert shared.condition is first.condition


def test_manifest_of_the_published_size():
    case = load_case("ddt", "xl_manifest")
    with torch.device("meta"):
        state = {f"denoiser.{key}": torch.empty(shape) for key, shape, _ in case.description["state"]}
        state = {f"ema_{key}": value for key, value in state.items()} | state
        inner = {key.removeprefix("ema_denoiser."): value for key, value in state.items() if key.startswith("ema_")}
        assert not ddt.recognise(state) and ddt.recognise(inner)
        model, renamed = ddt.build(inner)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in renamed.items()} == ours
    assert sum(value.numel() for value in renamed.values()) == case.description["parameters"] == 674_646_352
    expected = {**SIZES["XL/2"], "in_channels": 4, "patch_size": 2, "num_classes": 1000}
    assert {name: model.config[name] for name in expected} == expected


@pytest.mark.parametrize(("size", "parameters"), [("B/2", 130_262_800), ("L/2", 457_648_144), ("XL/2", 674_646_352)])
def test_parameters_of_the_named_sizes(size, parameters):
    with torch.device("meta"):
        model = DDTTransformer(**SIZES[size])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def sampler(case: Case) -> FlowMatchEulerDiscreteScheduler:
    arguments = case.description["reference"]["sampler_arguments"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=arguments["timeshift"])
    set_flow_timesteps(scheduler, arguments["num_steps"], arguments["last_step"])
    assert relative_error(1 - scheduler.sigmas, case["timesteps"]) <= TOLERANCE
    return scheduler


@pytest.mark.parametrize("both_halves", [False, True])
@pytest.mark.parametrize("refresh", [1, 2])
def test_euler(refresh, both_halves):
    case = load_case("ddt", "euler")
    steps = list(
        flow_steps(
            load_official(case.state()),
            sampler(case),
            case["noise"],
            case["condition"],
            guidance_scale=2.0,
            recompute_steps=range(0, 10, refresh),
            both_halves=both_halves,
        )
    )
    trajectory = torch.stack([case["noise"], *(step.sample for step in steps[:-1])])
    assert relative_error(trajectory, case[f"trajectory_refresh{refresh}"]) <= SAMPLER_TOLERANCE
    assert relative_error(steps[-1].sample, case[f"sample_refresh{refresh}"]) <= SAMPLER_TOLERANCE


@pytest.mark.parametrize(("num_steps", "condition_steps"), [(12, 3), (12, 6), (50, 10), (50, 17), (50, 25)])
def test_sharing_dp(num_steps, condition_steps):
    case = load_case("ddt", "sharing_dp")
    similarity = case[f"similarity_{num_steps}"].numpy()
    below = np.tri(num_steps, k=-1, dtype=bool)
    difference = segment_costs(similarity)[below] - case[f"cumulative_{num_steps}"].numpy()[below]
    assert np.abs(difference).max() < 1e-12
    plan = optimal_plan(similarity, condition_steps)
    name = f"{num_steps}_k{condition_steps}"
    assert plan == case[f"timesteps_{name}"].tolist()
    assert plan_cost(similarity, plan) == pytest.approx(case[f"cost_{name}"].item(), abs=1e-12)


def test_sharing_run():
    case = load_case("ddt", "sharing_run")
    model = load_official(case.state())
    template = flow_steps(
        model, sampler(case), case["template_noise"], case["template_condition"], guidance_scale=2.0, both_halves=True
    )
    similarity = condition_similarity([step.condition for step in template])
    assert relative_error(torch.from_numpy(similarity), case["similarity"].double()) <= TOLERANCE
    plan = optimal_plan(similarity, int(14 / 2.8))
    assert plan == case["recompute_timesteps"].tolist()
    *_, last = flow_steps(
        model, sampler(case), case["noise"], case["condition"], guidance_scale=2.0, recompute_steps=plan
    )
    assert relative_error(last.sample, case["sample"]) <= SAMPLER_TOLERANCE
