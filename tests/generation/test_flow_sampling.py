"""Flow sampling: sharing at every step changes nothing, guidance where it belongs, other schedulers, cost."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from genres.generation.ddt import DDTOutput
from genres.generation.flow_sampling import flow_steps, guidance_at, set_flow_timesteps
from tests.generation.test_ddt import tiny


def euler(num_steps: int = 6, shift: float = 1.0, last_step: float | None = 0.04):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    set_flow_timesteps(scheduler, num_steps, last_step)
    return scheduler


def draw(model, scheduler=None, **arguments):
    torch.manual_seed(3)
    noise = torch.randn(2, 4, 8, 8)
    return list(flow_steps(model, scheduler or euler(), noise, torch.tensor([1, 4]), **arguments))


class Counter:
    """Wraps a model and counts the images that go through the encoder and through the decoder."""

    def __init__(self, model):
        self.model, self.null_label = model, model.null_label
        self.encoded = self.decoded = 0

    def __call__(self, sample, *arguments, condition=None, **keywords):
        self.decoded += len(sample)
        self.encoded += len(sample) if condition is None else 0
        return self.model(sample, *arguments, condition=condition, **keywords)


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("last_step", [0.04, None])
def test_grid(shift, last_step):
    times = torch.cat([torch.linspace(0, 1 - (last_step or 1 / 6), 6), torch.ones(1)])
    expected = times / (times + (1 - times) * shift)
    assert torch.allclose(1 - euler(6, shift, last_step).sigmas, expected, atol=1e-6)
    with pytest.raises(ValueError, match="last step"):
        euler(last_step=0.0)


def test_a_plan_of_every_step_is_no_sharing():
    model = tiny()
    every = draw(model, guidance_scale=3.0, recompute_steps=range(6))
    assert torch.equal(every[-1].sample, draw(model, guidance_scale=3.0)[-1].sample)
    assert all(step.recomputed for step in every)


@pytest.mark.parametrize("plan", [[0], [0, 1], [0, 2, 4], [0, 3, 5], range(6)])
@pytest.mark.parametrize("extrapolate", [False, True])
def test_leaving_out_the_unconditional_half_changes_nothing(plan, extrapolate):
    model = tiny()
    short = draw(model, guidance_scale=3.0, recompute_steps=plan, extrapolate=extrapolate)
    whole = draw(model, guidance_scale=3.0, recompute_steps=plan, extrapolate=extrapolate, both_halves=True)
    assert torch.allclose(short[-1].sample, whole[-1].sample, atol=1e-5)
    assert [step.index for step in short if step.recomputed] == list(plan)
    assert all(len(step.condition) == 4 for step in whole)


def test_guidance_of_one_is_the_conditional_velocity():
    model = tiny()
    plain = draw(model, guidance_scale=1.0)[-1].sample
    assert torch.equal(plain, draw(model, guidance_scale=5.0, guidance_interval=(1.0, 1.0))[-1].sample)
    assert not torch.allclose(plain, draw(model, guidance_scale=5.0)[-1].sample, atol=1e-3)
    assert [guidance_at(time, 2.0, (0.3, 1.0)) for time in (0.0, 0.3, 0.5, 1.0)] == [1.0, 1.0, 2.0, 1.0]


def test_perturbed_attention_guidance_leads_away_from_the_perturbed_velocity():
    model, scheduler = tiny(), euler(1, last_step=1.0)
    torch.manual_seed(3)
    noise, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 4])
    arguments = {"guidance_scale": 3.0, "guidance_interval": (-1.0, 1.0), "pag_scale": 2.0, "pag_blocks": (1,)}
    step = next(flow_steps(model, scheduler, noise, labels, **arguments))
    null, plain = (model(noise, 0.0, given).sample for given in (torch.full_like(labels, 5), labels))
    perturbed = model(noise, 0.0, labels, perturbed_blocks=(1,)).sample
    expected = noise + null + 3 * (plain - null) + 2 * (plain - perturbed)  # one step, of length 1
    assert torch.allclose(step.sample, expected, atol=1e-5)
    assert not torch.allclose(plain, perturbed, atol=1e-2)


@pytest.mark.parametrize("extrapolate", [False, True])
def test_the_perturbed_branch_shares_conditions_of_its_own(extrapolate):
    model = tiny()
    arguments = {"guidance_scale": 3.0, "pag_scale": 1.0, "pag_blocks": (0,), "extrapolate": extrapolate}
    unshared = draw(model, **{**arguments, "extrapolate": False})[-1].sample
    assert torch.allclose(draw(model, **arguments, recompute_steps=range(6))[-1].sample, unshared, atol=1e-5)
    counter = Counter(model)
    shared = draw(counter, **arguments, recompute_steps=[0, 2, 4])[-1].sample
    assert (shared - unshared).square().mean() < 0.1 * unshared.square().mean()
    assert counter.decoded - counter.encoded >= 3 * 2 * 2  # three steps, two images, plain and perturbed


def test_a_step_on_the_bound_of_the_interval_is_not_guided():
    counter = Counter(tiny())
    draw(counter, euler(10, last_step=0.1), guidance_scale=3.0, guidance_interval=(0.3, 0.7))  # times 0, .1, .. .9
    assert counter.decoded == 10 * 2 + 3 * 2  # .4, .5, .6


def test_only_what_is_needed_is_computed():
    counter = Counter(tiny())
    draw(counter, guidance_scale=3.0, recompute_steps=[0, 2, 4])  # times 0, .19, .38, .58, .77, .96
    assert counter.encoded == 2 + 4 + 4
    assert counter.decoded == 2 + 2 + 4 * 4
    counter = Counter(tiny())
    draw(counter, guidance_scale=1.0)
    assert counter.encoded == counter.decoded == 6 * 2


class Linear:
    """A model whose self-condition is linear in time, and the modulations in it."""

    null_label = 9

    def __call__(self, sample, time, labels, condition=None, modulations=None, return_modulations=False):
        expected = time[:, None, None] * torch.arange(3.0) + labels[:, None, None]  # (B, 1, 3)
        if condition is not None:
            self.errors.append((condition - expected).abs().max().item())
            assert torch.allclose(modulations[0], 2 * condition + 1)
        return DDTOutput(sample, expected, [2 * expected + 1] if return_modulations else None)


def test_extrapolation_continues_what_is_linear_in_time_exactly():
    model = Linear()
    for extrapolate in (False, True):
        model.errors = []
        draw(model, euler(10), guidance_scale=3.0, recompute_steps=[0, 2, 5], extrapolate=extrapolate)
        assert len(model.errors) == 7 and model.errors[0] > 0.1  # there is nothing to continue yet
        assert (max(model.errors[1:]) < 1e-5) == extrapolate


def test_extrapolation_comes_nearer_than_holding():
    model = tiny()
    options = {"guidance_scale": 3.0, "recompute_steps": range(0, 30, 3)}
    exact = draw(model, euler(30), guidance_scale=3.0)[-1].sample
    held, continued = (draw(model, euler(30), extrapolate=e, **options)[-1].sample for e in (False, True))
    assert (continued - exact).norm() < (held - exact).norm() / 2


def test_a_consumer_may_replace_the_sample():
    model = tiny()
    torch.manual_seed(3)
    noise = torch.randn(2, 4, 8, 8)
    for step in flow_steps(model, euler(), noise, torch.tensor([1, 4])):
        assert not step.sample.requires_grad and torch.is_grad_enabled()
        if step.index == 4:
            step.sample = torch.zeros_like(step.sample)
    assert not torch.allclose(step.sample, draw(model)[-1].sample, atol=1e-3)


def test_a_higher_order_scheduler_needs_fewer_steps():
    model = tiny()
    exact = draw(model, euler(100, last_step=None))[-1].sample
    heun = FlowMatchHeunDiscreteScheduler()
    heun.set_timesteps(10)
    coarse = draw(model, euler(20, last_step=None))[-1].sample
    assert (draw(model, heun)[-1].sample - exact).norm() < (coarse - exact).norm()


@pytest.mark.parametrize("plan", [[], [1, 2], [0, 2, 2], [0, 3, 1], [0, 6]])
def test_wrong_plans_are_refused(plan):
    with pytest.raises(ValueError, match="ascend from 0"):
        draw(tiny(), recompute_steps=plan)
