"""Options of a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crossfuse.errors import InputError, unknown

__all__ = ["CONFIG", "SessionOptions"]

CONFIG = frozenset(
    {
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "optimization.enable_gelu_approximation",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.qdq_matmulnbits_accuracy_level",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
    }
)
"""Entries of ONNX Runtime's configuration that a session takes. It would take any name in silence,
and some of them let it load code or read other files."""


@dataclass(frozen=True)
class SessionOptions:
    """How the engine executes.

    Args:
        threads: threads inside one operator; None for the engine's default (one per core), or as
            many as a container's CPU quota lets run at once.
        inter_op_threads: operators executed at the same time; more than 1 turns parallel execution
            on.
        spin: keep idle threads spinning between operators; off saves CPU when sessions share cores.
        provider: ONNX Runtime execution provider to use instead of the target's own
            (``CPUExecutionProvider`` runs the graph of ``ort-cuda`` on a machine without a GPU, for
            checks).
        provider_options: passed to the execution provider. For OpenVINO they are its properties,
            and ``device_type`` names the device (``GPU`` for Intel's, ``CPU`` unless given). For
            CUDA, ``use_tf32`` is ``"0"`` unless given: an fp32 bundle computes in fp32;
            ``cudnn_conv_algo_search`` is ``"HEURISTIC"``: each new shape of a convolution is
            planned anew.
        lanes: calls that an engine executes at once, each with its own buffers; more wait.
        streams: calls that OpenVINO executes at once on the CPU, each on a share of the threads;
            more wait.
        device_id: which GPU, for targets that need one, among those that ``CUDA_VISIBLE_DEVICES``
            leaves visible. An entry of ``provider_options`` of that name says the same.
        arena: ONNX Runtime keeps the memory of calls for later ones on the CPU.
        memory_pattern: it plans the memory of shapes that come again.
        give_back: after each call, memory that it does not use any more goes back to the system:
            for services whose largest requests are rare. It costs time.
        config: entries of ONNX Runtime's session configuration, of `CONFIG`.
    """

    threads: int | None = None
    inter_op_threads: int = 1
    spin: bool = True
    provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    lanes: int = 2
    streams: int = 1
    device_id: int = 0
    arena: bool = True
    memory_pattern: bool = True
    give_back: bool = False
    config: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (
            ("threads", self.threads),
            ("inter_op_threads", self.inter_op_threads),
            ("lanes", self.lanes),
            ("streams", self.streams),
        ):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise InputError("a session option is no whole number", where=name, got=repr(value))
            if value is not None and value < 1:
                raise InputError(
                    "a session option is out of range", where=name, got=value, expected="at least 1"
                )
        for entry, text in self.config.items():
            if entry not in CONFIG:
                raise unknown(
                    "there is no such entry of the session's configuration", entry, CONFIG
                )
            if not isinstance(text, str):
                raise InputError(
                    "an entry of the session's configuration is no text",
                    where=entry,
                    got=repr(text),
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
