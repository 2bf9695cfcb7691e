"""The suite's models that the zoo doesn't have: ``crossfuse export benchmarks/cases.py:NAME``.

Weights are random and seeded, except for Whisper's, which come with its checkpoint in
``$CROSSFUSE_ASSETS`` (default ``../shared``), as does the speech that it hears.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parent))
import whisper_steps

from crossfuse import ModelSpec, huggingface_spec

ASSETS = Path(os.environ.get("CROSSFUSE_ASSETS", "../shared"))
TOKENS = 32


def blip_retrieval() -> ModelSpec:
    """BLIP-base for image–text retrieval: 12 layers of text over 577 image tokens."""
    torch.manual_seed(0)
    config = hf.BlipConfig(vision_config=hf.BlipVisionConfig(image_size=384).to_dict())
    return huggingface_spec(hf.BlipForImageTextRetrieval(config).eval())


def whisper() -> ModelSpec:
    """Whisper tiny.en on real speech, with 32 decoded tokens."""
    folder = ASSETS / "models" / "whisper-tiny.en"
    model = hf.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    heard = whisper_steps.log_mel(str(folder), ASSETS / "audio" / "two_cities.wav")
    tokens = np.random.default_rng(0).integers(0, 50_000, (2, TOKENS))
    return huggingface_spec(
        model,
        inputs={
            "input_features": torch.from_numpy(np.repeat(heard, 2, axis=0)),
            "decoder_input_ids": torch.from_numpy(tokens),
        },
        dynamic={
            "input_features": {0: "batch:1:16"},
            "decoder_input_ids": {0: "batch", 1: "tokens:1:448"},
        },
        context=("input_features",),
    )


def detr() -> ModelSpec:
    """DETR with a ResNet-50: 640×640 images, padded."""
    torch.manual_seed(0)
    backbone = hf.ResNetConfig(out_features=["stage4"])
    model = hf.DetrForObjectDetection(
        hf.DetrConfig(backbone_config=backbone, use_timm_backbone=False, backbone=None)
    ).eval()
    pixels = torch.randn(2, 3, 640, 640)
    mask = torch.ones(2, 640, 640, dtype=torch.int64)
    mask[1, :, 480:] = 0
    return huggingface_spec(
        model,
        inputs={"pixel_values": pixels, "pixel_mask": mask},
        dynamic={"pixel_values": {0: "batch:1:16"}, "pixel_mask": {0: "batch"}},
    )
