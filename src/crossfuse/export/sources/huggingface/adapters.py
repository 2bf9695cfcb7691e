"""What a deployment wants from classes of ``transformers`` whose ``forward`` gives something else.

* ``BlipForQuestionAnswering`` runs its text decoder only for a loss: here it returns the answer's
  logits.
* ``GroundingDinoForObjectDetection`` and its MM kind pad their logits with −∞, and their many other
  results with both infinities, which no comparison of numbers can pass: here they return logits
  (−10⁴ in the padding, whose sigmoid is 0 as well) and boxes.
* ``InstructBlipQFormerModel`` wants one mask for its queries and the instruction: here it is the
  instruction's, as the queries are never padded.
* ProphetNet multiplies whole numbers of a mask by the lowest number of its own dtype, which
  overflows where that is float64: here masks come in its dtype.
* ``OmDetTurboForObjectDetection`` keeps what it makes of classes and tasks, by their ids, until it
  is asked for them again, in whatever dtype: here it makes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["adapt"]


def adapt(model: nn.Module) -> nn.Module:
    """Give the instance another ``forward``, or other methods, where its class needs them; its
    modules keep their paths."""
    name = type(model).__name__
    for method, made in _METHODS.get(name, {}).items():
        setattr(model, method, MethodType(made, model))
    return model


def _blip_answer(
    self: Any,
    input_ids: Tensor,
    pixel_values: Tensor,
    decoder_input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    image = self.vision_model(pixel_values=pixel_values).last_hidden_state
    image_mask = torch.ones(image.shape[:-1], dtype=torch.long, device=image.device)
    question = self.text_encoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        encoder_hidden_states=image,
        encoder_attention_mask=image_mask,
    )[0]
    answer = self.text_decoder(
        input_ids=decoder_input_ids,
        encoder_hidden_states=question,
        encoder_attention_mask=attention_mask,
    )
    return {"logits": answer.logits}


def _grounded_boxes(
    self: Any,
    pixel_values: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    found = type(self).forward(
        self, pixel_values, input_ids, token_type_ids, attention_mask, pixel_mask
    )
    return {"logits": found.logits.clamp(min=-1e4), "pred_boxes": found.pred_boxes}


def _instructed_queries(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    query_embeds: Tensor,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor,
) -> Any:
    seen = torch.ones(
        query_embeds.shape[:2], dtype=attention_mask.dtype, device=attention_mask.device
    )
    return type(self).forward(
        self,
        input_ids,
        attention_mask=torch.cat([seen, attention_mask], dim=1),
        query_embeds=query_embeds,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
    )


def _masks_of_its_dtype(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
    decoder_attention_mask: Tensor | None = None,
) -> Any:
    masks = (
        None if mask is None else mask.to(self.dtype)
        for mask in (attention_mask, decoder_attention_mask)
    )
    return type(self).forward(self, input_ids, next(masks), decoder_input_ids, next(masks))


def _classes_made_anew(self: Any, classes_input_ids: Tensor, classes_attention_mask: Tensor) -> Any:
    return self.language_backbone(classes_input_ids, encode_type="class")


def _tasks_made_anew(self: Any, tasks_input_ids: Tensor, tasks_attention_mask: Tensor) -> Any:
    return self.language_backbone(tasks_input_ids, mask=tasks_attention_mask, encode_type="task")


_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "BlipForQuestionAnswering": {"forward": _blip_answer},
    "InstructBlipQFormerModel": {"forward": _instructed_queries},
    "GroundingDinoForObjectDetection": {"forward": _grounded_boxes},
    "MMGroundingDinoForObjectDetection": {"forward": _grounded_boxes},
    "ProphetNetForConditionalGeneration": {"forward": _masks_of_its_dtype},
    "ProphetNetModel": {"forward": _masks_of_its_dtype},
    "OmDetTurboForObjectDetection": {
        "get_cached_class_embeddings": _classes_made_anew,
        "get_cached_task_embeddings": _tasks_made_anew,
    },
}
"""Class → method → what stands in for it."""
