"""Inputs by the names of a signature's arguments: for each name the forms that models take it in,
the most usual first.

A form plans one argument, and what belongs to it; it plans nothing where the configuration doesn't
fit. Which of several forms a model takes, it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crossfuse.export.sources.huggingface.input_fillers import (
    boxes,
    classes,
    half_mask,
    mask,
    normal,
    ones,
    span,
    uniform,
    zeros,
)
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    TextInput,
    add_text,
    find,
    ids,
    text_config,
)
from crossfuse.export.sources.huggingface.picture_forms import PICTURE_FORMS
from crossfuse.export.sources.huggingface.sound_forms import SOUND_FORMS

__all__ = ["ASKED_FOR", "FORMS", "USUAL", "Form"]

Form = Callable[[InputPlan, Any, set[str]], None]
"""Plans an argument: given the plan, the model, and the names that its ``forward`` takes."""


def _text(plan: InputPlan, model: Any, takes: set[str]) -> None:
    masked = "attention_mask" in takes
    add_text(plan, text_config(model.config), TextInput(masked=masked))


def _answer(plan: InputPlan, model: Any, takes: set[str]) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        decoder = model.config.get_text_config(decoder=True)
        add_text(plan, decoder, TextInput("decoder_text", "decoder_"))


def _in_codes(name: str, dim: str, beside: int) -> Form:
    """One id of each codebook at each step, ``[batch, steps, codebooks]``, and so many of a text
    beside them."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        decoder = model.config.get_text_config(decoder=True)
        books = find(decoder, "num_codebooks", "num_channels")
        if isinstance(books, int) and books + beside > 1:
            vocabulary = min(
                int(size)
                for size in (find(decoder, "vocab_size"), find(decoder, "codebook_vocab_size"))
                if size is not None
            )
            plan.dim(dim, 7)
            plan.add(name, ("batch", dim, books + beside), classes(0, vocabulary))

    return plan_it


def _kinds_of_tokens(name: str) -> Form:
    """Zeros beside the text; where placeholders stand in it, they get their numbers."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        if "input_ids" in plan.shapes:
            plan.add(name, plan.shapes["input_ids"], zeros)

    return plan_it


def _page_boxes(unit: bool) -> Form:
    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        if "text" in plan.dims:
            highest = find(model.config, "max_2d_position_embeddings") or 1001
            limit = 1.0 if unit else float(min(int(highest) - 1, 1000))
            plan.add("bbox", ("batch", "text", 4), boxes(limit))

    return plan_it


def _corner_boxes(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Four corners of each box, between 0 and 1."""
    if "text" in plan.dims:
        plan.add("bbox", ("batch", "text", 8), uniform())


def _states_of_others(plan: InputPlan, model: Any, takes: set[str]) -> None:
    config = model.config
    width = find(config, "cross_attention_hidden_size", "encoder_hidden_size", "hidden_size")
    plan.dim("encoder_length", 9)
    plan.add("encoder_hidden_states", ("batch", "encoder_length", int(width)), normal)
    if "encoder_attention_mask" in takes:
        plan.add("encoder_attention_mask", ("batch", "encoder_length"), mask)


def _second_text(prefix: str, dim: str, *parts: str) -> Form:
    """Another text, with its own part of the configuration and its own length."""

    def plan_it(plan: InputPlan, model: Any, takes: set[str]) -> None:
        config = model.config
        part = next((getattr(config, p) for p in parts if getattr(config, p, None)), config)
        masked = f"{prefix}attention_mask" in takes
        add_text(plan, part, TextInput(dim, prefix, masked=masked, example=5))

    return plan_it


