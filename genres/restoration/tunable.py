"""Tunable convolutions with parametric multi-loss optimization (arXiv 2304.00898, CVPR 2023).

One network whose behaviour follows a small vector of parameters, one for each objective that it was trained on: every
layer holds one set of kernels per parameter and runs with their mix. `make_tunable` does this to any network;
`fuse` turns it back into an ordinary network at one setting of the parameters. Outputs were checked against the
authors' code (mindspore-lab/mindediting, commit f76f419).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.func import functional_call

from genres.layers.norms import LayerNorm2d
from genres.restoration.naf_net import NAFNet

Mode = Literal["linear", "mlp"]
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase, LayerNorm2d)


class TunableTensors(nn.Module):
    """The tensors of one layer, M times, and the map from parameters to the M coefficients that mix them (section 3.1).

    Each of the M copies is a parameter of its own with the shape of an ordinary layer's, so optimisers and memory
    formats treat it as such.

    Args:
        slices: for each of the M = num_parameters * expand copies, its tensors by name.
        num_parameters: number P of parameters.
        mode: "linear" takes the parameters as coefficients; "mlp" maps them by a learned affine map, which starts as
            the identity (it is one layer despite its name). More copies than parameters need the map in either mode.

    Raises:
        ValueError: unknown mode, or a number of copies that is not a multiple of the number of parameters.
    """

    def __init__(self, slices: Sequence[Mapping[str, Tensor]], num_parameters: int, mode: Mode = "mlp"):
        super().__init__()
        if mode not in ("linear", "mlp"):
            raise ValueError(f"The mode is {mode!r}; it must be 'linear' or 'mlp'.")
        if num_parameters < 1 or not slices or len(slices) % num_parameters:
            raise ValueError(f"{len(slices)} copies cannot be divided among {num_parameters} parameters.")
        self.num_parameters = num_parameters
        self.names = tuple(slices[0])
        self._last: tuple[list[float], list[int], dict[str, Tensor]] | None = None
        for name in self.names:
            copies = [part[name] for part in slices]
            parameters = [nn.Parameter(x.detach().clone(), requires_grad=x.requires_grad) for x in copies]
            setattr(self, name, nn.ParameterList(parameters))
        expand = len(slices) // num_parameters
        self.coefficients = None
        if mode == "mlp" or expand > 1:
            self.coefficients = nn.Linear(num_parameters, len(slices))
            with torch.no_grad():
                self.coefficients.weight.copy_(torch.eye(num_parameters).repeat(expand, 1) / expand)
                self.coefficients.bias.zero_()

    def mix(self, parameters: Tensor | Sequence[float]) -> dict[str, Tensor]:
        """Every tensor at the given parameters, (P,) or (B, P): by name, (B, *shape); B is 1 for (P,)."""
        single = self.mix_one(parameters)
        return self.mix_rows(parameters) if single is None else {name: t[None] for name, t in single.items()}

    def mix_rows(self, parameters: Tensor | Sequence[float]) -> dict[str, Tensor]:
        """The same, for parameters (B, P) of several rows."""
        copies = self._copies()
        weights = self._weights(_rows(parameters, self.num_parameters, copies[0][0]))  # (B, M)
        mixed = {}
        for name, values in zip(self.names, copies, strict=True):
            stack = torch.stack(values).reshape(len(values), -1)  # (M, size)
            mixed[name] = (weights @ stack).view(len(weights), *values[0].shape)
        return mixed

    def mix_one(self, parameters: Tensor | Sequence[float], keep: bool = True) -> dict[str, Tensor] | None:
        """Every tensor (*shape), in the layout of its copies, at one setting (P,) or (1, P); None if there are more.

        Without gradients on a CPU, what was mixed last is kept and given again while neither the parameters nor the
        kernels change: mixing small kernels costs more in calls than in arithmetic.

        Args:
            keep: without it the tensors are mixed anew, and are the caller's.
        """
        tracked = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if keep and self._last is not None and not tracked:
            setting, state, mixed = self._last
            if _one_setting(parameters, self.num_parameters) == setting and self._state() == state:
                return dict(mixed)
        copies = self._copies()
        like = copies[0][0]
        if tracked or like.is_cuda:
            rows = _rows(parameters, self.num_parameters, like)  # (B, P)
            return self._sums(self._weights(rows)[0].unbind(), copies) if len(rows) == 1 else None
        numbers = _one_setting(parameters, self.num_parameters)
        if numbers is None:
            return None
        mixed = self._sums(self._numbers(numbers), copies)
        if keep and not like.is_inference():  # whose changes are not counted
            self._last = numbers, self._state(), mixed
        return dict(mixed)

    def _state(self) -> list[int]:
        """Where the tensors lie, and how often each was changed."""
        # Dictionaries instead of attributes, whose look-ups are slow where the data of a layer has emptied the caches.
        groups = [self._modules[name] for name in self.names] + [self._modules.get("coefficients")]
        tensors: list[Any] = [tensor for group in groups if group is not None for tensor in group._parameters.values()]
        return [tensor.data_ptr() for tensor in tensors] + [tensor._version for tensor in tensors]

    def _copies(self) -> list[tuple[Any, ...]]:
        """For each name, its M tensors."""
        return [tuple(self._modules[name]._parameters.values()) for name in self.names]  # type: ignore[union-attr]

    def _weights(self, rows: Tensor) -> Tensor:
        """(B, P) -> (B, M)."""
        return rows if self.coefficients is None else F.linear(rows, self.coefficients.weight, self.coefficients.bias)

    def _numbers(self, setting: list[float]) -> list[float]:
        """The same of P numbers, for which numbers are faster than tensors."""
        if self.coefficients is None:
            return setting
        rows, shifts = self.coefficients.weight.tolist(), self.coefficients.bias.tolist()
        return [sum(map(operator.mul, row, setting), shift) for row, shift in zip(rows, shifts, strict=True)]

    def _sums(self, weights: Sequence[Any], copies: Sequence[tuple[Any, ...]]) -> dict[str, Tensor]:
        mixed = {}
        for name, values in zip(self.names, copies, strict=True):
            total = values[0] * weights[0]
            for value, weight in zip(values[1:], weights[1:], strict=True):
                total = total + value * weight
            mixed[name] = total
        return mixed


def _one_setting(parameters: Tensor | Sequence[float], count: int) -> list[float] | None:
    """Parameters of shape (count,) or (1, count) as numbers; None for others."""
    if isinstance(parameters, Tensor):
        if parameters.shape == (count,):
            return parameters.tolist()
        return parameters[0].tolist() if parameters.shape == (1, count) else None
    single = len(parameters) == count and all(isinstance(value, (int, float)) for value in parameters)
    return [float(value) for value in parameters] if single else None


def _rows(parameters: Tensor | Sequence[float], count: int, like: Tensor) -> Tensor:
    """Parameters as one row per sample, with the device and type of the kernels: (P,) or (B, P) -> (B, P)."""
    rows = torch.as_tensor(parameters, device=like.device, dtype=like.dtype)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != count or not len(rows):
        raise ValueError(f"The parameters have shape {tuple(rows.shape)}; ({count},) or (batch, {count}) is needed.")
    return rows


def _check_batch(rows: int, batch: int) -> None:
    if rows not in (1, batch):
        raise ValueError(f"There are {rows} rows of parameters for a batch of {batch}; give one row, or one each.")


class TunableConv2d(TunableTensors):
    """Convolution whose kernel and bias are mixed from M of each by the parameters (section 3.1, equation of K).

    The kernels depend on the parameters alone, not on the input. Samples with parameters of their own are convolved
    together, as groups of one convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `nn.Conv2d`.
        num_parameters: number P of parameters.
        expand: kernels per parameter; M = P * expand.
        mode: see `TunableTensors`.

    Shapes: x (B, C_in, H, W), parameters (P,), (1, P) or (B, P) -> (B, C_out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        num_parameters: int = 2,
        expand: int = 1,
        mode: Mode = "mlp",
    ):
        def layer() -> nn.Conv2d:
            return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

        slices = [dict(layer().named_parameters()) for _ in range(num_parameters * expand)]
        super().__init__(slices, num_parameters, mode)
        self.groups = groups
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation}

    def forward(self, x: Tensor, parameters: Tensor | Sequence[float]) -> Tensor:
        if (single := self.mix_one(parameters)) is not None:
            return F.conv2d(x, single["weight"], single.get("bias"), groups=self.groups, **self.geometry)
        tensors = self.mix_rows(parameters)
        kernel, bias = tensors["weight"], tensors.get("bias")  # (B, C_out, C_in / groups, k, k), (B, C_out)
        batch = len(x)
        _check_batch(len(kernel), batch)
        bias = None if bias is None else bias.flatten()
        x = x.reshape(1, -1, *x.shape[2:])  # (1, B * C_in, H, W)
        x = F.conv2d(x, kernel.flatten(0, 1), bias, groups=batch * self.groups, **self.geometry)
        return x.unflatten(1, (batch, -1))[0]  # (B, C_out, H', W')


