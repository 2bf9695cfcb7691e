"""Memory that an export needs beyond the loaded module.

python benchmarks/memory.py [--billions 1.0] [--json FILE]

A random decoder with cross-attention is exported to ``ort-cpu``, parity included. The peak is the
kernel's high-water mark of resident memory, reset after the module is loaded (Linux only).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec


class Decoder(nn.Module):
    """Self-attention, cross-attention and an MLP, times ``layers``."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            width, width // 64, 4 * width, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers)
        for (
            parameter
        ) in self.parameters():  # the layers begin as copies, whose weights would be stored once
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """``[B, L, width]`` and ``[B, S, width]`` → ``[B, L, width]``."""
        return self.decoder(tokens, memory)


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--billions", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width = 2048
    layers = max(1, round(options.billions * 1e9 / (16 * width * width)))
    module = Decoder(width, layers).eval().requires_grad_(False)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    inputs = {"tokens": torch.randn(2, 6, width), "memory": torch.randn(2, 9, width)}
    dynamic = {"tokens": {0: "batch:1:8", 1: "length:1:64"}, "memory": {0: "batch", 1: "keys:1:64"}}
    spec = ModelSpec(module, inputs, dynamic)
    Path("/proc/self/clear_refs").write_text("5")
    loaded = resident("VmRSS")
    stages: dict[str, float] = {}
    last = ["start"]

    def step(name: str) -> None:
        stages[last[0]] = round((resident("VmHWM") - loaded) / weights, 2)
        last[0] = name
        Path("/proc/self/clear_refs").write_text("5")

    with tempfile.TemporaryDirectory() as folder:
        bundle = crossfuse.export(spec, Path(folder) / "b", ["ort-cpu"], step=step)
        step("end")
        size = sum(entry.size for entry in bundle.manifest.files.values())
        fused = bundle.ledger.counts("ort-cpu")
    result = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "weights_bytes": weights,
        "bundle_bytes": size,
        "fused": fused,
        "peak_beyond_module_in_weights": max(stages.values()),
        "by_stage": stages,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
