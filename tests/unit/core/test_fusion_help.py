"""What helps against a reason is said in the terms of the source."""

from __future__ import annotations

import pytest

from crossfuse.core.fusion_help import advice
from crossfuse.errors import Door

UNKNOWN = "it is written out in a form that is not known (between the two products: roll, softmax)"
RETURNED = "its attention probabilities are an output of the model"
CAPPED = "its scores go through Tanh on the way to the softmax"


def test_code_is_told_what_to_call() -> None:
    text = str(advice([UNKNOWN], "spec"))
    assert text.startswith("Call F.scaled_dot_product_attention or crossfuse's fused_attention")
    assert text.endswith("Or pass allow_unfused=True to export them as they are")


@pytest.mark.parametrize("reason", [UNKNOWN, RETURNED, CAPPED, "another"])
@pytest.mark.parametrize("source", ["onnx", "huggingface"])
def test_what_the_user_did_not_write_is_not_his_to_change(reason: str, source: str) -> None:
    text = str(advice([reason], source))
    for words in ("F.scaled_dot_product_attention", "fused_attention", "Change these"):
        assert words not in text
    assert "allow_unfused=True" in text


def test_each_door_is_told_its_own_words() -> None:
    found = advice([RETURNED], "onnx")
    assert "--keep-probabilities SITE" in found.at(Door.COMMAND_LINE)
    assert "--drop-output NAME" in found.at(Door.COMMAND_LINE)
    assert "keep_probabilities=[SITE]" in found.at(Door.PYTHON)


def test_each_advice_is_given_once() -> None:
    text = str(advice([RETURNED, CAPPED, f"in ort-cpu: {CAPPED}", "no advice"], "factory"))
    assert text.count("The operator that every target is lowered from has no cap on scores") == 1
    assert text.count("beside the fused operator") == 1
    assert text.count("Or pass") == 1


def test_without_advice_the_code_is_to_change() -> None:
    assert str(advice(["mixed heads"], "zoo")).startswith("Change these attentions, or pass")
    assert str(advice(["mixed heads"], "onnx")).startswith("Pass allow_unfused=True")


def test_what_keeping_probabilities_does_not_help_is_told_otherwise() -> None:
    between = "its attention probabilities go through Sub, which the fused operator does not have"
    scores = "its scores are also used by TopK"
    for reason, words in ((between, "(p - c * q) @ v is p @ v"), (scores, "a second product")):
        text = str(advice([reason], "spec"))
        assert words in text
        assert "keep_probabilities" not in text
    assert "keep_probabilities" in str(advice(["probabilities are also used by ReduceMax"], "spec"))
