"""The coverage suite's cases: architectures of ``transformers``, tiny and random, frozen here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

from crossfuse import ModelSpec, huggingface_spec

TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 24,
    "patch_size": 8,
}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


@dataclass(frozen=True)
class Case:
    """One model: how to make its spec, how many attentions it has (None: not counted beforehand),
    and why some are unfused."""

    name: str
    make: Callable[[], ModelSpec]
    what: str
    self_attentions: int | None
    cross_attentions: int | None
    unfused: int = 0
    why: str = ""


CASES: dict[str, Case] = {}


def case(
    what: str, *, own: int = 0, cross: int = 0, unfused: int = 0, why: str = ""
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def keep(build: Callable[[], Any]) -> Callable[[], Any]:
        name = build.__name__

        def make() -> ModelSpec:
            torch.manual_seed(0)
            built = build()
            if isinstance(built, ModelSpec):
                return built
            return huggingface_spec(perturbed(built))

        CASES[name] = Case(name, make, what, own, cross, unfused, why)
        return build

    return keep


def perturbed(model: nn.Module) -> nn.Module:
    """Random parameters everywhere: initial zeros and ones hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator) * 0.7 / fan_in**0.5
                )
    for config in {
        id(m.config): m.config for m in model.modules() if hasattr(m, "config")
    }.values():
        if getattr(config, "use_cache", None):
            config.use_cache = False
    return model.eval()


@case("CLIPModel, images and texts", own=4)
def clip() -> nn.Module:
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))


@case("SiglipModel, images and texts, pooling by attention", own=4, cross=1)
def siglip() -> nn.Module:
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION))


@case("ViltForQuestionAnswering, padded images", own=2)
def vilt() -> nn.Module:
    return hf.ViltForQuestionAnswering(
        hf.ViltConfig(**TEXT, image_size=24, patch_size=8, num_labels=5)
    )


@case("BlipForImageTextRetrieval, matching head", own=4, cross=2)
def blip_retrieval() -> nn.Module:
    text = TEXT | {
        "encoder_hidden_size": 32,
        "projection_dim": 16,
        "bos_token_id": 0,
        "sep_token_id": 2,
    }
    return hf.BlipForImageTextRetrieval(
        hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    )


@case("BlipForQuestionAnswering, question and answer", own=6, cross=4)
def blip_vqa() -> nn.Module:
    text = TEXT | {
        "encoder_hidden_size": 32,
        "projection_dim": 16,
        "bos_token_id": 0,
        "sep_token_id": 2,
    }
    return hf.BlipForQuestionAnswering(
        hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    )


QFORMER = TEXT | {"encoder_hidden_size": 32, "cross_attention_frequency": 2}


@case("Blip2QFormerModel, queries over padded image states", own=2, cross=1)
def blip2_qformer() -> nn.Module:
    return hf.Blip2QFormerModel(hf.Blip2QFormerConfig(**QFORMER))


@case("Blip2ForConditionalGeneration with OPT", own=6, cross=1)
def blip2() -> nn.Module:
    text = hf.OPTConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=37,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=98,
    )
    return hf.Blip2ForConditionalGeneration(config)


@case("InstructBlipQFormerModel, queries and an instruction", own=2, cross=1)
def instructblip_qformer() -> nn.Module:
    from transformers.models.instructblip.configuration_instructblip import (
        InstructBlipQFormerConfig,
    )
    from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

    return InstructBlipQFormerModel(InstructBlipQFormerConfig(**QFORMER))


@case("WhisperForConditionalGeneration", own=4, cross=2)
def whisper() -> nn.Module:
    config = hf.WhisperConfig(
        **SEQ2SEQ | {"max_source_positions": 30, "max_target_positions": 24, "num_mel_bins": 8}
    )
    return hf.WhisperForConditionalGeneration(config)


@case("BartForConditionalGeneration", own=4, cross=2)
def bart() -> nn.Module:
    return hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ))


T5: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


@case("T5ForConditionalGeneration, relative positions", own=4, cross=2)
def t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(hf.T5Config(**T5))


@case("MT5ForConditionalGeneration", own=4, cross=2)
def mt5() -> nn.Module:
    return hf.MT5ForConditionalGeneration(hf.MT5Config(**T5))


@case("MarianMTModel", own=4, cross=2)
def marian() -> nn.Module:
    return hf.MarianMTModel(hf.MarianConfig(**SEQ2SEQ))


@case("PegasusForConditionalGeneration", own=4, cross=2)
def pegasus() -> nn.Module:
    return hf.PegasusForConditionalGeneration(hf.PegasusConfig(**SEQ2SEQ))


TROCR: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 64,
    "cross_attention_hidden_size": 32,
}


@case("TrOCRForCausalLM over image states", own=2, cross=2)
def trocr() -> nn.Module:
    return hf.TrOCRForCausalLM(hf.TrOCRConfig(**TROCR, is_decoder=True, add_cross_attention=True))


