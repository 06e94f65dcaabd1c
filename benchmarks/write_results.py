"""Write docs/results.md from the figures in benchmarks/results.

python -m benchmarks.write_results
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

HEAD = """# Results

Every figure on this page is written by `python -m benchmarks.write_results` from the JSON files in
`benchmarks/results`, which the commands named below print and write.

## Quality of the embedded models

`python -m benchmarks.restoration_quality` degrades photographs with fixed seeds, restores them through
`RestorationPipeline`, and gives the mean RGB PSNR in dB of 8-bit images. The degradations are described in that file:
haze is dense, rain is that of the training distribution, low light and blur come with 1 % noise. "nothing" is the clean
photograph itself, where 100 stands for an equal image.

What falls short: the all-in-one model hardly removes haze, and motion blur not at all; on some photographs it makes a
blurred or clean picture slightly worse. `dea-net-haze` treats a clear photograph as a hazy one. Both were
trained for about two hours on one processor core; the recipes can be run longer.
"""

SPEED = """
## Speed against the official way of computing

`python -m benchmarks.restoration_speed` runs the published sizes (AdaIR 28.8 M parameters, DEA-Net 3.65 M, deployed) on
random weights, each figure in a process of its own: our modules against the order of operations of the authors' code
(`benchmarks/official_way.py`), same weights, same input. Memory is the peak above the loaded network.
On a shared machine the ratios vary from run to run.
"""


def quality_table(path: Path) -> str:
    content = json.loads(path.read_text())
    title = path.stem.removeprefix("restoration_quality_")
    models = list(dict.fromkeys(name for row in content["psnr"].values() for name in row))
    lines = [f"\n### {title.replace('_', ' ')} ({content['images']} images)\n"]
    lines.append(f"| | {' | '.join(models)} |")
    lines.append("|---" * (len(models) + 1) + "|")
    for label, row in content["psnr"].items():
        cells = [f"{row[name]:.2f}" if name in row else "" for name in models]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def speed_table(path: Path) -> str:
    content = json.loads(path.read_text())
    machine = content["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    lines = [f"\n{where}, torch {content['torch']}:\n"]
    lines.append("| model | size | official | ours | ratio | memory official | memory ours | relative difference |")
    lines.append("|---" * 8 + "|")
    for row in content["rows"]:
        official, ours = row["official"], row["ours"]
        lines.append(
            f"| {row['model']} | {row['size']} | {official['seconds']:.2f} s | {ours['seconds']:.2f} s "
            f"| {row['ratio']:.2f} | {official['memory']:.0f} MiB | {ours['memory']:.0f} MiB "
            f"| {row['relative difference']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    page = HEAD
    for path in sorted(RESULTS.glob("restoration_quality_*.json")):
        page += quality_table(path)
    for path in sorted(RESULTS.glob("restoration_speed*.json")):
        page += SPEED + speed_table(path)
    (ROOT / "docs/results.md").write_text(page)


if __name__ == "__main__":
    main()
