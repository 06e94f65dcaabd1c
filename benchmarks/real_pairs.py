"""The embedded models on photographs that were taken twice, degraded and clean, such as the O-HAZE pairs.

    python -m benchmarks.real_pairs --degraded FOLDER --clean FOLDER --name NAME [--side N] [--models NAME...]

The files of both folders pair up in the order of their numbers. Both images are reduced to N pixels on the long side,
the degraded one is restored by `RestorationPipeline` and rounded to 8 bits: RGB PSNR in dB, of each pair and in the
mean. "By itself" is the pipeline that is told nothing. Such pairs are not ours to spread. Writes
benchmarks/results/real_pairs_NAME.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import write_result
from benchmarks.restoration_quality import BY_ITSELF, load, photographs, to_tensor
from genres.metrics import psnr


def reduced(path: Path, side: int) -> np.ndarray:
    """(H, W, 3), uint8, the long side of at most `side` pixels."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return np.array(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degraded", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--side", type=int, default=640, help="longest side in pixels")
    parser.add_argument("--models", nargs="+", default=[BY_ITSELF, "adair-all-in-one", "dea-net-haze"])
    options = parser.parse_args()
    pairs = list(zip(photographs(options.degraded, 1), photographs(options.clean, 1), strict=True))
    pipelines = {name: load(name) for name in options.models}
    rows = []
    for degraded_path, clean_path in pairs:
        degraded, clean = (reduced(path, options.side) for path in (degraded_path, clean_path))
        outputs = {"input": degraded}
        for name, pipeline in pipelines.items():
            outputs[name] = pipeline(degraded, choose=name == BY_ITSELF).images[0]
        values = {name: round(psnr(to_tensor(output), to_tensor(clean)), 2) for name, output in outputs.items()}
        rows.append({"pair": degraded_path.stem} | values)
        print(rows[-1], flush=True)
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 2) for name in ("input", *pipelines)}
    print(mean)
    write_result(f"real_pairs_{options.name}", {"side": options.side, "rows": rows, "mean": mean})


if __name__ == "__main__":
    main()
