"""What models of ``diffusers`` need to be traced.

1. The library copies tensors into another memory layout where kernels of older PyTorch versions
   failed on large ones. Whether it does is asked of sizes, which would limit the batch, and changes
   no number.
2. Frequencies of a time step's embedding are exponentials that depend on nothing. An engine's own
   differ from PyTorch's in the last place, which a time step of 1000 makes 1000 times as large. So
   they are PyTorch's own numbers.
3. A squeezed axis whose size is no 1 stays, in PyTorch. A translation takes it for one of 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._python_dispatch import _disable_current_modes

from crossfuse.spec.model_spec import Tracing

__all__ = ["tracing"]


@contextmanager
def tracing(model: Any) -> Iterator[Tracing]:
    """Make a model of diffusers traceable for a while."""
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.models.upsampling import Upsample2D

    with ExitStack() as patched:
        patched.enter_context(patch.object(Upsample2D, "forward", _upsample))
        for module in _modules_with("get_timestep_embedding", get_timestep_embedding):
            patched.enter_context(patch.object(module, "get_timestep_embedding", _sinusoids))
        yield Tracing(fix_program=_drop_squeezes)


def _drop_squeezes(program: ExportedProgram) -> None:
    """Take out what squeezes an axis that the trace knows to be no 1."""
    for node in list(program.graph.nodes):
        if node.target is not torch.ops.aten.squeeze.dim:
            continue
        source, axis = node.args
        size = source.meta["val"].shape[axis]
        if not (isinstance(size, int) and size == 1):
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _modules_with(name: str, value: object) -> list[Any]:
    """Modules of the library that have imported a function."""
    loaded = [module for path, module in sys.modules.items() if path.startswith("diffusers.")]
    return [module for module in loaded if vars(module).get(name) is value]


def _sinusoids(
    timesteps: Tensor,
    embedding_dim: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1,
    scale: float = 1,
    max_period: int = 10000,
) -> Tensor:
    """``[B]`` → ``[B, embedding_dim]``: sines and cosines at frequencies that fall from 1 to
    ``1 / max_period``."""
    half = embedding_dim // 2
    with _disable_current_modes():
        places = torch.arange(half, dtype=torch.float32)
        table = torch.exp(-math.log(max_period) * places / (half - downscale_freq_shift)).tolist()
    frequencies = torch.tensor(table, dtype=torch.float32, device=timesteps.device)
    angles = scale * (timesteps[:, None].float() * frequencies[None])
    waves = [torch.sin(angles), torch.cos(angles)]
    found = torch.cat(waves[::-1] if flip_sin_to_cos else waves, dim=-1)
    return F.pad(found, (0, embedding_dim % 2)) if embedding_dim % 2 else found


def _upsample(
    module: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """``[B, C, H, W]`` → twice the size or ``output_size``, as the library's module, without its
    copies."""
    x = hidden_states
    if module.norm is not None:
        x = module.norm(x.movedim(1, -1)).movedim(-1, 1)
    if module.use_conv_transpose:
        return module.conv(x)  # type: ignore[no-any-return]
    if module.interpolate:
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=tuple(output_size), mode="nearest")
    if module.use_conv:
        x = (module.conv if module.name == "conv" else module.Conv2d_0)(x)
    return x
