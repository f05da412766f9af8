"""Models by the name of their hub repository: the local cache, and a hub of our own that says no."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import jax
import pytest

from c3jax.config import run as config_lib
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.huggingface.hub import fetch_folder
from c3jax.models.load import describe_model, load_params
from c3jax.types import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_repository_in_the_cache_is_its_folder(cache):
    random = config_lib.RandomModel(kind="random", layers=1, width=8, heads=1, key_value_heads=1, mlp_width=8)
    made = describe_model(random, ["up", "down"])
    params = load_params(made, jax.random.key(0))
    repository = cache / "models--somebody--model"
    snapshot = repository / "snapshots" / COMMIT
    hf_weights.save_folder(snapshot, made.spec, params)
    made.tokenizer.save(str(snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for revision in ("main", COMMIT):
        assert fetch_folder("somebody/model", revision) == snapshot
    section = config_lib.HubModel(kind="hub", name="somebody/model")
    found = describe_model(section, None)
    assert (found.spec, found.folder) == (made.spec, snapshot)
    loaded = load_params(found, jax.random.key(1))
    assert (loaded["embedding"] == params["embedding"]).all()


def test_without_cache_or_network_it_says_so(cache):
    with pytest.raises(UserError, match="expected somebody/model at revision main in the hub's local cache, or a conn"):
        fetch_folder("somebody/model", "main")
    with pytest.raises(UserError, match="expected a repository such as Qwen/Qwen2.5-3B-Instruct, got 'no such name!'"):
        fetch_folder("no such name!", "main")


@pytest.fixture
def answer(cache, monkeypatch) -> Iterator[dict[str, str]]:
    """A hub that refuses everything, in the way that the test writes into the dict."""
    reply = {"status": "404", "code": ""}

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(reply["status"]))
            self.send_header("X-Error-Code", reply["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield reply
        server.shutdown()


@pytest.mark.parametrize(
    "status, code, message",
    [
        ("404", "RepoNotFound", "model.name: expected a repository of the hub, got 'somebody/model', which is none"),
        ("401", "", "model.name: somebody/model cannot be fetched .Client error '401"),
        ("403", "GatedRepo", "model.name: expected a repository that you may read, got somebody/model, which is gated"),
        ("404", "RevisionNotFound", "model.revision: expected a branch, tag or commit of somebody/model, got 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(answer, status, code, message):
    answer |= {"status": status, "code": code}
    with pytest.raises(UserError, match=message) as caught:
        fetch_folder("somebody/model", "v9")
    assert "\n" not in str(caught.value)
