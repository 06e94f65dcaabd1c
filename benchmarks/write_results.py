"""Write docs/results.md from the figures in benchmarks/results.

python -m benchmarks.write_results
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import RESULTS, ROOT

HEAD = """# Results

Every figure on this page is written by `python -m benchmarks.write_results` from the JSON files in
`benchmarks/results`, which the commands named below print and write.

## Quality of the embedded models

`python -m benchmarks.restoration_quality` degrades photographs with fixed seeds, restores them through
`RestorationPipeline`, and gives the mean RGB PSNR in dB of 8-bit images. The degradations are described in that file:
rain is that of the training distribution, low light and blur come with 1 % noise. "nothing" is the clean photograph
itself, where 100 stands for an equal image. All is computed in float32, but for the table that says bfloat16, in which
command and app compute on a processor with instructions for it.

"noise 25, JPEG" is noise of sigma 25 in a JPEG file of quality 90, as most noisy photographs are; "defocus" is a disk
with a radius of 3 pixels. For all 68 images of CBSD68 with noise of 15, 25 and 50 the FFDNet paper (arXiv 1710.04026)
reports, for noise that is neither clipped nor rounded and of a strength that is told: BM3D in colour 33.52, 30.71 and
27.38, FFDNet 33.87, 31.21 and 27.96.

Every network is measured alone. "By itself" is the pipeline that is told nothing, which gives what is noisy or blurred
and nothing else to the network made for that, and what is only hazy to the dehazing one where that sees more haze;
everything else is `adair-all-in-one`'s. How often is told below.

What falls short: of blur a part is removed, strong blur less than faint; `dea-net-haze` raises the contrast of a clear
photograph a little. A photograph that lacks light is brightened only if it is asked for (`--task lowlight`) where there
are white lights in it, it is not dark as a whole, or it would get only a little brighter; a hazy one is cleared only if
it is asked for (`--task dehaze`) where much of it is white, or it would get only a little darker. The networks were
trained for three to ten hours on one processor core, the first two also for eight minutes on a third of a GPU, and the
first then for nine minutes on half of one; the recipes can be run longer.
"""

LARGE = """
## Large photographs

`python -m benchmarks.large_image`: a photograph of {megapixels:.0f} megapixels through `genres restore` with `{model}`,
from PNG to PNG, needs {GiB beside the model:.2f} GiB beside program and model, and {seconds:.0f} s
({processor}, {threads} threads).
"""

PAIRS = """
## Pairs that a camera took

`python -m benchmarks.real_pairs --degraded FOLDER --clean FOLDER --name NAME`: photographs of one scene with and
without what is to be removed, reduced to {side} pixels on the long side; RGB PSNR in dB. They are not ours to spread.

### {title}

"""

SPEED = """
## Speed against the official way of computing

`python -m benchmarks.restoration_speed` runs the published sizes (AdaIR 28.8 M parameters, DEA-Net 3.65 M, deployed) on
random weights, each figure in a process of its own: our modules against the order of operations of the authors' code
(`benchmarks/official_way.py`), same weights, same input. Memory is the peak above the loaded network.
On a shared machine the ratios vary from run to run.
"""

TUNABLE = """
## Tunable layers against plain ones

`python -m benchmarks.tunable_speed` measures layers of 32 channels in turns: the time that a tunable layer needs more
than the plain one, with settings that stay, with new settings on every call, and in training.

| layer | size | plain | settings stay | settings change | training |
|---|---|---|---|---|---|
"""

REVERSIBLE = """
## Training memory of DeepRFTv2

`python -m benchmarks.reversible_memory` runs one training step of the published size in plain and in memory-saving
mode: the peak of the process above the loaded network, and the most that autograd holds at any moment.