@case("VisionEncoderDecoderModel: ViT and TrOCR", own=4, cross=2)
def vision_encoder_decoder() -> nn.Module:
    decoder = hf.TrOCRConfig(**TROCR, is_decoder=True, add_cross_attention=True)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(**VISION), decoder
    )
    return hf.VisionEncoderDecoderModel(config)


SPEECHT5: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "conv_dim": [16, 16],
    "conv_stride": [4, 2],
    "conv_kernel": [4, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_mel_bins": 8,
    "speech_decoder_prenet_units": 16,
    "speech_decoder_postnet_units": 16,
    "speaker_embedding_dim": 6,
    "max_speech_positions": 64,
    "max_text_positions": 64,
}


@case("SpeechT5ForSpeechToText, padded sound", own=4, cross=2)
def speecht5() -> nn.Module:
    return hf.SpeechT5ForSpeechToText(hf.SpeechT5Config(**SPEECHT5))


@case("MoonshineForConditionalGeneration, padded sound", own=4, cross=2)
def moonshine() -> nn.Module:
    config = hf.MoonshineConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=37,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        max_position_embeddings=64,
    )
    return hf.MoonshineForConditionalGeneration(config)


@case("Speech2TextForConditionalGeneration, padded features", own=4, cross=2)
def speech_to_text() -> nn.Module:
    config = hf.Speech2TextConfig(
        **SEQ2SEQ
        | {
            "max_source_positions": 64,
            "max_target_positions": 24,
            "conv_channels": 16,
            "num_conv_layers": 2,
            "input_feat_per_channel": 8,
            "conv_kernel_sizes": (5, 5),
        }
    )
    return hf.Speech2TextForConditionalGeneration(config)


@case("MusicgenForCausalLM over text states", own=2, cross=2)
def musicgen_decoder() -> nn.Module:
    config = hf.MusicgenDecoderConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=37,
        num_codebooks=2,
        max_position_embeddings=64,
    )
    return hf.MusicgenForCausalLM(config)


def _resnet() -> Any:
    return hf.ResNetConfig(
        num_channels=3,
        embeddings_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "num_queries": 6,
    "num_labels": 5,
}


@case("DetrForObjectDetection, padded images", own=4, cross=2)
def detr() -> nn.Module:
    return hf.DetrForObjectDetection(
        hf.DetrConfig(**DETR, backbone_config=_resnet(), use_timm_backbone=False, backbone=None)
    )


@case("ConditionalDetrForObjectDetection, padded images", own=4, cross=2)
def conditional_detr() -> nn.Module:
    config = hf.ConditionalDetrConfig(
        **DETR, backbone_config=_resnet(), use_timm_backbone=False, backbone=None
    )
    return hf.ConditionalDetrForObjectDetection(config)


@case("TableTransformerForObjectDetection, padded images", own=4, cross=2)
def table_transformer() -> nn.Module:
    config = hf.TableTransformerConfig(
        **DETR, backbone_config=_resnet(), use_timm_backbone=False, backbone=None
    )
    return hf.TableTransformerForObjectDetection(config)


SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


@case("Mask2FormerForUniversalSegmentation with Swin", own=6, cross=2)
def mask2former() -> nn.Module:
    config = hf.Mask2FormerConfig(
        backbone_config=hf.SwinConfig(**SWIN),
        hidden_dim=32,
        mask_feature_size=32,
        feature_size=32,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=4,
        encoder_feedforward_dim=37,
        dim_feedforward=37,
        num_queries=6,
        use_timm_backbone=False,
        num_labels=5,
    )
    return hf.Mask2FormerForUniversalSegmentation(config)


@case("GroundingDinoForObjectDetection with Swin and BERT", own=10, cross=6)
def grounding_dino() -> nn.Module:
    text = hf.BertConfig(**TEXT)
    config = hf.GroundingDinoConfig(
        backbone_config=hf.SwinConfig(
            **SWIN | {"out_features": ["stage2", "stage3", "stage4"], "image_size": 128}
        ),
        text_config=text,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        num_queries=6,
        max_text_len=16,
        use_timm_backbone=False,
        backbone=None,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
    )
    return hf.GroundingDinoForObjectDetection(config)


@case("OwlViTForObjectDetection", own=4)
def owlvit() -> nn.Module:
    return hf.OwlViTForObjectDetection(
        hf.OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
    )


@case("SamModel, prompts of points", own=4, cross=5)
def sam() -> nn.Module:
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 37,
    }
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 4, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "mlp_dim": 37,
        "iou_head_hidden_dim": 16,
        "attention_downsample_rate": 2,
    }
    return hf.SamModel(
        hf.SamConfig(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
        )
    )


