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
from tokenizers.pre_tokenizers import ByteLevel

from splam.data import shapes

IMAGE_SIZE = 64  # pixels of the pipeline; latents are 8x8, as the autoencoder's four levels make them
TOKENS, START, END = 77, "<|startoftext|>", "<|endoftext|>"  # of CLIP's text encoder
SHARDS, SAMPLES = 3, 24  # LAION: shards, and samples in each
BROKEN, CAPTIONLESS = (1, 5), (2, 7)  # (shard, sample) with a cut JPEG, and with an empty caption
COCO = {"val2014": (40, "COCO_val2014_{:012d}.jpg"), "val2017": (20, "{:012d}.jpg")}  # images, and their files' names
SIZES = ((96, 96), (112, 84), (80, 120))  # width, height


def pictures(seed: int, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Patterned shapes in the middle of canvases of several sizes, each with its caption."""
    for number in range(count):
        scene = shapes.scene("train", seed, number)
        canvas = Image.new("RGB", SIZES[number % len(SIZES)], tuple(shapes.COLOURS[scene.parts[3]][0]))
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
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"text_encoder": text_encoder(), "unet": unet(), "vae": autoencoder()}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = PNDMScheduler(**betas, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)  # what 1.5 ships
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **unchecked).save_pretrained(folder)
    config = folder / "scheduler" / "scheduler_config.json"  # 1.5's also holds a key that PNDM itself does not know
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample": False}, indent=2) + "\n")


def unet():
    """Stable Diffusion 1.5's UNet, whose blocks and heads are diffusers' defaults, a tenth as wide."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(IMAGE_SIZE // 8, block_out_channels=(32, 64, 64, 64), cross_attention_dim=64)


def autoencoder():
    """Stable Diffusion's autoencoder, an eighth as wide: four levels, which makes a latent of every 8x8 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def text_encoder():
    """CLIP's text encoder as in Stable Diffusion 1.5, with 2 layers of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    start, end = (vocabulary()[token] for token in (START, END))
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "vocab_size": len(vocabulary())}
    return CLIPTextModel(CLIPTextConfig(**sizes, **ids, projection_dim=64, max_position_embeddings=TOKENS)).eval()


def vocabulary() -> dict[str, int]:
    """All bytes, within a word and at its end: CLIP's vocabulary without a merge."""
    letters = sorted(ByteLevel.alphabet())
    return {word: i for i, word in enumerate([*letters, *(f"{letter}</w>" for letter in letters), START, END])}


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer files with a vocabulary of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"bos_token": START, **dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)}
    settings = {**tokens, "model_max_length": TOKENS, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


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
