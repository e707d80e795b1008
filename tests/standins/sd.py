"""Stand-ins for what a run at Stable Diffusion's size needs: weights, LAION shards, COCO's validation sets.

    python -m tests.standins.sd OUT

writes OUT/pipeline, a folder of Stable Diffusion 1.5's classes, blocks and files with random weights of a small
width; OUT/laion, three shards as img2dataset writes them, with one broken image and one missing caption; OUT/coco, the
files of val2014 and val2017; and OUT/own, what docs/own-model.md begins with: model/, the same pipeline, and pictures/,
those of the shards with a .txt beside each. The pictures are drawn by splam.data.shapes. Their numbers mean nothing:
they are there so that what can go wrong before the first number does so in minutes. A seed always gives the same bytes.
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

IMAGE_SIZE = 64  # pixels of the pipeline; latents are 8x8, as the autoencoder's four levels make them
TOKENS = 77  # of CLIP's text encoder
SHARDS, SAMPLES = 3, 24  # LAION: shards, and samples in each
COCO_COUNTS = {"val2014": 40, "val2017": 20}
COCO_FILE = {"val2014": "COCO_val2014_{:012d}.jpg", "val2017": "{:012d}.jpg"}
BROKEN, CAPTIONLESS = (1, 5), (2, 7)  # (shard, sample) with a cut JPEG, and with an empty caption
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


def write_laion(folder: Path, seed: int, shards: int = SHARDS, samples: int = SAMPLES) -> list[Path]:
    """Write folder/00000.tar and so on: .jpg, .txt and .json members of keys <shard, 5 digits><sample, 4 digits>."""
    folder.mkdir(parents=True, exist_ok=True)
    source = pictures(seed, shards * samples)
    paths = [folder / f"{shard:05d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        members = {}
        for number in range(samples):
            image, caption = next(source)
            content = jpeg(image)
            content = content[: len(content) // 2] if (shard, number) == BROKEN else content
            caption = "" if (shard, number) == CAPTIONLESS else f"{caption}, for $5_{{ or $6"  # to mathtext, broken
            members |= _sample(f"{shard:05d}{number:04d}", content, caption, image.size)
        write_tar(path, members.items())
    return paths


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar file of members by name, in this order; a name may come twice."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _sample(key: str, content: bytes, caption: str, size: tuple[int, int]) -> dict[str, bytes]:
    """The members of one sample, with the facts that img2dataset puts into its .json."""
    facts = {"caption": caption, "key": key, "status": "success", "error_message": None}
    facts |= dict(zip(("width", "height"), size, strict=True))
    return {f"{key}.jpg": content, f"{key}.txt": caption.encode(), f"{key}.json": json.dumps(facts).encode()}


def write_own(folder: Path, shards: list[Path], pipeline: Path) -> None:
    """Write folder/model, a copy of the pipeline, and folder/pictures, the files of the shards unpacked."""
    shutil.copytree(pipeline, folder / "model", dirs_exist_ok=True)
    for path in shards:
        shutil.unpack_archive(path, folder / "pictures" / path.stem, "tar")


def write_coco(folder: Path, seed: int) -> None:
    """Write folder/annotations/captions_<split>.json and folder/<split>/*.jpg, two captions an image."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in COCO_COUNTS.items():
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for number, (image, shown) in enumerate(pictures(seed + int(split[3:]), count)):
            entry = {"id": 42 + 7 * number, "file_name": COCO_FILE[split].format(42 + 7 * number)}
            (folder / split / entry["file_name"]).write_bytes(jpeg(image))
            images.append(entry | {"width": image.width, "height": image.height})
            for caption in (f"{shown.capitalize()}.", f"There is {shown}\n"):  # COCO has stray newlines
                annotations.append({"image_id": entry["id"], "id": len(annotations), "caption": caption})
        content = {"info": {"description": "stand-in"}, "images": images, "annotations": annotations}
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))


def write_pipeline(folder: Path, seed: int) -> None:
    """Write a StableDiffusionPipeline folder with the files of Stable Diffusion 1.5 and random weights."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"text_encoder": text_encoder(folder / "tokenizer"), "unet": unet(), "vae": autoencoder()}
    scheduler = PNDMScheduler(  # what 1.5 ships
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=_tokenizer(folder / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    config = folder / "scheduler" / "scheduler_config.json"  # 1.5's also holds a key that PNDM itself does not know
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample": False}, indent=2) + "\n")


def unet():
    """Stable Diffusion 1.5's UNet, a tenth as wide: its blocks, its 8 heads and its two layers a block."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=64,
    )


def autoencoder():
    """Stable Diffusion's autoencoder, an eighth as wide: four levels, which makes a latent of every 8x8 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def text_encoder(tokenizer: Path):
    """CLIP's text encoder as in Stable Diffusion 1.5, with 2 layers of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    loaded = _tokenizer(tokenizer)
    config = CLIPTextConfig(
        vocab_size=len(loaded),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=64,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        pad_token_id=loaded.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer files with a small vocabulary: all bytes, and a few words put together from them."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = [pair for word in ("background", "on", "a", *shapes.COLOURS) for pair in word_merges(word)]
    merges = list(dict.fromkeys(merges))
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}
    tokens = {"bos_token": "<|startoftext|>", **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")}
    settings = {**tokens, "model_max_length": TOKENS, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def word_merges(word: str) -> list[tuple[str, str]]:
    """The merges that put a word together letter by letter: (b, a), (ba, c), ... and its end."""
    parts = [*word[:-1], word[-1] + "</w>"]
    return [("".join(parts[:i]), parts[i]) for i in range(1, len(parts))]


def byte_letters() -> list[str]:
    """One printable letter for each byte, as byte-level BPE writes them: itself, or one from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [*map(chr, shown), *(chr(0x100 + i) for i in range(len(hidden)))]


def main(arguments: list[str] | None = None) -> None:
    """Write all stand-ins below one folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.standins.sd", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write_pipeline(options.out / "pipeline", options.seed)
    shards = write_laion(options.out / "laion", options.seed)
    write_own(options.out / "own", shards, options.out / "pipeline")
    write_coco(options.out / "coco", options.seed)
    print(f"{options.out}: pipeline/, laion/ with {len(shards)} shards, own/, coco/ with {' and '.join(COCO_COUNTS)}")


if __name__ == "__main__":
    main()