def _task(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A task as ids, of the length that the configuration says."""
    length = find(model.config, "task_seq_len") or 77
    vocabulary = find(model.config, "text_encoder_vocab_size", "vocab_size") or 2
    plan.add("task_inputs", ("batch", int(length)), classes(1, int(vocabulary)))


def _regions(plan: InputPlan, model: Any, takes: set[str]) -> None:
    plan.dim("regions", 5)
    width = find(model.config, "visual_embedding_dim", "visual_feat_dim") or 2048
    plan.add("visual_embeds", ("batch", "regions", int(width)), normal)
    if "visual_attention_mask" in takes:
        plan.add("visual_attention_mask", ("batch", "regions"), mask)
    if "visual_token_type_ids" in takes:
        plan.add("visual_token_type_ids", ("batch", "regions"), ones)


def _state(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A robot's state, and what flow matching takes with it."""
    config = model.config
    width = find(config, "max_state_dim", "state_dim")
    if not isinstance(width, int):
        return
    plan.add("state", ("batch", width), normal)
    actions = (find(config, "chunk_size", "action_horizon"), find(config, "max_action_dim"))
    if "actions" in takes and all(isinstance(size, int) for size in actions):
        shape: tuple[int | str, ...] = ("batch", *map(int, actions))
        plan.add("actions", shape, normal)
        if "noise" in takes:
            plan.add("noise", shape, normal)
        if "timestep" in takes:
            plan.add("timestep", ("batch",), uniform())


def _decisions(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A decision transformer's states, actions and returns over steps."""
    config = model.config
    steps = plan.dim("steps", 5, 1, find(config, "max_ep_len"))
    plan.add("states", ("batch", steps, config.state_dim), normal)
    plan.add("actions", ("batch", steps, config.act_dim), normal)
    plan.add("rewards", ("batch", steps, 1), normal)
    plan.add("returns_to_go", ("batch", steps, 1), normal)
    plan.add("timesteps", ("batch", steps), classes(0, 4))
    plan.add("attention_mask", ("batch", steps), mask)


def _past_values(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A time series: as many steps as the context has, and its lags before it."""
    config = model.config
    steps = int(find(config, "context_length") or 32)
    if "past_time_features" in takes:
        steps += max(getattr(config, "lags_sequence", None) or [0])
    width = find(config, "num_input_channels", "input_size") or 1
    shape = ("batch", steps) if width == 1 else ("batch", steps, int(width))
    plan.add("past_values", shape, normal)
    if "past_time_features" in takes:
        features = int(getattr(config, "num_time_features", 0) or 0)
        plan.add("past_time_features", ("batch", steps, features), normal)
        future = ("batch", int(config.prediction_length))
        plan.add("future_time_features", (*future, features), normal)
        plan.add("future_values", future if width == 1 else (*future, int(width)), normal)
    if "past_observed_mask" in takes:
        plan.add("past_observed_mask", shape, ones)


def _entities(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Entities with the places of their mentions."""
    plan.dim("entities", 3)
    plan.add("entity_ids", ("batch", "entities"), classes(1, model.config.entity_vocab_size))
    if "entity_position_ids" in takes:
        mention = int(getattr(model.config, "max_mention_length", 30) or 30)
        plan.add("entity_position_ids", ("batch", "entities", mention), zeros)
    if "entity_attention_mask" in takes:
        plan.add("entity_attention_mask", ("batch", "entities"), mask)


def _image_of_each_word(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Which words look at which images."""
    if "text" in plan.dims:
        plan.add("image_attention_mask", ("batch", "text", 1), ones)


def _marked_places(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """A mask that says which ids the image's features take the place of."""
    count = find(model.config, "latent_query_num")
    if "text" in plan.dims and isinstance(count, int):
        high = plan.dims["text"].max
        plan.forget("text")
        plan.dim("text", count + 7, count + 2, high)
        plan.add("image_embeds_position_mask", ("batch", "text"), span(1, count + 1))
        plan.settled["image_embeds_position_mask"] = ()


def _bytes(plan: InputPlan, model: Any, takes: set[str]) -> None:
    plan.dim("text", 9, 1, find(model.config, "max_position_embeddings"))
    plan.add("inputs", ("batch", "text"), ids(model.config))
    if "attention_mask" in takes:
        plan.add("attention_mask", ("batch", "text"), mask)


def _classes_to_find(plan: InputPlan, model: Any, takes: set[str]) -> None:
    """Names of classes, all behind each other, how many each image has, and a task. Where the
    numbers are read, there is one image with all of them."""
    vocabulary = int(find(model.config, "vocab_size") or 2)
    plan.dim("classes", 4)
    if "classes_structure" in takes:
        plan.fix("batch", 1)
        plan.fix("classes")
        plan.held["classes_structure"] = [4]
    plan.add("classes_input_ids", ("classes", 5), classes(4, vocabulary))
    plan.add("classes_attention_mask", ("classes", 5), half_mask)
    plan.add("tasks_input_ids", ("batch", 6), classes(4, vocabulary))
    plan.add("tasks_attention_mask", ("batch", 6), half_mask)


FORMS: Mapping[str, tuple[Form, ...]] = {
    **PICTURE_FORMS,
    **SOUND_FORMS,
    "input_ids": (_text, _in_codes("input_ids", "text", 0), _in_codes("input_ids", "text", 1)),
    "decoder_input_ids": (_answer, _in_codes("decoder_input_ids", "decoder_text", 0)),
    "token_type_ids": (_kinds_of_tokens("token_type_ids"),),
    "mm_token_type_ids": (_kinds_of_tokens("mm_token_type_ids"),),
    "moe_mm_token_type_ids": (_kinds_of_tokens("moe_mm_token_type_ids"),),
    "bbox": (_page_boxes(unit=False), _page_boxes(unit=True), _corner_boxes),
    "encoder_hidden_states": (_states_of_others,),
    "qformer_input_ids": (_second_text("qformer_", "instruction", "qformer_config"),),
    "protein_input_ids": (_second_text("protein_", "protein", "protein_encoder_config"),),
    "task_inputs": (_task,),
    "visual_embeds": (_regions,),
    "state": (_state,),
    "states": (_decisions,),
    "past_values": (_past_values,),
    "entity_ids": (_entities,),
    "image_embeds_position_mask": (_marked_places,),
    "image_attention_mask": (_image_of_each_word,),
    "inputs": (_bytes,),
    "classes_input_ids": (_classes_to_find,),
}
"""Forms by the argument's name."""

USUAL = (
    "input_ids",
    "decoder_input_ids",
    "pixel_values",
    "pixel_values_images",
    "flattened_patches",
    "image_pixel_values",
    "image_embeds_position_mask",
    "input_features",
    "input_values",
    "bbox",
    "mm_token_type_ids",
    "token_type_ids",
    "qformer_input_ids",
    "protein_input_ids",
    "task_inputs",
    "image_attention_mask",
    "state",
    "states",
    "past_values",
    "inputs",
    "classes_input_ids",
    "visual_embeds",
    "input_points",
)
"""What is planned wherever a signature has it, in the order of planning. Of token types it is so
where placeholders stand in the text."""

ASKED_FOR = (
    "encoder_hidden_states",
    "pixel_values_videos",
    "token_type_ids",
    "input_features",
    "input_values",
    "entity_ids",
    "high_res_pixel_values",
    "prompt_pixel_values",
    "prompt_depth",
    "image_patches",
)
"""What is planned where the model wants it: the argument has no default, or a refusal names it."""
