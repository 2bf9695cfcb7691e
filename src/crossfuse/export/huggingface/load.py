"""Load a model of ``transformers``: which class, and weights from safetensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.errors import Advice, InputError, Said
from crossfuse.foreign import brief, cause_of
from crossfuse.safetensors_files import require_whole

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_model"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(source: str, task: str | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """The model behind a folder or an identifier of a model hub, in float32 and evaluation mode.

    Args:
        source: the folder, or an identifier ``organisation/name``.
        task: a task of the library's pipelines, or the name of one of its classes; where omitted, the class that the
            configuration names.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        InputError: no such model, no safetensors, an unknown task, or code that would have to be trusted.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "models of transformers need the package transformers", got=str(error), do="pip install 'crossfuse[hf]'"
        ) from error
    folder = Path(source)
    if folder.is_dir():
        _require_safetensors(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            require_whole(file)
        made_by = _model_class(transformers, config, task, trust_remote_code)
        model: Any = (
            made_by.from_pretrained(
                source, config=config, use_safetensors=True, dtype="float32", trust_remote_code=trust_remote_code
            )
            if hasattr(made_by, "_model_mapping")
            else made_by.from_pretrained(source, config=config, use_safetensors=True, dtype="float32")
        )
    except InputError:
        raise
    except Exception as error:  # the library's code, its dependencies', and the checkpoint's own
        text = brief(error) if str(error) else cause_of(error)
        hint = (
            Advice("Read the checkpoint's code, then pass {}", Said("--trust-remote-code", "trust_remote_code=True"))
            if "trust_remote_code" in text
            else "Give a folder with config.json and *.safetensors, or an identifier that can be downloaded"
        )
        raise InputError(f"the model can't be loaded: {text}", where=source, do=hint) from error
    return _for_inference(model)


def _for_inference(model: Any) -> nn.Module:
    """Evaluation mode, no caches among the outputs."""
    model.eval()
    model.requires_grad_(False)
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        if getattr(config, "use_cache", None):
            config.use_cache = False
    return model  # type: ignore[no-any-return]


def _require_safetensors(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError("the folder holds no model", where=folder, expected="config.json and *.safetensors")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    raise InputError(
        "the checkpoint holds no safetensors, and pickles are never loaded: they can run any code",
        where=folder,
        got=", ".join(pickles) or "no weights",
        expected="*.safetensors",
        do="Where you trust it, load it with transformers and save it again with save_pretrained, which writes safetensors",
    )


def _model_class(transformers: Any, config: Any, task: str | None, trust_remote_code: bool) -> Any:
    if task is None:
        names = list(getattr(config, "architectures", None) or [])
        found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
        if found is not None:
            return found
        if names and not trust_remote_code and not hasattr(config, "auto_map"):
            raise InputError(
                "this version of transformers has no such class",
                got=", ".join(names),
                do=Advice("Pass {}", Said("--task", "task=...")),
            )
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
