"""Finds a model's saved weights, and checks that they are the config's tensors and finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from refine import paths
from refine.errors import ModelError, nearest, reason
from refine.system.readers import mapping, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTERS = "adapter_config.json"  # of peft
# dtypes of weights that are read; others would be cast
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself, a model in the package (sample/delta_net), or the hub repository `name`,
    downloaded or from the hub's cache.

    Raises ModelError: neither a folder nor a hub name, adapters without their model, or the hub does not answer or has
    no such repository.
    """
    folder = paths.model(name)
    folder = folder if folder.is_dir() else _from_hub(str(name), revision)
    refuse_adapters(folder)
    return folder


def refuse_adapters(folder: Path) -> None:
    """Raise ModelError, which says how to merge them, if `folder` holds adapters of peft and no model."""
    if not (folder / ADAPTERS).is_file() or (folder / "config.json").is_file():
        return
    base = read_json(folder / ADAPTERS, "the fields of peft's adapters", ModelError).get("base_model_name_or_path")
    raise ModelError(
        f"{folder}: holds adapters (LoRA) alone: merge them into {reason(str(base or 'their model'), 100)} first, with "
        "peft.PeftModel.from_pretrained(MODEL, FOLDER).merge_and_unload().save_pretrained(NEW), and name NEW "
        "(docs/training.md, Adapters)"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = f" at revision {revision}" if revision else ""
    if name.startswith("sample/"):
        there = ", ".join(f"sample/{kind}" for kind in paths.shipped_models())
        raise ModelError(
            f"{name}: no such model in the package{nearest(name, there.split(', '))}; expected one of {there}"
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: no such model folder; expected a folder with config.json, or a hub name owner/name")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except HFValidationError:
        raise ModelError(f"{name}: neither a model folder nor a hub name (owner/name)") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name}{at}: no such folder, not in the hub's cache, and the hub cannot be reached: "
            "name a folder, or set HF_ENDPOINT to a mirror and unset HF_HUB_OFFLINE"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        first = " ".join(str(error).strip().splitlines()[:1])
        raise ModelError(f"{name}{at}: no such folder, and the download from the hub failed: {first}") from None


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies: the file, and the tensor's name, shape and dtype (one of FLOATS) in it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def tensor(self) -> torch.Tensor:
        """The values, in memory of their own."""
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(self.name).clone()


Shapes = dict[str, tuple[int, ...]]


def check_weights(
    folder: Path,
    model: nn.Module,
    tied: bool,
    name_of: Callable[[str], str | None] = lambda name: name,
    regroup: Callable[[dict[str, Stored], Shapes], dict[str, Stored]] = lambda there, shapes: there,
    stored_shapes: Callable[[dict[str, Stored], Shapes], Shapes] = lambda there, shapes: shapes,
) -> dict[str, Stored]:
    """The stored tensors, by the parameters' names.

    Raises ModelError unless the safetensors in `folder` hold exactly the parameters of `model` (may be on "meta").

    Reads only the files' headers. With `tied`, lm_head.weight may be absent, or must equal the embedding.
    `name_of`: the parameter that a stored name belongs to, or None for a tensor that is not part of the model.
    `regroup`: mends tensors that are known to be cut in another way than the parameters. `stored_shapes`: what the
    files should hold for parameters of these shapes, where they hold these tensors.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    there = _stored(folder, name_of)
    expected = stored_shapes(there, expected)
    there = regroup(there, expected)
    embeddings = f"model.{getattr(getattr(model, 'model', None), 'embeddings_name', 'embeddings')}.weight"
    optional = {"lm_head.weight"} if tied else set()
    if missing := [name for name in expected if name not in there and name not in optional]:
        raise ModelError(f"{folder}: the weights lack {_some(missing)}, which config.json asks for")
    if extra := [one.name for name, one in there.items() if name not in expected]:
        raise ModelError(f"{folder}: the weights hold {_some(extra)}, which config.json does not ask for")
    for name, one in there.items():
        if one.shape != expected[name]:
            what = ": the vocabulary differs" if name in (embeddings, "lm_head.weight") else ""
            raise ModelError(
                f"{one.path}: {one.name} has shape {list(one.shape)}, config.json asks for {list(expected[name])}{what}"
            )
    both = [there[name].tensor() for name in (embeddings, "lm_head.weight") if tied and name in there]
    if len(both) == 2 and not torch.equal(*both):
        raise ModelError(
            f"{folder}: tie_word_embeddings is true, but lm_head.weight differs from {there[embeddings].name}"
        )
    return there


def _stored(folder: Path, name_of: Callable[[str], str | None]) -> dict[str, Stored]:
    """The stored tensors by the parameter that they belong to. Raises ModelError: two of them are one parameter's."""
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        for name, shape, dtype in _header(path, name_of):
            parameter = name_of(name)
            if parameter in found:
                raise ModelError(f"{folder}: the weights hold both {found[parameter].name} and {name}, which are one")
            if parameter is not None:
                found[parameter] = Stored(path, name, shape, dtype)
    return found


def check_finite(model: nn.Module, where: str | Path) -> None:
    """Raise ModelError if a parameter holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            raise ModelError(f"{where}: {name} holds {bad} values that are NaN or infinite; the checkpoint is damaged")


def weight_files(folder: Path) -> list[Path]:
    """All safetensors files of a model. Raises ModelError: no weights, other formats only, a checkpoint in parts, or a
    missing shard."""
    if (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        raise ModelError(f"{folder}: holds both {SINGLE} and {INDEX}, perhaps of two models: remove the older of them")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(f"{folder}: {INDEX} names {_some(absent)}, but the folder does not contain it")
        return [folder / name for name in names]
    if (folder / paths.SHARDS).is_dir():
        raise ModelError(
            f"{folder}: is a checkpoint in parts, which only a training reads: resume that, and take the model/ that "
            "it writes at its end"
        )
    other = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    found = (
        f"found {_some(other)}, but only safetensors are read: convert these files to safetensors"
        if other
        else "no weights"
    )
    raise ModelError(f"{folder}: expected {SINGLE} or {INDEX}; {found}")


def _shards(index: Path) -> list[str]:
    """The names of the shards in the folder of `index`. Raises ModelError: not an index, or a name that is a path."""
    what = "an index of shards (expected a weight_map)"
    values = read_json(index, what, ModelError)
    mapping(values.get("metadata", {}), f"{index}: metadata", what, ModelError)
    shards = mapping(values.get("weight_map"), str(index), what, ModelError).values()
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: not an index of shards: expected the name of a .safetensors file in the same folder, "
                f"not {reason(repr(name), 100)}"
            )
    return sorted(set(shards))


def _header(path: Path, name_of: Callable[[str], str | None]) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, dtype) of each tensor. Raises ModelError: the file is damaged, or a parameter holds no floats."""
    try:
        with safe_open(path, "pt") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            found = [(name, tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or cut off ({error})") from None
    for name, _, dtype in found:
        if dtype not in FLOATS and name_of(name) is not None:
            raise ModelError(f"{path}: {name} is stored as {dtype}; expected weights as one of {', '.join(FLOATS)}")
    return found


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
