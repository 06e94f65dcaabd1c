"""A small classifier of the pictures that generation is trained on; it judges samples, and its features compare sets.

Run `python -m benchmarks.picture_classifier mnist` (or `emoji`): it trains on the training pictures with random shifts,
turns and sizes, prints the accuracy on the held-out ones, and keeps the weights in the cache folder. The seed is fixed.
That of emoji also learns how the styles Noto and Twemoji draw them, but for the held-out ones, which no style shows it:
it then knows what they mean better than from one drawing each.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genres.training.cache import cache_folder
from genres.training.pictures import Pictures, load_pictures

SIZE = 32
FEATURES = 128
EPOCHS = {"mnist": 24, "emoji": 40}
LABELS = {"mnist": "group", "emoji": "subgroup"}
STYLES = ("fluent", "noto", "twemoji")  # of emoji that it learns from; the first is the one that it judges
BATCH = 64


class Classifier(nn.Module):
    """Three stages of convolutions. Shapes: (B, C, 32, 32) in [-1, 1] -> features (B, 128), of which `head` names."""

    def __init__(self, channels: int, classes: int):
        super().__init__()

        def stage(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)
            )

        self.stages = nn.Sequential(stage(channels, 32), stage(32, 64), stage(64, 64))
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, FEATURES), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, picture: Tensor) -> Tensor:
        return self.features(self.stages(picture))

    def logits(self, picture: Tensor) -> Tensor:
        return self.head(self.drop(self(picture)))


def as_tensor(pictures: Pictures) -> Tensor:
    """(N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def classes(pictures: Pictures) -> tuple[Tensor, list[str]]:
    """For every label the number of its group, and the names of the groups: digits, or the nine groups of emoji."""
    names = list(dict.fromkeys(pictures.groups))
    return torch.tensor([names.index(group) for group in pictures.groups]), names


def shaken(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Random turns up to 12 degrees, sizes 0.88 to 1.12, shears and shifts up to 2 pixels."""
    count = len(batch)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale, shear = between(-0.21, 0.21), between(0.88, 1.12), between(-0.2, 0.2)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = 2 * between(-2, 2) / SIZE, 2 * between(-2, 2) / SIZE
    rows = torch.stack([cosine, -sine + shear, shift[0], sine, cosine, shift[1]], 1).view(count, 2, 3)
    grid = F.affine_grid(rows, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def train(source: str, seed: int = 0) -> Classifier:
    """Train on the training pictures of a collection, from a fixed seed."""
    pictures = load_pictures(source, SIZE, LABELS[source], STYLES)
    group_of, names = classes(pictures)
    training = pictures.training
    data, targets = as_tensor(training), group_of[torch.from_numpy(training.labels)]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(data.shape[1], len(names)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    steps = EPOCHS[source] * math.ceil(len(data) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS[source]):
        order = torch.randperm(len(data), generator=generator)
        for part in order.split(BATCH):
            batch = shaken(data[part], generator)
            if source == "emoji":
                mirrored = torch.from_numpy(training.mirrored)[part] & (
                    torch.rand(len(part), generator=generator) < 0.5
                )
                batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
            loss = F.cross_entropy(model.logits(batch), targets[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS[source]}: loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.inference_mode()
def predict(model: Classifier, pictures: Tensor) -> tuple[Tensor, np.ndarray]:
    """Class (N,) and features (N, 128) float64 of pictures (N, C, S, S) in [-1, 1].

    Other sizes than 32 become it first: every pixel is the mean of the area that it covers, as in the training ones.
    """
    pictures = F.adaptive_avg_pool2d(pictures, SIZE)
    features = torch.cat([model(part) for part in pictures.split(256)])
    return model.head(features).argmax(1), features.double().numpy()


def weights_file(source: str) -> Path:
    return cache_folder("pictures") / f"classifier-{source}-{len(STYLES)}.pt"


def load(source: str) -> Classifier:
    """The classifier of a collection, trained first if it is not in the cache folder."""
    path = weights_file(source)
    pictures = load_pictures(source, SIZE, LABELS[source])
    model = Classifier(pictures.pixels.shape[-1], len(classes(pictures)[1]))
    if not path.is_file():
        trained = train(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(trained.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def accuracy(model: Classifier, source: str) -> float:
    """Share of the held-out pictures whose class is named right."""
    pictures = load_pictures(source, SIZE, LABELS[source])
    held_out = pictures.part(pictures.held_out)
    named, _ = predict(model, as_tensor(held_out))
    return (named == classes(pictures)[0][torch.from_numpy(held_out.labels)]).double().mean().item()


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features (N, D) and (M, D), taken as normal distributions."""
    difference = first.mean(0) - second.mean(0)
    one, two = (np.cov(features, rowvar=False) for features in (first, second))
    # The trace of the root of one @ two is the sum of the roots of its eigenvalues, which are not negative.
    roots = np.sqrt(np.clip(np.linalg.eigvals(one @ two).real, 0, None)).sum()
    return float(difference @ difference + np.trace(one) + np.trace(two) - 2 * roots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=list(EPOCHS))
    parser.add_argument("--again", action="store_true", help="train even if the weights are in the cache folder")
    arguments = parser.parse_args()
    if arguments.again:
        weights_file(arguments.source).unlink(missing_ok=True)
    print(f"held-out accuracy {accuracy(load(arguments.source), arguments.source):.4f}")


if __name__ == "__main__":
    main()
