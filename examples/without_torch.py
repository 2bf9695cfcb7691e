"""Run a bundle in a process where PyTorch and ONNX can't be imported.

python examples/without_torch.py BUNDLE
"""

from __future__ import annotations

import sys

for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError from here on

from photo import PHOTO, inputs  # noqa: E402

from crossfuse import runtime  # noqa: E402


def main(bundle: str) -> None:
    """Load, run, print."""
    with runtime.load(bundle) as session:
        outputs = session.run(**inputs())
        print(f"{session.target} on {session.provider}, without PyTorch; input: {PHOTO.name}")
    for name, array in outputs.items():
        print(
            f"  {name}: {array.dtype}{list(array.shape)}, mean {array.mean():+.4f}, deviation "
            f"{array.std():.4f}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
