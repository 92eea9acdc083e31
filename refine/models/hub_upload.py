"""What `push_to_hub` of a model carries beside weights and config: the tokenizer and the model card of its folder.

transformers uploads what `save_pretrained` writes, which is neither. The card says how the weights in the folder were
made and what they scored, so it goes along only while the model still has those weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from refine.errors import ModelError
from refine.models.weights import weight_files
from refine.system.leftovers import temporary_folder

CARD = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def upload_beside(model: Any, folder: Path, repo_id: str, with_card: bool, **options: Any) -> None:
    """Upload the tokenizer in `folder` to the repository, and with `with_card` the card and the licence. options: of
    `HfApi.upload_folder`."""
    from huggingface_hub import HfApi

    names = [*TOKENIZER, *(CARD if with_card and has_weights_of(model, folder) else ())]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        return
    with temporary_folder("upload") as chosen:  # the hub's cache has links, which are not uploaded as files
        for file in found:
            shutil.copy(file, chosen)
        HfApi().upload_folder(
            repo_id=repo_id, folder_path=str(chosen), commit_message="Upload tokenizer and model card", **options
        )


def repository(repo_id: str, **options: Any) -> str:
    """The repository's full name. It is made if it does not exist. options: of `HfApi.create_repo`."""
    from huggingface_hub import HfApi

    return str(HfApi().create_repo(repo_id, exist_ok=True, **options).repo_id)


def has_card(repo_id: str, **options: Any) -> bool:
    """Whether the repository has a card, which its owner may have written."""
    from huggingface_hub import HfApi

    return bool(HfApi().file_exists(repo_id, CARD[0], **options))


@torch.no_grad()
def has_weights_of(model: nn.Module, folder: Path) -> bool:
    """Whether `model` has the weights that the safetensors in `folder` hold."""
    own = dict(model.named_parameters(remove_duplicate=False))
    try:
        files = weight_files(folder)
    except ModelError:
        return False
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored = file.get_tensor(name)
                if name not in own or not torch.equal(stored.to(own[name].dtype), own[name].detach().cpu()):
                    return False
    return True
