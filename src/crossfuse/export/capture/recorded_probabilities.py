"""A module that gives the probabilities of some of its attentions as further outputs.

The module runs as it is, under a mode that sees the functions it calls. Where an attention that is
asked for is computed by one function, its probabilities are computed beside it, from the same
operands; where it is written out, its softmax's result is taken. So the eager module, its copy in
float64 and its trace all give them, and the attention itself stays as it was.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crossfuse.core.tensors import PROBABILITIES
from crossfuse.errors import InputError
from crossfuse.export.capture.module_paths import module_stack
from crossfuse.ops.torch_op import fused_attention  # noqa: F401 -- registers the operator

__all__ = ["Wanted", "recording"]

_INNER = "_without_probabilities"
"""Attribute of a recording module: its forward as it was."""

_SDPA = F.scaled_dot_product_attention
_MODULE = F.multi_head_attention_forward
_SOFTMAX: set[Any] = {torch.softmax, F.softmax, Tensor.softmax}


@dataclass(frozen=True)
class Wanted:
    """An attention whose probabilities are an output.

    Attributes:
        module: its path.
        occurrence: which one of the module's attentions of its form, from 0.
        written_out: as products around a softmax; else by one function.
        heads: those that are wanted; None for all.
    """

    module: str
    occurrence: int
    written_out: bool
    heads: tuple[int, ...] | None = None


def recording(
    module: nn.Module,
    wanted: Mapping[str, Wanted],
    named: Callable[[object], Mapping[str, Tensor]],
) -> nn.Module:
    """A module that shares all its parts with this one, and gives a dict: the outputs by name, and
    the probabilities ``[batch, heads, L, S]`` as ``probabilities.SITE``.

    Args:
        module: left as it is.
        wanted: by site.
        named: the module's outputs by name, of its result.
    """
    clone = copy.copy(module)
    inner = module.forward

    # A function of the module, not of this one: a copy's forward must find the copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with module_stack(self) as stack, _Recorder(stack, wanted) as recorder:
            result = vars(self)[_INNER](*args, **kwargs)
        missing = sorted(set(wanted) - set(recorder.found))
        if missing:
            raise InputError(
                "the probabilities of an attention can't be kept: no function that computes them "
                "was seen",
                where=", ".join(missing),
                do="Return them from the module",
            )
        return {**named(result), **{PROBABILITIES + s: recorder.found[s] for s in wanted}}

    signature = inspect.signature(inner)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    vars(clone)[_INNER] = inner
    vars(clone)["forward"] = MethodType(forward, clone)
    return clone


class _Recorder(TorchFunctionMode):
    """Sees the calls of one run; ``found`` holds the probabilities by site."""

    def __init__(self, stack: Sequence[str], wanted: Mapping[str, Wanted]) -> None:
        super().__init__()
        self.stack = stack
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}
        self._calls = Counter[tuple[str, bool]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            self._saw((True,), lambda heads: _selected(result, heads))
        elif func is _MODULE:
            self._saw((True, False), lambda heads: _selected(_of_module(args, kwargs), heads))
        elif func is _SDPA:
            self._saw((False,), lambda heads: _of_sdpa(heads, *args, **kwargs))
        elif func is torch.ops.crossfuse.fused_attention.default:
            self._saw((False,), lambda heads: _of_operator(heads, *args, **kwargs))
        return result

    def _saw(self, forms: Sequence[bool], give: Callable[[tuple[int, ...] | None], Tensor]) -> None:
        path = self.stack[-1]
        for written_out in forms:
            occurrence = self._calls[path, written_out]
            self._calls[path, written_out] += 1
            for site, one in self.wanted.items():
                if (one.module, one.occurrence, one.written_out) == (path, occurrence, written_out):
                    self.found[site] = give(one.heads)


def _selected(probabilities: Tensor, heads: tuple[int, ...] | None) -> Tensor:
    if heads is None:
        return probabilities
    if probabilities.ndim != 4:
        raise InputError(
            "heads can be chosen only where the probabilities are [batch, heads, L, S]",
            got=f"{probabilities.ndim} axes",
            do="Ask for all heads of this attention",
        )
    _check_heads(heads, probabilities.shape[1])
    return probabilities[:, list(heads)]


def _check_heads(heads: Sequence[int], count: int) -> None:
    if max(heads) >= count:
        raise InputError(
            "a head whose probabilities are asked for doesn't exist",
            got=max(heads),
            expected=f"0..{count - 1}",
        )


def _of_module(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """By PyTorch's own module, a second time, in the form that gives them; what it computes besides
    is not used."""
    given = inspect.signature(_MODULE).bind(*args, **kwargs)
    given.arguments |= {"need_weights": True, "average_attn_weights": False}
    probabilities = _MODULE(*given.args, **given.kwargs)[1]
    assert probabilities is not None
    return probabilities


def _of_sdpa(  # noqa: PLR0913 -- the signature of PyTorch's function
    heads: tuple[int, ...] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.ndim != 4:
        if heads is not None:
            raise InputError("heads are asked for where there are none", got=f"{query.ndim} axes")
    elif heads is not None or query.shape[1] != key.shape[1]:
        _check_heads(heads or (0,), query.shape[1])
        chosen = list(range(query.shape[1])) if heads is None else list(heads)
        group = query.shape[1] // key.shape[1]
        query, key = query[:, chosen], key[:, [head // group for head in chosen]]
        if attn_mask is not None and attn_mask.ndim > 2 and attn_mask.shape[-3] > 1:
            attn_mask = attn_mask[..., chosen, :, :]
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    attended = None
    if is_causal:
        attended = _causal(scores, 0)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        attended = attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _softmax(scores, attended)


def _of_operator(  # noqa: PLR0913 -- the operator's own signature
    heads: tuple[int, ...] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    causal: str = "none",
) -> Tensor:
    """Of `fused_attention`, whose operands have merged heads and may share contexts."""
    _check_heads(heads or (0,), num_heads)
    chosen = list(range(num_heads)) if heads is None else list(heads)
    group, fan_out = num_heads // kv_num_heads, query.shape[0] // key.shape[0]
    contexts = key.shape[0]

    def spread(of_context: Tensor) -> Tensor:
        per_context = of_context.shape[0] == contexts and fan_out > 1
        return of_context.repeat_interleave(fan_out, 0) if per_context else of_context

    def of_heads(term: Tensor) -> Tensor:
        return spread(term)[:, chosen] if term.shape[1] > 1 else spread(term)

    q = query.unflatten(2, (num_heads, -1)).transpose(1, 2)[:, chosen]
    k = key.unflatten(2, (kv_num_heads, -1)).transpose(1, 2)[:, [h // group for h in chosen]]
    scores = q @ spread(k).transpose(-2, -1) * scale
    scores = scores if bias is None else scores + of_heads(bias)
    attended = None if mask is None else of_heads(mask)
    if key_lengths is not None:
        places = torch.arange(key.shape[1], device=key.device)
        short = spread((places < key_lengths[:, None])[:, None, None, :])
        attended = short if attended is None else attended & short
    if causal != "none":
        offset = key.shape[1] - query.shape[1] if causal == "lower_right" else 0
        earlier = _causal(scores, offset)
        attended = earlier if attended is None else attended & earlier
    return _softmax(scores, attended)


def _causal(scores: Tensor, offset: int) -> Tensor:
    rows, keys = (torch.arange(n, device=scores.device) for n in scores.shape[-2:])
    return keys <= rows[:, None] + offset


def _softmax(scores: Tensor, attended: Tensor | None) -> Tensor:
    """Over the keys that are attended; 0 in rows without one."""
    if attended is None:
        return scores.softmax(-1)
    hidden = scores.masked_fill(~attended, torch.finfo(scores.dtype).min)
    return hidden.softmax(-1).masked_fill(~attended, 0.0)
