"""CLIP score: how well images match their captions, by an open_clip model that every score names."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from splam.config import ROOT, Evaluation
from splam.measure.fid import BATCH

TINY_CLIP = "models/tiny/clip"


@dataclass(frozen=True)
class ClipScorer:
    """An open_clip model in float32, with its own preprocessing of PIL images and its own tokenizer.

    prefix: put before every caption; name: of the score.
    """

    model: nn.Module
    preprocess: Callable[..., Tensor]
    tokenize: Callable[[list[str]], Tensor]
    prefix: str
    name: str
    device: torch.device | str

    @torch.no_grad()
    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Unit vectors float32 (n, d) of uint8 images (n, h, w, 3)."""
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        inputs = (torch.stack([self.preprocess(Image.fromarray(image)) for image in batch]) for batch in batches)
        return torch.cat([self.model.encode_image(x.to(self.device), normalize=True) for x in inputs]).cpu().numpy()

    @torch.no_grad()
    def text_features(self, captions: list[str]) -> np.ndarray:
        """Unit vectors float32 (n, d) of captions."""
        tokens = self.tokenize([self.prefix + caption for caption in captions]).split(BATCH)
        return torch.cat([self.model.encode_text(x.to(self.device), normalize=True) for x in tokens]).cpu().numpy()


def load_scorers(evaluation: Evaluation, device: torch.device | str = "cpu") -> dict[str, ClipScorer]:
    """The models of the profile's CLIP scores, by the column that the score stands in."""
    sources = {"clip_score": evaluation.clip, "clip_score_beside": evaluation.clip_beside}
    return {column: load_clip(s, evaluation.clip_prefix, device) for column, s in sources.items() if s}


def load_clip(source: str, prefix: str = "", device: torch.device | str = "cpu") -> ClipScorer:
    """The model of a CLIP score.

    source: a folder in open_clip's format, absolute or within the repository; or open_clip's "architecture/weights",
    such as "ViT-g-14/laion2b_s12b_b42k". prefix: put before each caption; GigaGAN's is "A photo depicts ".
    """
    import open_clip

    architecture, _, weights = source.partition("/")
    if (ROOT / source).is_dir():
        architecture, weights = f"local-dir:{ROOT / source}", None
    quick = open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu", False)  # OpenAI's: else a warning
    options = {"device": device, "require_pretrained": True, "force_quick_gelu": quick}
    model, _, preprocess = open_clip.create_model_and_transforms(architecture, weights, **options)
    label = "tiny, in-domain" if source == TINY_CLIP else source
    name = f"CLIP score ({label}{f', {prefix.strip()!r} before captions' if prefix else ''})"
    return ClipScorer(model.eval(), preprocess, open_clip.get_tokenizer(architecture), prefix, name, device)


def clip_score(image_features: np.ndarray, text_features: np.ndarray) -> float:
    """100 times the mean cosine between the features (n, d) of images and those of their captions."""
    a, b = (f.astype(np.float64) for f in (image_features, text_features))
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(100 * cosine.mean())


def caption_accuracy(image_features: np.ndarray, choices: np.ndarray, right: np.ndarray) -> float:
    """The share of images whose features (n, d) are nearest to their own caption's, choices[right], of all (m, d)."""
    return float(((image_features @ choices.T).argmax(1) == right).mean())
