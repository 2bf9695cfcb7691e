"""Load a model of ``transformers``: which class, and weights from safetensors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_folder import ADAPTER, CONFIG, INDEX, require_plain, weight_files
from crossfuse.core.checkpoint_weights import require_weights
from crossfuse.core.foreign import cause_of
from crossfuse.core.text import brief
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.sources.huggingface.export_settings import set_for_export

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Loaded", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model with a checkpoint's weights.

    Attributes:
        module: in float32 and evaluation mode.
        missing: weights that the checkpoint lacks, or has in another shape; they are random, from a
            fixed seed.
        left_over: the checkpoint's tensors that the model has no place for.
        folder: where the checkpoint's files are; None where that isn't known.
    """

    module: nn.Module
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    folder: Path | None = None


def load_model(
    source: str,
    task: str | None = None,
    *,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
) -> Loaded:
    """The model behind a folder or an identifier of a model hub.

    Args:
        source: the folder, or an identifier ``organisation/name``.
        task: a task of the library's pipelines, or the name of one of its classes; where omitted,
            the class that the configuration names.
        trust_remote_code: run code that comes with the checkpoint.
        allow_missing: let weights that the checkpoint lacks, or has in another shape, stay random
            (from a fixed seed).

    Raises:
        InputError: no such model, no safetensors, files that lead elsewhere, an unknown task,
            weights that are missing or have other shapes, or code that would have to be trusted.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "models of transformers need the package transformers",
            got=str(error),
            do="pip install 'crossfuse[hf]'",
        ) from error
    folder = Path(source)
    if folder.is_dir():
        require_plain(folder)
    try:
        files = folder if folder.is_dir() else _checked_snapshot(source)
        in_hub = files is not folder and files.parent.name == "snapshots"
        revision = files.name if in_hub else None
        given: dict[str, Any] = {} if revision is None else {"revision": revision}
        config = transformers.AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, **given
        )
        made_by = _model_class(transformers, config, task, trust_remote_code)
        if folder.is_dir():
            weight_files(folder)
        if hasattr(made_by, "_model_mapping"):
            given["trust_remote_code"] = trust_remote_code
        model, info = _load(
            made_by, source, config=config, use_safetensors=True, dtype="float32", **given
        )
    except InputError:
        raise
    except Exception as error:  # the library's code, its dependencies', and the checkpoint's own
        text = brief(error) if str(error) else cause_of(error)
        hint = (
            Advice(
                "Read the checkpoint's code, then pass {}",
                Said("--trust-remote-code", "trust_remote_code=True"),
            )
            if "trust_remote_code" in text
            else "Give a folder with config.json and *.safetensors, or an identifier that can be "
            "downloaded"
        )
        raise InputError(f"the model can't be loaded: {text}", where=source, do=hint) from error
    missing, left_over = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = {
        name: (tuple(got), tuple(expected))
        for name, got, expected in sorted(info["mismatched_keys"])
    }
    missing = [name for name in missing if name not in shapes]
    what = f"the checkpoint doesn't fit {type(model).__name__}"
    require_weights(source, what, missing, shapes, left_over, allow_missing=allow_missing)
    return Loaded(
        _for_inference(model), tuple(sorted([*missing, *shapes])), tuple(left_over), files
    )


def _load(made_by: Any, source: str, **given: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what the library says about its weights; random ones are the same each
    time."""
    import torch
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # Its table of weights says what our error and the manifest say.
    logging.set_verbosity(40)  # errors
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = made_by.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **given
            )
    finally:
        logging.set_verbosity(verbosity)
    return model, info


def _checked_snapshot(source: str) -> Path:
    """The folder of a hub's model in the cache, after a look at what is known of it before its
    weights are there."""
    from transformers.utils.hub import cached_file

    snapshot = Path(cached_file(source, CONFIG) or CONFIG).parent
    revision = snapshot.name if snapshot.parent.name == "snapshots" else None
    for name in (INDEX, ADAPTER):
        cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    require_plain(snapshot, complete=False)
    return snapshot


def _for_inference(model: Any) -> nn.Module:
    """Evaluation mode, no caches among the outputs."""
    model.eval()
    model.requires_grad_(False)
    set_for_export(model)
    return model  # type: ignore[no-any-return]


def _unknown_class(config: Any, names: Sequence[str]) -> InputError:
    """Refuse a class that the library hasn't: its own for the same type is another model."""
    own_code = hasattr(config, "auto_map")
    what = "the checkpoint's class comes with its own code, which does not run by itself"
    task = Said("--task", "task=...")
    return InputError(
        what if own_code else "this version of transformers has no such class",
        got=", ".join(names),
        do=Advice(
            "Read the code, then pass {}, or choose a class of transformers with {}",
            Said("--trust-remote-code", "trust_remote_code=True"),
            task,
        )
        if own_code
        else Advice("Pass {}", task),
    )


def _model_class(transformers: Any, config: Any, task: str | None, trust_remote_code: bool) -> Any:
    if task is None:
        names = list(getattr(config, "architectures", None) or [])
        found = next(
            (getattr(transformers, name) for name in names if hasattr(transformers, name)), None
        )
        if found is not None:
            return found
        if names and not trust_remote_code:
            raise _unknown_class(config, names)
        return transformers.AutoModel
    if hasattr(transformers, task) and hasattr(getattr(transformers, task), "from_pretrained"):
        return getattr(transformers, task)
    from transformers.pipelines import SUPPORTED_TASKS

    if task in SUPPORTED_TASKS:
        classes: Any = SUPPORTED_TASKS[task]
        for auto in classes["pt"]:
            if type(config) in auto._model_mapping:
                return auto
    raise InputError(
        "no class of this model does the task",
        got=repr(task),
        expected=f"a class of transformers, or one of: {', '.join(sorted(SUPPORTED_TASKS))}",
    )
