"""The gate's own backward pass and scales inside of kernels change nothing but the time."""

import torch

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.naf import NAFBlock, simple_gate


def test_the_gate_has_the_gradients_of_a_product():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(simple_gate(x), x[:, :3] * x[:, 3:])
    assert torch.autograd.gradcheck(simple_gate, (x.contiguous(memory_format=torch.channels_last),))
    assert not simple_gate(x.detach()).requires_grad


def test_a_scale_of_the_kernel_is_one_of_the_outputs():
    torch.manual_seed(0)
    x, scale = torch.randn(2, 5, 3, 4), torch.randn(7, 1, 1)
    for bias in (True, False):
        layer = PointwiseConv2d(5, 7, bias=bias)
        torch.testing.assert_close(layer(x, scale), layer(x) * scale)


def test_a_fresh_block_is_the_identity_and_learns_its_scales():
    block, x = NAFBlock(4), torch.randn(1, 4, 6, 6)
    output = block(x)
    assert torch.equal(output, x)
    output.square().sum().backward()
    for scale in (block.scale1, block.scale2):
        assert scale.grad is not None and scale.grad.abs().min() > 0


def test_training_compiles_as_one_graph():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5, requires_grad=True)
    compiled = torch.compile(simple_gate, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(simple_gate(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
