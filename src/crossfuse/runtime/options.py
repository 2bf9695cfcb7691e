"""Options of a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crossfuse.errors import InputError

__all__ = ["SessionOptions"]


@dataclass(frozen=True)
class SessionOptions:
    """How the engine executes.

    Args:
        threads: threads inside one operator; None for the engine's default (one per core).
        inter_op_threads: operators executed at the same time; more than 1 turns parallel execution
            on.
        spin: keep idle threads spinning between operators; off saves CPU when sessions share cores.
        provider: ONNX Runtime execution provider to use instead of the target's own
            (``CPUExecutionProvider`` runs the graph of ``ort-cuda`` on a machine without a GPU, for
            checks).
        provider_options: passed to the execution provider. For CUDA, ``use_tf32`` is ``"0"`` unless
            given: an fp32 bundle computes in fp32; ``cudnn_conv_algo_search`` is ``"HEURISTIC"``:
            each new shape of a convolution is planned anew.
        lanes: calls that an engine executes at once, each with its own buffers; more wait.
        device_id: which GPU, for targets that need one, among those that ``CUDA_VISIBLE_DEVICES``
            leaves visible. An entry of ``provider_options`` of that name says the same.
    """

    threads: int | None = None
    inter_op_threads: int = 1
    spin: bool = True
    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    lanes: int = 2
    device_id: int = 0

    def __post_init__(self) -> None:
        for name, value in (
            ("threads", self.threads),
            ("inter_op_threads", self.inter_op_threads),
            ("lanes", self.lanes),
        ):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise InputError("a session option is no whole number", where=name, got=repr(value))
            if value is not None and value < 1:
                raise InputError(
                    "a session option is out of range", where=name, got=value, expected="at least 1"
                )
        self._check_device(self.provider_options.get("device_id"))

    def _check_device(self, of_provider: object) -> None:
        if of_provider is None:
            got, fits = str(self.device_id), self.device_id >= 0
        else:
            got = f"{self.device_id}, and {of_provider!r} among the provider's options"
            number = str(of_provider)
            fits = number.isdecimal() and self.device_id in (0, int(number))
        if not fits:
            raise InputError(
                "a session option is out of range",
                where="device_id",
                got=got,
                expected="a GPU's number, told once",
            )

    @property
    def device(self) -> int:
        """The GPU's number, wherever it was told."""
        return int(self.provider_options.get("device_id", self.device_id))