| size | peak, plain | memory-saving | ratio | held by autograd, plain | memory-saving | ratio |
|---|---|---|---|---|---|---|
"""


def tunable_rows(path: Path) -> str:
    lines = []
    for row in json.loads(path.read_text())["rows"]:
        shares = " | ".join(f"{row['overhead'][name]:+.1%}" for name in ("kept", "mixed", "training"))
        lines.append(f"| {row['layer']} | {row['size']} | {row['plain']:.2f} ms | {shares} |\n")
    return "".join(lines)


def tunable_ablation_table(path: Path) -> str:
    content = json.loads(path.read_text())
    settings = sorted({row["detail"] for row in content["rows"]})
    head = " | ".join(f"detail {setting:g}" for setting in settings)
    lines = [TUNABLE_ABLATION.format(**content, settings=head, columns="|".join(["---"] * len(settings)))]
    for way in dict.fromkeys(row["way"] for row in content["rows"]):
        found = {row["detail"]: row for row in content["rows"] if row["way"] == way}
        cells = [f"{found[s]['distance']:.2f} ({found[s]['noise left']:.2f})" if s in found else "" for s in settings]
        lines.append(f"| {way} | {' | '.join(cells)} |\n")
    picture = 'From above: the photograph and the noisy one; then each way, from "denoise" to "detail".'
    return "".join(lines) + f"\n![{picture}](images/tunable_ablation.jpg)\n"


def kernel_ablation_table(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [KERNEL_ABLATION.format(**content)]
    for row in content["rows"]:
        cells = [f"{row[name]:,}" if name in row else "" for name in ("parameters", "steps", "seconds")]
        lines.append(f"| {row['network']} | {' | '.join(cells)} | {row['psnr']:.2f} |\n")
    picture = "Blurred, sharp, without estimators, longer without them, with them, and the kernel that was estimated."
    return "".join(lines) + f"\n![{picture}](images/kernel_ablation.jpg)\n"


def kernel_direction_table(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [KERNEL_DIRECTION.format(**content)]
    for row in content["rows"]:
        lines.append(f"| {row['length']} pixels | {row['error']:.1f} degrees | {row['below 15']:.0%} |\n")
    return "".join(lines) + "\n![Lines, and what was estimated of them](images/kernels.png)\n"


def pairs_table(path: Path) -> str:
    content = json.loads(path.read_text())
    title = path.stem.removeprefix("real_pairs_").replace("_", " ")
    names = list(content["mean"])
    lines = [PAIRS.format(title=title, side=content["side"]), f"| pair | {' | '.join(names)} |\n"]
    lines.append(f"|{'---|' * (len(names) + 1)}\n")
    for row in [*content["rows"], {"pair": "mean"} | content["mean"]]:
        lines.append(f"| {row['pair']} | {' | '.join(f'{row[name]:.2f}' for name in names)} |\n")
    return "".join(lines)


def camera_shake_table(path: Path, head: str) -> str:
    content = json.loads(path.read_text())
    names = list(content["mean"])
    lines = [head.format(**content)]
    lines.append(f"| kernel | side | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}\n")
    for row in content["rows"]:
        values = " | ".join(f"{row[name]:.2f}" for name in names)
        lines.append(f"| {row['kernel'] + 1} | {row['side']} | {values} |\n")
    means = " | ".join(f"{content['mean'][name]:.2f}" for name in names)
    return "".join(lines) + f"| mean | | {means} |\n"


def reversible_rows(path: Path) -> str:
    lines = []
    for row in json.loads(path.read_text())["rows"]:
        cells = []
        for kind in ("resident", "saved"):
            plain, saving = row["plain"][kind], row["memory-saving"][kind]
            cells.append(f"{plain:.0f} MiB | {saving:.0f} MiB | {saving / plain:.2f}")
        lines.append(f"| {row['size']} | {' | '.join(cells)} |\n")
    return "".join(lines)


TUNABLE_ABLATION = """
## One tunable network against networks for single settings

`python -m benchmarks.tunable_ablation`: NAFNets of one size, {steps} steps each, noise of sigma {sigma}, {images}
photographs that none was trained on. "tunable" is one network for the whole dial; "single" a network for each of three
settings, trained for that alone; "interpolated" the mixed weights of two networks, the second of which went on from the
first. RMS distance to the target of the setting, in grey levels of 255, and in brackets the noise left in the
brightness. After so few steps no network is done: the tunable one, which divides its steps among all settings, is
behind the single ones, and the mixed weights of two related networks are no worse than those. The paper's advantage
over interpolation does not show here.

| way | {settings} |
|---|{columns}|
"""

KERNEL_ABLATION = """
## DeepRFTv2 with and without its kernel estimators

`python -m benchmarks.kernel_ablation`: the network of `deep-rft-deblur` with fewer blocks, trained from nothing with
its Fourier kernel estimators and without, for as many steps and for half as many again, patches of 96 pixels; motion
blur with 1 % noise, middles of {images} photographs that none was trained on. The seconds vary with what else ran. In
as many steps the estimators gain a little, in as much time nothing: so short a training does not pay for theirs. The
last rows are of the embedded model: its image before its last kernel estimator, and after it.

