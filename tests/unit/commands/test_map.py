"""`crossfuse map`: what it refuses, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse import BundleError, InputError
from crossfuse.bundle.store import Bundle
from crossfuse.commands.map import map_command

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from crossfuse.serve import cluster

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "local_ray", started)


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out of range"):
        map_command(OLD, tmp_path, tmp_path / "out", cache_mb=-1)


def test_what_can_not_be_done_is_refused_before_ray_starts(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    np.savez(source / "0.npz", x=np.zeros(3))
    out = tmp_path / "out"
    with pytest.raises(BundleError, match="there is no bundle"):
        map_command(tmp_path / "none", source, out)
    bundle = zoo_bundle("cross_modal_attention").path
    with pytest.raises(BundleError, match="no such target"):
        map_command(bundle, source, out, target="ort-gpu")
    with pytest.raises(InputError, match="doesn't exist"):
        map_command(bundle, tmp_path / "none", out, target="ort-cpu")
    assert not out.exists()
    out.mkdir()
    (out / "letter").touch()
    with pytest.raises(InputError, match="holds no job"):
        map_command(bundle, source, out, target="ort-cpu")
