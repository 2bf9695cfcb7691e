"""Orders between streams, and captures that fail, on a GPU that works asynchronously."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from case import Run

import crossfuse
from crossfuse.errors import CrossfuseError
from crossfuse.parity.reference import REFERENCE_FILE, load_reference
from crossfuse.profiling.measure.sampling import sample
from crossfuse.profiling.measure.statistics import summarize
from crossfuse.runtime import Session, load
from crossfuse.runtime.device_array import DeviceArray, DeviceMemory
from crossfuse.runtime.gpu import Gpu

__all__ = ["capture", "races"]


def races(run: Run) -> None:
    """Wrong answers among many, with the runtime's orders and without them."""
    folder = run.bundle("cross_modal_attention")
    inputs = dict(load_reference(folder / REFERENCE_FILE).points[0].inputs)
    times = 3 if run.dry else 200
    with load(folder, run.target, run.options) as session:
        expected = session.run(**inputs)
        for ordered in (True, False):
            about = {"what": "inputs that are still computed", "ordered": ordered}
            run.case(
                lambda o=ordered: {
                    "wrong": sum(
                        _late_input(run, session, inputs, expected, o) for _ in range(times)
                    ),
                    "of": times,
                },
                **about,
            )
        run.case(
            lambda: {
                "wrong": sum(_dropped_output(run, session, inputs, expected) for _ in range(times)),
                "of": times,
            },
            what="outputs that are dropped while they are read",
        )


def _busy(run: Run) -> Iterator[torch.Tensor]:
    """Some milliseconds of work on the current stream."""
    size = 8 if run.dry else 4096
    work = torch.ones(size, size, device=run.torch_device())
    for _ in range(4):
        work = work @ work * 1e-4
        yield work


def _stream(run: Run) -> Any:
    return (
        torch.cuda.stream(torch.cuda.Stream(run.torch_device()))
        if not run.dry
        else torch.inference_mode()
    )


def _late_input(
    run: Run, session: Session, inputs: dict[str, Any], expected: dict[str, Any], ordered: bool
) -> bool:
    device = run.torch_device()
    sources = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    given = {name: torch.zeros_like(tensor) for name, tensor in sources.items()}
    if not run.dry:
        torch.cuda.synchronize()
    with _stream(run):
        list(_busy(run))
        for name, tensor in given.items():
            tensor.copy_(sources[name])
        if ordered or run.dry:
            outputs = session.run(**given)
        else:
            raw = {
                n: DeviceArray(
                    DeviceMemory(t.data_ptr(), run.device, t), tuple(t.shape), str(t.dtype)[6:]
                )
                for n, t in given.items()
            }
            outputs = session.run(**raw)
    return any(not np.array_equal(_host(outputs[name]), array) for name, array in expected.items())


def _said_to_be_ready(tensor: torch.Tensor, device: int) -> DeviceArray:
    memory = DeviceMemory(tensor.data_ptr(), device, tensor)
    return DeviceArray(memory, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _dropped_output(
    run: Run, session: Session, inputs: dict[str, Any], expected: dict[str, Any]
) -> bool:
    placed = run.place(inputs)
    name, array = next(iter(expected.items()))
    with _stream(run):
        tensor = torch.from_dlpack(session.run(**placed)[name])
        list(_busy(run))
        copy = tensor.clone()
        del tensor
    gc.collect()
    other = {n: np.zeros_like(a) if a.dtype.kind == "f" else a for n, a in inputs.items()}
    moved = run.place(other)
    for _ in range(4):
        session.run(**moved)
    if not run.dry:
        torch.cuda.synchronize()
    return not np.array_equal(copy.cpu().numpy(), array)


def _host(value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, DeviceArray) else np.asarray(value)


def capture(run: Run) -> None:
    """A capture that an exception ends leaves its stream usable, and engines answer the same."""
    if not run.dry:
        gpu = Gpu(run.device)

        def interrupted() -> dict[str, Any]:
            stream, told = gpu.stream(), []
            for work in (lambda: 1 / 0, stream.sync):
                try:
                    gpu.capture(stream, work)
                except CrossfuseError as error:
                    told.append(str(error))
            buffer = gpu.allocate(16, stream)
            gpu.upload(np.arange(4, dtype=np.float32), buffer, stream)
            graph = gpu.capture(
                stream,
                lambda: gpu.driver.copy(
                    int(buffer.handle) + 8, int(buffer.handle), 8, int(stream.handle)
                ),
            )
            gpu.replay(graph, stream)
            kept = np.empty(4, np.float32)
            gpu.download(buffer, kept, stream)
            gpu.sync(stream)
            return {"errors": told, "right": kept.tolist() == [0, 1, 0, 1]}

        run.case(interrupted, what="exceptions in a capture")
    for name in run.models:
        run.case(lambda n=name: _repeated(run, n), what="the same call again and again", model=name)


def _repeated(run: Run, name: str) -> dict[str, Any]:
    folder, target = run.bundle(name), "ort-cpu"
    if not run.dry:
        target = "tensorrt-rtx"
        crossfuse.build(folder, target, compute_capabilities=[Gpu(run.device).capability])
    inputs = dict(load_reference(folder / REFERENCE_FILE).points[0].inputs)
    with load(folder, target, run.options) as session:
        first = session.run(**inputs)
        again = [session.run(**inputs) for _ in range(8)]
        samples = sample({"call": lambda: session.run(**inputs)}, run.plan)["call"]
    same = all(np.array_equal(outputs[n], array) for outputs in again for n, array in first.items())
    return {"same": same, "seconds": summarize(samples.rounds).to_json()}