| network | parameters | steps | seconds | PSNR |
|---|---|---|---|---|
"""

KERNEL_DIRECTION = """
## What the estimated kernels show

`python -m benchmarks.kernel_direction`: {photographs} photographs that the embedded `deep-rft-deblur` was not trained
on, each blurred along straight lines in eight directions, with 1 % noise. The network has never been shown a kernel.
The direction of the one that it estimates, its principal axis, is wrong by so much on average, where a guess would be
by 45 degrees; and how often it is wrong by less than 15:

| length of the line | error of the direction | below 15 degrees |
|---|---|---|
"""

SHAKEN = """
## Camera shake

`python -m benchmarks.camera_shake --pairs FOLDER`: the grey photographs of Levin et al. (CVPR 2009) that a camera
shook, {images} with each of eight kernels; PSNR in dB, the best over shifts.

"""

CAMERA_SHAKE = """
`python -m benchmarks.camera_shake --kernels FILE.npz`: the same kernels on the middle 255x255 of {images} photographs
in grey, 1 % noise.

"""

VIDEO = """
## Video: bytes at equal quality

`python -m benchmarks.video_rate_distortion --clip 24` and `--clip 132` encode frames of Big Buck Bunny in one run by
HNeRV's official way (its network and encoder, Adam, mean squared error, 8-bit weights and 6-bit embeddings, its own
Huffman count) and by ours (rate in the loss, NorMuon, free embeddings; the length of the payload). RGB PSNR of 8 bits,
mean over the frames; seconds of one thread of the processor. The official way runs on our faster modules.

| clip | way | values | passes | bytes | bits per pixel | PSNR | seconds |
|---|---|---|---|---|---|---|---|
"""

CURVES = """
![Rate and distortion of HNeRV, NeRV, x264, x265 and SVT-AV1](images/video_curves.svg)

`python -m benchmarks.video_curves`: the same 24 frames of 320x160 by HNeRV and its baseline NeRV, both trained our way
for {epochs} passes, and by today's codecs. On so short a clip the weights of a network are paid by few frames.

| codec | bits per pixel: PSNR |
|---|---|
"""

VARIANTS = """
### Video: variants of the decoder

`python -m benchmarks.video_variants`: the same clip, our training, {epochs} passes, one seed. The last column is PSNR
less what `hnerv` reaches at the same bytes, on the line through its two networks; two starts of one network differ
by up to 0.3 dB.

| decoder | values | bytes | PSNR | seconds | against `hnerv` |
|---|---|---|---|---|---|
"""

HNV_SIZE = """
### Video: size of a small file

`python -m benchmarks.hnv_size`: {frames} frames of {width}x{height}, preset {preset}, in {seconds:.0f} s on {threads}
threads: a file of {bytes:,} bytes, {over:.1%} more than the entropy of the integers in it, at {psnr:.2f} dB.
"""

HNERV_SPEED = """
## Speed of HNeRV

`python -m benchmarks.hnerv_speed`: the official network of 1.5 M values at 640x1280, the authors' order of operations
against ours, same weights and input. {processor}, threads: {threads}.

| | official | ours | ratio |
|---|---|---|---|
"""

GENERATION = """
## Quality of the generating models

`python -m benchmarks.generation_quality MODEL` makes samples with guidance, lets a classifier name them that was
trained on the training pictures alone, of emoji in three styles (`benchmarks/picture_classifier.py`), and takes the
Frechet distance in its 128 features to the held-out pictures. That is no FID: it compares models of one collection
alone. PAG: scale of guidance by perturbed attention. Nearest: root mean square difference of pixels in [0, 1] to the
nearest training picture; much less than that of held-out pictures would mean copies.

| model | samples | steps | guidance | PAG | classifier | named as asked | Frechet | of training | nearest | held-out |
|---|---|---|---|---|---|---|---|---|---|---|
"""

SHARING = """
## Sharing of self-conditions, and caches

`python -m benchmarks.generation_sharing MODEL`: {samples} samples of `{model}` with guidance {guidance:g}, the same
seeds for all. Seconds of the processor per picture; difference to the samples without sharing, root mean square of
pixels in [0, 1]; Frechet distance to the held-out pictures in the 128 features of the classifier, which says
little where there are fewer samples than that. {processor}, {threads} threads.

| steps | way | seconds per picture | times as fast | difference | Frechet |
|---|---|---|---|---|---|
"""

PLAIN = """
## Decoupled against plain