class TunableLinear(TunableTensors):
    """Dense layer whose weight and bias are mixed from M of each by the parameters.

    Args:
        in_features, out_features, bias: as for `nn.Linear`.
        num_parameters, expand, mode: see `TunableConv2d`.

    Shapes: x (B, ..., C_in), parameters (P,), (1, P) or (B, P) -> (B, ..., C_out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        num_parameters: int = 2,
        expand: int = 1,
        mode: Mode = "mlp",
    ):
        count = num_parameters * expand
        slices = [dict(nn.Linear(in_features, out_features, bias).named_parameters()) for _ in range(count)]
        super().__init__(slices, num_parameters, mode)

    def forward(self, x: Tensor, parameters: Tensor | Sequence[float]) -> Tensor:
        if (single := self.mix_one(parameters)) is not None:
            return F.linear(x, single["weight"], single.get("bias"))
        tensors = self.mix_rows(parameters)
        weight, bias = tensors["weight"], tensors.get("bias")  # (B, C_out, C_in), (B, C_out)
        _check_batch(len(weight), len(x))
        out = x.reshape(len(x), -1, x.shape[-1]) @ weight.transpose(1, 2)  # (B, N, C_out)
        out = out if bias is None else out + bias[:, None]
        return out.view(*x.shape[:-1], -1)


class TunableParameter(TunableTensors):
    """Any learned tensor, mixed from M of them by the parameters.

    Args:
        initial: the value that all M start with.
        num_parameters, expand, mode: see `TunableConv2d`.

    Shapes: parameters (P,) or (B, P) -> (1, *shape) or (B, *shape).
    """

    def __init__(self, initial: Tensor, num_parameters: int = 2, expand: int = 1, mode: Mode = "mlp"):
        super().__init__([{"data": initial}] * (num_parameters * expand), num_parameters, mode)

    def forward(self, parameters: Tensor | Sequence[float]) -> Tensor:
        return self.mix(parameters)["data"]


class TunableNetwork(nn.Module):
    """Any network with every convolution, dense layer and free parameter made tunable; norms stay as they are.

    It starts with M equal copies: whatever the parameters, as long as they add up to 1, it gives the outputs of the
    network that it was made from. The network's own code runs, with the mixed tensors in place of its own, so layers
    that read each other's weights work too. Use it from one thread at a time, or use what `fuse` returns.

    Args:
        network: what to make tunable; it is copied.
        num_parameters: number P of parameters, one for each objective.
        expand: kernels per parameter.
        mode: "linear" or "mlp", see `TunableTensors`.

    Shapes: as the network's, with a second argument, parameters: (P,) or (1, P) for the whole batch, (B, P) for one
    row per sample, or None for 1 / P each.

    Raises:
        ValueError: on calls with parameters of another shape.
    """

    plain: nn.Module

    def __init__(self, network: nn.Module, num_parameters: int = 2, expand: int = 1, mode: Mode = "mlp"):
        super().__init__()
        self.num_parameters = num_parameters
        self.network = _with_tunable_layers(copy.deepcopy(network), num_parameters, expand, mode)
        # The form of the ordinary network, without memory for its weights; no submodule, so nothing is stored twice.
        object.__setattr__(self, "plain", copy.deepcopy(network).to("meta"))

    @property
    def size_multiple(self) -> int:
        """Sides of the input must be multiples of this."""
        return getattr(self.plain, "size_multiple", 1)

    @property
    def minimum_size(self) -> int:
        """Sides of the input must be at least this."""
        return getattr(self.plain, "minimum_size", 1)

    def train(self, mode: bool = True) -> TunableNetwork:
        self.plain.train(mode)
        return super().train(mode)

    def forward(
        self, image: Tensor, parameters: Tensor | Sequence[float] | None = None, **options: Any
    ) -> Tensor | tuple[Tensor, ...]:
        states = self._states(parameters)
        _check_batch(len(states), len(image))
        if len(states) == 1:
            return functional_call(self.plain, states[0], (image,), options)
        images = image.split(1)
        outputs = [functional_call(self.plain, s, (i,), options) for s, i in zip(states, images, strict=True)]
        if isinstance(outputs[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
        return torch.cat(outputs)

    @torch.no_grad()
    def fuse(self, parameters: Tensor | Sequence[float] | None = None) -> nn.Module:
        """The ordinary network at one setting of the parameters, (P,) or (1, P): equal outputs at no extra cost.

        It is of the class that the tunable network was made from, and shares no memory with it.
        """
        states = self._states(parameters, keep=False)
        if len(states) != 1:
            raise ValueError(f"There are {len(states)} rows of parameters; a fused network has one setting.")
        filled: dict[int, Any] = {id(buffer): states[0][name] for name, buffer in self.plain.named_buffers()}
        for name, parameter in self.plain.named_parameters():
            filled[id(parameter)] = nn.Parameter(states[0][name], requires_grad=parameter.requires_grad)
        return copy.deepcopy(self.plain, filled)  # with these in place of its tensors, which have no memory

    def _states(self, parameters: Tensor | Sequence[float] | None, keep: bool = True) -> list[dict[str, Tensor]]:
        """For each row of parameters, every tensor by its name in the plain network.

        Args:
            keep: without it no memory is shared with this network, where no gradients are needed.
        """
        if parameters is None:
            parameters = [1 / self.num_parameters] * self.num_parameters
        rows = _rows(parameters, self.num_parameters, next(self.network.parameters()))  # (B, P)
        states: list[dict[str, Tensor]] = [{} for _ in rows]

        def collect(module: nn.Module, path: tuple[str, ...]) -> None:
            if isinstance(module, TunableTensors):
                single = module.mix_one(rows, keep)
                mixed = {} if single is not None else module.mix_rows(rows)
                per_row = [single or {name: stack[row] for name, stack in mixed.items()} for row in range(len(rows))]
                for state, tensors in zip(states, per_row, strict=True):
                    whole = isinstance(module, TunableParameter)
                    state.update({".".join(path if whole else (*path, name)): t for name, t in tensors.items()})
                return
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for state in states:
                state.update({".".join((*path, name)): t if keep else t.detach().clone() for name, t in own})
            for name, child in module.named_children():
                collect(child, (*path, name))

        collect(self.network, ())
        return states


def _with_tunable_layers(module: nn.Module, num_parameters: int, expand: int, mode: Mode) -> nn.Module:
    """Replace, in place, whatever can be tuned; what remains holds the kernels and is never run."""
    if isinstance(module, LAYERS):
        return TunableTensors([dict(module.named_parameters())] * (num_parameters * expand), num_parameters, mode)
    if isinstance(module, NORMS):
        return module
    for name, child in list(module.named_children()):
        module._modules[name] = _with_tunable_layers(child, num_parameters, expand, mode)
    for name, parameter in list(module.named_parameters(recurse=False)):
        del module._parameters[name]
        module._modules[name] = TunableParameter(parameter, num_parameters, expand, mode)
    return module


def make_tunable(network: nn.Module, num_parameters: int = 2, expand: int = 1, mode: Mode = "mlp") -> TunableNetwork:
    """A tunable copy of any network; see `TunableNetwork`.

    The number of weights grows by M = num_parameters * expand; for one row of parameters the extra work is M
    multiplications per weight, whatever the size of the image (section 3.1).
    """
    return TunableNetwork(network, num_parameters, expand, mode)


class TunableNAFNet(TunableNetwork, ModelMixin, ConfigMixin):
    """NAFNet with every convolution and every residual scale tunable (section 4; denoising on SIDD).

    The authors train it so that (1, 0) removes the most noise and (0, 1) the least; parameters lie in [0, 1] and add
    up to 1.

    Args:
        channels, width, encoder_blocks, middle_blocks, decoder_blocks: see `NAFNet`.
        num_parameters, expand, mode: see `TunableNetwork`.
        stem: see `NAFNet`.
        dials: names of the parameters, for people.

    Shapes: image (B, channels, H, W) in [0, 1] of any size, parameters as for `TunableNetwork` -> as the image, not
    clamped.

    Raises:
        ValueError: as many names of dials as parameters are needed.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
        num_parameters: int = 2,
        expand: int = 1,
        mode: Mode = "mlp",
        stem: int = 1,
        dials: Sequence[str] | None = None,
    ):
        if dials is not None and len(dials) != num_parameters:
            raise ValueError(f"There are {len(dials)} names of dials for {num_parameters} parameters; name each.")
        network = NAFNet(channels, width, encoder_blocks, middle_blocks, decoder_blocks, stem)
        super().__init__(network, num_parameters, expand, mode)