class _Sam2MaskDecoder(nn.Module):
    """The mask decoder, its list of feature maps as two inputs."""

    def __init__(self) -> None:
        super().__init__()
        config = hf.Sam2MaskDecoderConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            mlp_dim=37,
            iou_head_hidden_dim=32,
        )
        from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

        self.decoder = Sam2MaskDecoder(config)

    def forward(
        self,
        image: torch.Tensor,
        positions: torch.Tensor,
        points: torch.Tensor,
        dense: torch.Tensor,
        fine: torch.Tensor,
        finer: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        masks, scores, *_ = self.decoder(
            image_embeddings=image,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=points,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[finer, fine],
        )
        return {"masks": masks, "scores": scores}


@case("Sam2MaskDecoder, prompts of points", own=2, cross=5)
def sam2_mask_decoder() -> ModelSpec:
    shapes = {
        "image": (2, 32, 4, 4),
        "positions": (2, 32, 4, 4),
        "points": (2, 3, 5, 32),
        "dense": (2, 32, 4, 4),
        "fine": (2, 8, 8, 8),
        "finer": (2, 4, 16, 16),
    }
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    dynamic: dict[str, dict[int, Any]] = {name: {0: "batch:1:8"} for name in inputs}
    dynamic["points"] |= {1: "prompts:1:8", 2: "points:1:16"}
    return huggingface_spec(perturbed(_Sam2MaskDecoder()), inputs=inputs, dynamic=dynamic)


@case("LxmertModel, padded text and regions", own=7, cross=4)
def lxmert() -> nn.Module:
    config = hf.LxmertConfig(
        vocab_size=99,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=37,
        l_layers=2,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=12,
        max_position_embeddings=64,
    )
    return hf.LxmertModel(config)


@case("BridgeTowerModel, text and image", own=8, cross=4)
def bridgetower() -> nn.Module:
    text = TEXT | {"type_vocab_size": 1}
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 24, "patch_size": 8}
    config = hf.BridgeTowerConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
    )
    return hf.BridgeTowerModel(config)


@case("PerceiverForMaskedLM, padded bytes", own=2, cross=2)
def perceiver() -> nn.Module:
    config = hf.PerceiverConfig(
        num_latents=6,
        d_latents=32,
        d_model=16,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        vocab_size=99,
        max_position_embeddings=16,
        qk_channels=32,
        v_channels=32,
    )
    return hf.PerceiverForMaskedLM(config)


@case("MllamaForConditionalGeneration: gated cross layers, grouped heads", own=5, cross=1)
def mllama() -> nn.Module:
    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 37,
        "cross_attention_layers": [1],
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "intermediate_size": 37,
        "image_size": 24,
        "patch_size": 8,
        "max_num_tiles": 4,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
    }
    return hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=98)
    )


@case("Idefics2's perceiver resampler, padded image states", cross=2)
def idefics2_resampler() -> ModelSpec:
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    config = Idefics2PerceiverConfig(
        hidden_size=32,
        resampler_n_latents=4,
        resampler_depth=2,
        resampler_n_heads=4,
        resampler_head_dim=8,
        num_key_value_heads=2,
    )
    model = perturbed(Idefics2PerceiverResampler(config))
    inputs = {
        "context": torch.randn(2, 7, 32),
        "attention_mask": torch.tensor([[1] * 7, [1, 1] + [0] * 5]),
    }
    dynamic: dict[str, dict[int, Any]] = {name: {0: "batch", 1: "length:1:64"} for name in inputs}
    return huggingface_spec(model, inputs=inputs, dynamic=dynamic)


@case("FlavaModel: image, text and both", own=6)
def flava() -> nn.Module:
    config = hf.FlavaConfig(
        text_config=TEXT,
        image_config=VISION,
        multimodal_config=TEXT,
        projection_dim=16,
        hidden_size=32,
    )
    return hf.FlavaModel(config)


@case("XCLIPModel: videos and texts", own=7, cross=2)
def x_clip() -> nn.Module:
    vision = VISION | {
        "mit_hidden_size": 32,
        "mit_intermediate_size": 37,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 4,
        "num_frames": 3,
    }
    config = hf.XCLIPConfig(
        text_config=TEXT,
        vision_config=vision,
        projection_dim=32,
        prompt_layers=2,
        prompt_num_attention_heads=4,
    )
    return hf.XCLIPModel(config)


@case("Kosmos2ForConditionalGeneration", own=4, cross=1)
def kosmos2() -> nn.Module:
    text = {
        "vocab_size": 99,
        "embed_dim": 32,
        "layers": 2,
        "ffn_dim": 37,
        "attention_heads": 4,
        "max_position_embeddings": 64,
    }
    config = hf.Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=4)
    return hf.Kosmos2ForConditionalGeneration(config)


@case(
    "GroupViTModel: grouping blocks, images and texts",
    own=10,
    unfused=2,
    why="its grouping blocks assign each token to one group (the maximum of a softmax over the "
    "groups), which is no attention "
    "that a fused operator computes",
)
def groupvit() -> nn.Module:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "depths": [2, 2, 2],
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 2],
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    return hf.GroupViTModel(
        hf.GroupViTConfig(
            text_config=TEXT,
            vision_config=vision,
            projection_dim=16,
            projection_intermediate_dim=32,
        )
    )
