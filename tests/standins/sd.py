"""Stand-ins for what a run at Stable Diffusion's size needs: weights, LAION shards, COCO's validation sets.

    python -m tests.standins.sd OUT

writes OUT/pipeline, a folder of Stable Diffusion 1.5's classes, blocks and files with random weights of a small
width; OUT/laion, three shards as img2dataset writes them, with one broken image and one missing caption; OUT/coco, the
files of val2014 and val2017; and OUT/own, what docs/own-model.md begins with: model/, the same pipeline, and pictures/,
those of the shards with a .txt beside each. The pictures are drawn by splam.data.shapes. Their numbers mean nothing:
they are there so that what can go wrong before the first number does so in minutes. They always have the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image

from splam.data import shapes

# Stable Diffusion 1.5's files but for the weights, its networks about a tenth as wide, of 64-pixel images; its
# tokenizer knows all bytes, within a word and at its end: CLIP's vocabulary without a merge.
CONFIGS = Path(__file__).with_name("pipeline")
SHARDS, SAMPLES = 3, 24  # LAION: shards, and samples in each
BROKEN, CAPTIONLESS = (1, 5), (2, 7)  # (shard, sample) with a cut JPEG, and with an empty caption
COCO = {"val2014": (40, "COCO_val2014_{:012d}.jpg"), "val2017": (20, "{:012d}.jpg")}  # images, and their files' names
SIZES = ((96, 96), (112, 84), (80, 120))  # width, height


def pictures(seed: int, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Patterned shapes in the middle of canvases of several sizes, each with its caption."""
    for number in range(count):
        scene = shapes.scene("train", seed, number)
        canvas = Image.new("RGB", SIZES[number % len(SIZES)], shapes.COLOURS[scene.background])
        side = min(canvas.size)
        drawn = Image.fromarray(shapes.render(scene)).resize((side, side))
        canvas.paste(drawn, ((canvas.width - side) // 2, (canvas.height - side) // 2))
        yield canvas, shapes.caption(scene.parts)


def jpeg(image: Image.Image) -> bytes:
    """The image as a JPEG file of quality 95, img2dataset's default."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_laion(folder: Path) -> None:
    """Write folder/00000.tar and so on: .jpg, .txt and .json members of keys <shard, 5 digits><sample, 4 digits>."""
    folder.mkdir(parents=True, exist_ok=True)
    source = pictures(0, SHARDS * SAMPLES)
    for shard in range(SHARDS):
        members = {}
        for number in range(SAMPLES):
            (image, shown), key = next(source), f"{shard:05d}{number:04d}"
            content, caption = jpeg(image), f"{shown}, for $5_{{ or $6"  # to mathtext, broken
            members[f"{key}.jpg"] = content[: len(content) // 2] if (shard, number) == BROKEN else content
            members[f"{key}.txt"] = b"" if (shard, number) == CAPTIONLESS else caption.encode()
            members[f"{key}.json"] = json.dumps({"key": key, "caption": caption, "status": "success"}).encode()
        write_tar(folder / f"{shard:05d}.tar", members.items())


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar file of members by name, in this order; a name may come twice."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_coco(folder: Path) -> None:
    """Write folder/annotations/captions_<split>.json and folder/<split>/*.jpg, two captions an image."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (count, name) in COCO.items():
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for number, (image, shown) in enumerate(pictures(int(split[3:]), count)):
            entry = {"id": 42 + 7 * number, "file_name": name.format(42 + 7 * number)}
            (folder / split / entry["file_name"]).write_bytes(jpeg(image))
            images.append(entry | {"width": image.width, "height": image.height})
            for caption in (f"{shown.capitalize()}.", f"There is {shown}\n"):  # COCO has stray newlines
                annotations.append({"image_id": entry["id"], "id": len(annotations), "caption": caption})
        content = {"info": {"description": "stand-in"}, "images": images, "annotations": annotations}
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def write_pipeline(folder: Path) -> None:
    """Write a StableDiffusionPipeline folder with the files of Stable Diffusion 1.5 and random weights."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": PNDMScheduler}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / "text_encoder"))}
        parts |= {name: kind.from_config(kind.load_config(CONFIGS / name)) for name, kind in kinds.items()}
    parts |= {"tokenizer": CLIPTokenizer.from_pretrained(CONFIGS / "tokenizer"), "feature_extractor": None}
    StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False).save_pretrained(folder)
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)  # as stored: not as the installed libraries write them


def main() -> None:
    """Write all stand-ins below one folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.standins.sd", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    write_pipeline(out / "pipeline")
    write_laion(out / "laion")
    write_coco(out / "coco")
    shutil.copytree(out / "pipeline", out / "own/model", dirs_exist_ok=True)
    for shard in (out / "laion").glob("*.tar"):
        shutil.unpack_archive(shard, out / "own/pictures" / shard.stem, "tar")
    print(f"{out}: pipeline/, laion/ with {SHARDS} shards, own/, coco/ with {' and '.join(COCO)}")


if __name__ == "__main__":
    main()
