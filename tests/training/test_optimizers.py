"""NorMuon gives the numbers of the authors' code and has the properties that the paper states."""

import pytest
import torch

from genres.training.optimizers import NorMuon, orthogonalise, split_parameters
from tests.parity.cases import load_case, relative_error

MATRICES = ("wide", "tall", "conv")


def test_two_steps_of_the_published_optimizer():
    case = load_case("layers", "normuon_two_steps")
    parameters = {name: torch.nn.Parameter(value) for name, value in case.state().items()}
    optimizer = NorMuon(
        [
            {"params": [parameters[name] for name in MATRICES]},
            {"params": [parameters["gain"]], "lr": 3e-4, "adam": True},
        ],
        lr=0.02,
        conv="published",
    )
    for step in (0, 1):
        for name, parameter in parameters.items():
            parameter.grad = case[f"grad{step}.{name}"].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            assert relative_error(parameter.detach(), case[f"param{step}.{name}"]) <= 1e-5, (step, name)
            assert torch.equal(parameter.grad, case[f"grad{step}.{name}"])  # left as it was
        for name in MATRICES:
            state = optimizer.state[parameters[name]]
            assert relative_error(state["second"], case[f"second_momentum_buffer{step}.{name}"]) <= 1e-4
            assert relative_error(state["momentum"], case[f"momentum_buffer{step}.{name}"]) <= 1e-5
    for name in ("wide", "tall"):
        assert relative_error(orthogonalise(case[f"grad0.{name}"]), case[f"newton_schulz.{name}"]) <= 1e-4


def test_matrices_of_one_shape_step_together_as_they_would_alone():
    torch.manual_seed(0)
    start = [torch.randn(32, 48), torch.randn(16, 16), torch.randn(32, 48)]
    gradients = [torch.randn_like(value) for value in start]
    together = [torch.nn.Parameter(value.clone()) for value in start]
    alone = [torch.nn.Parameter(value.clone()) for value in start]
    optimizers = [NorMuon(together, lr=0.1), *(NorMuon([parameter], lr=0.1) for parameter in alone)]
    for _ in range(3):
        for parameters in (together, alone):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert relative_error(one.detach(), other.detach()) <= 1e-5


def test_the_first_step_gives_all_neurons_the_same_norm():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 3, 3, 3))
    weight.grad = torch.randn_like(weight) * torch.linspace(0.1, 10, 16)[:, None, None, None]
    NorMuon([weight], lr=1.0).step()
    norms = weight.detach().flatten(1).norm(dim=1)
    assert norms.max() / norms.min() < 1.001


def test_split_leaves_small_and_one_dimensional_parameters_to_adam():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3, groups=16), torch.nn.Linear(16, 3)
    )
    matrices, rest = split_parameters(model, adam_lr=1e-3)
    assert [p.shape for p in matrices["params"]] == [(16, 3, 3, 3)]
    assert len(rest["params"]) == 5 and rest["adam"]


def test_split_leaves_tables_of_embeddings_to_adam():
    model = torch.nn.Sequential(torch.nn.Embedding(32, 16), torch.nn.Linear(16, 16, bias=False))
    matrices, rest = split_parameters(model, adam_lr=1e-3)
    assert [p.shape for p in matrices["params"]] == [(16, 16)]
    assert [p.shape for p in rest["params"]] == [(32, 16)]


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'neuron' or 'published'"):
        NorMuon([torch.nn.Parameter(torch.zeros(2, 2))], conv="rows")
