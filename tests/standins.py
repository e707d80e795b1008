"""Pipelines of Stable Diffusion's own classes and file formats, shrunk and with random weights."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOKENS = 10


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single letters."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def text_encoder(width: int, projected: bool = False):
    """A CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=12,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def autoencoder() -> AutoencoderKL:
    """32-pixel images to latents (4, 8, 8)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.18215,
    )


def unet(width: int, dropout: float = 0.0, **options) -> UNet2DConditionModel:
    """Two levels, one with cross-attention."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=4,
        dropout=dropout,
        **options,
    )


def save_sd(folder: Path, prediction_type: str = "epsilon", dropout: float = 0.0) -> Path:
    """Stable Diffusion 1 (epsilon, PNDM as published) or 2 (v_prediction, DDIM as published)."""
    torch.manual_seed(0)
    scheduler = {"epsilon": PNDMScheduler, "v_prediction": DDIMScheduler}[prediction_type]
    options = {"epsilon": {"skip_prk_steps": True}, "v_prediction": {"clip_sample": False}}[prediction_type]
    StableDiffusionPipeline(
        vae=autoencoder(),
        unet=unet(16, dropout),
        text_encoder=text_encoder(16),
        tokenizer=tokenizer(),
        scheduler=scheduler(
            **BETAS, steps_offset=1, set_alpha_to_one=False, prediction_type=prediction_type, **options
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    _as_published(folder / "unet/config.json")
    return folder


def _as_published(config: Path) -> None:
    """Leave out what Stable Diffusion's own config.json, written before there was such a key, leaves out."""
    content = json.loads(config.read_text())
    newer = ("time_cond_proj_dim", "addition_embed_type", "class_embed_type", "timestep_post_act", "encoder_hid_dim")
    config.write_text(json.dumps({key: value for key, value in content.items() if key not in newer}))


def save_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders, pooled embeddings and time ids, Euler's scheduler."""
    torch.manual_seed(0)
    pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    pooled["projection_class_embeddings_input_dim"] = 6 * 4 + 12
    StableDiffusionXLPipeline(
        vae=autoencoder(),
        unet=unet(16, **pooled),
        text_encoder=text_encoder(8),
        text_encoder_2=text_encoder(8, projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder
