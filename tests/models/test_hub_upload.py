"""push_to_hub of a model carries tokenizer and card; what arrives is a folder that loads again. The hub is a server in
this test that speaks the few requests of an upload."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PUSH = """
import sys
import torch
from refine.models import from_pretrained
model = from_pretrained("sample/delta_net")
model.push_to_hub("someone/as-it-is", private=True)
with torch.no_grad():
    model.lm_head.weight.add_(0.1)
model.push_to_hub("someone/changed")
from huggingface_hub import HfApi
HfApi().upload_folder(repo_id="someone/folder", folder_path=sys.argv[1])
"""
MODEL = {"config.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


class Hub(BaseHTTPRequestHandler):
    """Repositories as folders below `root`."""

    root: Path

    def _answer(self, values: object, code: int = 200, **headers: str) -> None:
        body = json.dumps(values).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._answer({"id": "/".join(parts[2:4]), "sha": "0" * 40, "siblings": []})
        file = self.root / parts[0] / parts[1] / parts[-1]
        if not file.is_file():
            return self._answer({}, 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        return self._answer(file.read_text(), ETag='"a"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            wanted = json.loads(sent)
            return self._answer({"url": f"{self._address()}/{wanted['organization']}/{wanted['name']}"})
        if "validate-yaml" in self.path:
            return self._answer({"errors": [], "warnings": []})
        repo = self.root / parts[2] / parts[3]
        if parts[4] == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(sent)["files"]]  # fmt: skip
            return self._answer({"files": files})
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                repo.mkdir(parents=True, exist_ok=True)
                (repo / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
        made = f"{self._address()}/{parts[2]}/{parts[3]}/commit/{'0' * 40}"
        return self._answer({"commitUrl": made, "commitOid": "0" * 40})

    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path):
    """(address, folder of the repositories)."""
    root = tmp_path / "hub"
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"root": root}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root
    server.shutdown()


def test_tokenizer_and_card_go_along_and_a_changed_model_leaves_the_card(hub, tmp_path, monkeypatch, checkout):
    from refine.data.tokenizer import load_tokenizer
    from refine.models import from_pretrained

    address, root = hub
    for name, value in {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1",
                        "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    folder = checkout / "refine" / "models" / "sample" / "delta_net"
    done = subprocess.run([sys.executable, "-c", PUSH, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    arrived = {one: {file.name for file in (root / "someone" / one).iterdir()} for one in ("as-it-is", "changed")}
    assert arrived["as-it-is"] >= MODEL | TOKENIZER | {"README.md"} and arrived["changed"] >= MODEL | TOKENIZER
    card = (folder / "README.md").read_text()
    assert (root / "someone" / "as-it-is" / "README.md").read_text() == card
    assert (root / "someone" / "changed" / "README.md").read_text() != card
    for name in ("as-it-is", "folder"):
        there = root / "someone" / name
        assert from_pretrained(there).config.vocab_size == len(load_tokenizer(there))
    assert {file.name for file in (root / "someone" / "folder").iterdir()} == {file.name for file in folder.iterdir()}
