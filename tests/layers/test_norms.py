"""The RMS norm is PyTorch's, with and without gradients, and with a weight for each of several tensors."""

import pytest
import torch
import torch.nn.functional as F

from genres.layers.norms import RMSNorm, rms_norm


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_pytorch(gradients, dtype):
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 16).to(dtype)
    before = x.clone()
    with torch.set_grad_enabled(gradients):
        found = norm(x)
    expected = F.rms_norm(x.double(), (16,), norm.weight.double(), 1e-6)
    assert found.dtype == dtype and x.equal(before)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_weight_may_differ_between_the_tensors_of_a_stack(gradients):
    torch.manual_seed(0)
    x, weights = torch.randn(2, 5, 2, 3, 8), torch.randn(2, 1, 8)
    with torch.set_grad_enabled(gradients):
        found = rms_norm(x, weights, 1e-6)
    for i in range(2):
        assert torch.allclose(found[:, :, i], F.rms_norm(x[:, :, i], (8,), weights[i, 0], 1e-6), atol=1e-6)