`python -m benchmarks.plain_transformer`: DDT and a plain transformer of as many blocks of the same width learn the
pictures of a recipe in the same order, with the same noise, for as many steps. Loss of flow matching of the averaged
weights on the held-out pictures, and seconds of the processor.
"""

PLAIN_ROWS = """
Recipe `{recipe}`, shortened, {batch} pictures of {size}x{size} in a step:

| | parameters | {steps} |
|---|---|{columns}|
"""

DDT_SPEED = """
## One forward of DDT

`python -m benchmarks.ddt_speed`: 8 encoder and 4 decoder blocks, width 384, latents 32x32, random weights; our modules
against the order of operations of the authors' code (`benchmarks/official_ddt.py`), and with a condition given. Seconds
of the processor. Matrix products take three quarters of the time, and are about as fast as the processor can multiply:
a forward gains little in float32; what saves work is the given condition, and bfloat16 where the processor has
instructions for it (the authors' way in mixed precision, as they run it; the difference is to float32).
{processor}, threads: {threads}, torch {torch}.

| images | official | ours | ratio | ours with a condition | share of a whole one | relative difference |
|---|---|---|---|---|---|---|
"""


DDT_SHARING = """
The same command takes 50 steps with a model that is as deep as the paper's largest, 22 encoder and 6 decoder blocks, at
width 192, random weights, two images, guidance 2; the encoder runs at all steps or at 17.

| sharing | seconds | times as fast |
|---|---|---|
"""


def video_rows(path: Path) -> str:
    content = json.loads(path.read_text())
    frames, height, width = content["frames"]
    return "".join(
        f"| {frames} x {width}x{height} | {row['way']} | {row['values']:,} | {row['epochs']} | {row['bytes']:,} "
        f"| {row['bpp']:.4f} | {row['psnr']:.2f} | {row['processor seconds']:.0f} |\n"
        for row in content["rows"]
    ) + "".join(
        f"| | **at equal PSNR** | | | **{row['fewer bytes']:.0%} fewer** | | "
        f"| {row['ours'][2] / row['official'][2]:.2f} of the time |\n"
        for row in content["equal quality"]
    )


def curve_rows(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [CURVES.format(**content)]
    for name, points in content["curves"].items():
        cells = " · ".join(f"{point['bpp']:.4f}: {point['psnr']:.2f}" for point in points)
        lines.append(f"| {name} | {cells} |\n")
    return "".join(lines)


def variant_table(path: Path) -> str:
    content = json.loads(path.read_text())
    return VARIANTS.format(**content) + "".join(
        f"| `{row['decoder']}` | {row['values']:,} | {row['bytes']:,} | {row['psnr']:.2f} "
        f"| {row['processor seconds']:.0f} | {row['against hnerv']:+.2f} dB |\n"
        for row in content["rows"]
    )


def size_text(path: Path) -> str:
    content = json.loads(path.read_text())
    frames, height, width = content.pop("frames")
    shown = {**content, **content["machine"], "over": content["file over entropy"]}
    return HNV_SIZE.format(**{**shown, "frames": frames, "height": height, "width": width})


def hnerv_speed_table(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [HNERV_SPEED.format(**content["machine"])]
    for name, row in content["rows"].items():
        times = (row[way]["processor seconds"] for way in ("official", "ours"))
        cells = " | ".join(f"{seconds:.2f} s" for seconds in times)
        lines.append(f"| {name} | {cells} | {row['ratio of processor seconds']:.2f} |\n")
    return "".join(lines)


def generation_rows(path: Path) -> str:
    row = json.loads(path.read_text())
    return (
        f"| {row['model']} | {row['samples']} | {row['steps']} | {row['guidance']:g} "
        f"| {row['pag']:g} "
        f"| {row['classifier accuracy on held-out pictures']:.1%} | {row['named as asked']:.1%} "
        f"| {row['Frechet distance to held-out pictures']:.2f} | {row['the same of the training pictures']:.2f} "
        f"| {row['nearest training picture, mean']:.3f} | {row['the same of held-out pictures, mean']:.3f} |\n"
    )


def sharing_table(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [SHARING.format(**{**content, **content["machine"]})]
    for row in content["rows"]:
        whole = next(other["seconds"] for other in content["rows"] if other["steps"] == row["steps"])
        lines.append(
            f"| {row['steps']} | {row['way']} | {row['seconds']:.3f} | {whole / row['seconds']:.2f} "
            f"| {row['difference']:.4f} | {row['frechet']:.3f} |\n"
        )
    return "".join(lines)


def plain_rows(path: Path) -> str:
    content = json.loads(path.read_text())
    steps = [f"step {point[0]:,}" for point in content["DDT"]["curve"]]
    columns = "|".join(["---"] * len(steps))
    lines = [PLAIN_ROWS.format(**content, steps=" | ".join(steps), columns=columns)]
    for name in ("DDT", "plain transformer"):
        cells = " | ".join(f"{loss:.4f} ({seconds:.0f} s)" for _, loss, seconds in content[name]["curve"])
        lines.append(f"| {name} | {content[name]['parameters']:,} | {cells} |\n")
    return "".join(lines)


def ddt_speed_table(path: Path) -> str:
    content = json.loads(path.read_text())
    lines = [DDT_SPEED.format(**{**content, **content["machine"]})]
    for row in content["rows"]:
        times = row["seconds"]
        lines.append(
            f"| {row['batch']} | {times['official']:.3f} s | {times['ours']:.3f} s | {row['ratio']:.2f} "
            f"| {times['ours with a condition']:.3f} s | {row['share']:.2f} | {row['relative difference']:.0e} |\n"
        )
        if "ours, bfloat16" in times:
            official, ours = times["official, bfloat16"], times["ours, bfloat16"]
            lines.append(
                f"| {row['batch']}, bfloat16 | {official:.3f} s | {ours:.3f} s | {official / ours:.2f} | | "
                f"| {row['relative difference, bfloat16']['ours']:.0e} |\n"
            )
    lines.append(DDT_SHARING)
    for way, value in content["sharing"].items():
        lines.append(f"| {way} | {value:.2f} s | {content['sharing']['no sharing'] / value:.2f} |\n")
    return "".join(lines)


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
    if choices := content.get("chosen"):
        words = [
            f"{label}: {', '.join(f'{task} {count}' for task, count in sorted(counts.items()))}"
            for label, counts in choices.items()
        ]
        lines.append(f"\nWhat was chosen by itself: {'; '.join(words)}.")
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
    for path in sorted(RESULTS.glob("real_pairs_*.json")):
        page += pairs_table(path)
    for path in sorted(RESULTS.glob("large_image_*.json")):
        page += LARGE.format(**json.loads(path.read_text()))
    for path in sorted(RESULTS.glob("restoration_speed*.json")):
        page += SPEED + speed_table(path)
    for path in sorted(RESULTS.glob("tunable_speed*.json")):
        page += TUNABLE + tunable_rows(path)
    for path in sorted(RESULTS.glob("tunable_ablation.json")):
        page += tunable_ablation_table(path)
    for path in sorted(RESULTS.glob("kernel_ablation.json")):
        page += kernel_ablation_table(path)
    for path in sorted(RESULTS.glob("kernel_direction.json")):
        page += kernel_direction_table(path)
    for path in sorted(RESULTS.glob("camera_shake_pairs.json")):
        page += camera_shake_table(path, SHAKEN)
    for path in sorted(RESULTS.glob("camera_shake.json")):
        page += camera_shake_table(path, CAMERA_SHAKE)
    for path in sorted(RESULTS.glob("reversible_memory*.json")):
        page += REVERSIBLE + reversible_rows(path)
    clips = sorted(RESULTS.glob("video_rate_distortion_*.json"))
    page += VIDEO + "".join(map(video_rows, clips)) if clips else ""
    for path in sorted(RESULTS.glob("video_curves.json")):
        page += curve_rows(path)
    for path in sorted(RESULTS.glob("video_variants.json")):
        page += variant_table(path)
    for path in sorted(RESULTS.glob("hnv_size.json")):
        page += size_text(path)
    for path in sorted(RESULTS.glob("hnerv_speed.json")):
        page += hnerv_speed_table(path)
    generated = sorted(RESULTS.glob("generation_quality_*.json"))
    page += GENERATION + "".join(map(generation_rows, generated)) if generated else ""
    for path in sorted(RESULTS.glob("generation_sharing_*.json")):
        page += sharing_table(path)
    compared = sorted(RESULTS.glob("plain_transformer_*.json"))
    page += PLAIN + "".join(map(plain_rows, compared)) if compared else ""
    for path in sorted(RESULTS.glob("ddt_speed.json")):
        page += ddt_speed_table(path)
    (ROOT / "docs/results.md").write_text(page)


if __name__ == "__main__":
    main()
