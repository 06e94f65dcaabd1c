"""AdaIR and DEA-Net computed in the order of operations of their authors' code, for comparison.

The functions take a network of ours and run its weights the official way: NCHW memory, layer norms spelled out on a
flattened copy, queries and keys normalised before their product, both inverse transforms of every frequency block
computed even where the window is empty, interleaved copies before grouped convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution as such, whatever our layer makes of it."""
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    tokens = x.flatten(2).transpose(1, 2)
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
    if norm.bias is None:
        tokens = tokens / torch.sqrt(variance + norm.eps) * norm.weight
    else:
        tokens = (tokens - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias
    return tokens.transpose(1, 2).reshape(x.shape[0], x.shape[1], height, width)


def _attend(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor, projection: nn.Conv2d) -> Tensor:
    b, c, height, width = query.shape
    heads = temperature.shape[0]
    query, key, value = (x.reshape(b, heads, c // heads, height * width) for x in (query, key, value))
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    attention = ((query @ key.transpose(-2, -1)) * temperature).softmax(-1)
    return _conv(projection, (attention @ value).reshape(b, c, height, width))


def _blocks(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        attention, feed_forward = block.attention, block.feed_forward
        qkv = _conv(attention.qkv_depthwise, _conv(attention.qkv, _layer_norm(block.norm1, x)))
        x = x + _attend(*qkv.chunk(3, 1), attention.temperature, attention.projection)
        gate, value = _conv(feed_forward.depthwise, _conv(feed_forward.expand, _layer_norm(block.norm2, x))).chunk(2, 1)
        x = x + _conv(feed_forward.project, F.gelu(gate) * value)
    return x


def _cross(attention: nn.Module, queries: Tensor, features: Tensor) -> Tensor:
    query = _conv(attention.query_depthwise, _conv(attention.query, queries))
    key, value = _conv(attention.key_value_depthwise, _conv(attention.key_value, features)).chunk(2, 1)
    return _attend(query, key, value, attention.temperature, attention.projection)


def _frequency(block: nn.Module, image: Tensor, features: Tensor) -> Tensor:
    height, width = features.shape[-2:]
    embedded = _conv(block.embed, F.interpolate(image, (height, width), mode="bilinear"))
    rates = block.rates(F.adaptive_avg_pool2d(embedded, 1)).sigmoid()
    mask = torch.zeros_like(embedded)
    for i in range(len(mask)):
        rows, columns = (height // 128 * rates[i, 0]).int(), (width // 128 * rates[i, 1]).int()
        mask[i, :, height // 2 - rows : height // 2 + rows, width // 2 - columns : width // 2 + columns] = 1
    shift = (height // 2, width // 2)
    spectrum = torch.roll(torch.fft.fft2(embedded, norm="forward"), shift, (2, 3))
    back = (-shift[0], -shift[1])
    high = torch.fft.ifft2(torch.roll(spectrum * (1 - mask), back, (2, 3)), norm="forward").abs()
    low = torch.fft.ifft2(torch.roll(spectrum * mask, back, (2, 3)), norm="forward").abs()
    high, low = _cross(block.mine_high, high, features), _cross(block.mine_low, low, features)
    gates = block.modulate
    spatial = torch.cat([high.max(1, keepdim=True)[0], high.mean(1, keepdim=True)], 1)
    spatial = gates.spatial_gate(spatial).sigmoid()
    channel = gates.channel_gate(F.adaptive_avg_pool2d(low, 1)) + gates.channel_gate(F.adaptive_max_pool2d(low, 1))
    mined = _conv(gates.projection, low * spatial + high * channel.sigmoid())
    return _cross(block.aggregate, features, mined) * block.mined_scale + features * block.feature_scale


def ada_ir(model: AdaIR, image: Tensor) -> Tensor:
    """Published form (stem 1, box window): (B, 3, H, W) -> (B, 3, H, W)."""
    level1 = _blocks(model.encoder1, _conv(model.embed, image))
    level2 = _blocks(model.encoder2, model.down1(level1))
    level3 = _blocks(model.encoder3, model.down2(level2))
    x = _frequency(model.frequency4, image, _blocks(model.latent, model.down3(level3)))
    x = _blocks(model.decoder3, _conv(model.reduce3, torch.cat([model.up3(x), level3], 1)))
    x = _frequency(model.frequency3, image, x)
    x = _blocks(model.decoder2, _conv(model.reduce2, torch.cat([model.up2(x), level2], 1)))
    x = _frequency(model.frequency2, image, x)
    x = _blocks(model.decoder1, torch.cat([model.up1(x), level1], 1))
    return _conv(model.output, _blocks(model.refinement, x)) + image


def _pixel_attention(attention: nn.Module, x: Tensor) -> Tensor:
    summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    spatial = F.conv2d(F.pad(summary, (3,) * 4, mode="reflect"), attention.spatial.weight, attention.spatial.bias)
    coarse = spatial + attention.channel(F.adaptive_avg_pool2d(x, 1))
    interleaved = torch.stack([x, coarse], 2).flatten(1, 2)
    refine = attention.refine
    return F.conv2d(
        F.pad(interleaved, (3,) * 4, mode="reflect"), refine.weight, refine.bias, groups=refine.groups
    ).sigmoid()


def _residual_blocks(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        residual = _conv(block.conv2, F.relu(_conv(block.conv1, x)) + x)
        if block.attention is not None:
            residual = residual * _pixel_attention(block.attention, residual)
        x = residual + x
    return x


def _fuse(fusion: nn.Module, encoder: Tensor, decoder: Tensor) -> Tensor:
    total = encoder + decoder
    weight = _pixel_attention(fusion.attention, total).sigmoid()
    return _conv(fusion.projection, total + weight * encoder + (1 - weight) * decoder)


def dea_net(model: DEANet, image: Tensor) -> Tensor:
    """Published deployed form (stem 1, no residual): (B, 3, H, W) -> (B, 3, H, W)."""
    level1 = _residual_blocks(model.encoder1, _conv(model.embed, image))
    level2 = F.relu(_conv(model.down2, level1))
    level3 = F.relu(_conv(model.down3, _residual_blocks(model.encoder2, _conv(model.enter2, level2))))
    x = _fuse(model.fusion3, level3, _residual_blocks(model.level3, _conv(model.enter3, level3)))
    x = _residual_blocks(model.decoder2, F.relu(model.up2(x)))
    x = _residual_blocks(model.decoder1, F.relu(model.up1(_fuse(model.fusion2, level2, x))))
    return _conv(model.output, x)
