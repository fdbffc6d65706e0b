"""The hub's cache: what was downloaded from a local server that speaks the hub's protocol loads
again with HF_HUB_OFFLINE=1, and when the server is gone. Encoders of several shapes, readers."""
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
import transformers as T
from conftest import ROOT
from test_features import xlm
from test_reader import make

from s2dm.toy import toy_bert, toy_tokenizer

COMMIT = "c" * 40
CODE = "raise RuntimeError('code of a repository was run')\n"


class Hub(BaseHTTPRequestHandler):
    "Serves the folders owner/name below the server's `folder`: description, tree, sizes, files."
    protocol_version = "HTTP/1.1"

    def do_GET(self): self._answer(self.command)
    do_HEAD = do_POST = do_GET

    def _answer(self, method):
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{method} /{path}")
        try: answer, headers = self._find(path, body)
        except FileNotFoundError:
            there = (self.server.folder / "/".join(path.split("/")[:2])).is_dir()
            answer = b"{}" # as the hub says it: no such file, or no such repository
            headers = {"X-Error-Code": "EntryNotFound" if there else "RepoNotFound"}
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for name, value in headers.items(): self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if method != "HEAD": self.wfile.write(answer)

    def _find(self, path, body):
        parts = path.split("/")
        api = parts[0] == "api"
        if len(parts) < (4 if api else 2): raise FileNotFoundError(path)
        owner, name = parts[2:4] if api else parts[:2]
        what = parts[4] if api and len(parts) > 4 else ""
        repo = self.server.folder / owner / name
        if not repo.is_dir(): raise FileNotFoundError(repo)
        files = sorted(p.relative_to(repo).as_posix() for p in repo.rglob("*") if p.is_file())
        if not api: # owner/name/resolve/<commit>/<file>
            data = (repo / "/".join(parts[4:])).read_bytes()
            return data, {"ETag": f'"{self._sum(data)}"', "X-Repo-Commit": COMMIT}
        if what in ("tree", "paths-info"):
            asked = dict(x.split("=") for x in body.decode().split("&") if "=" in x) if body else {}
            if body.startswith(b"{"): asked = json.loads(body)
            wanted = asked.get("paths", files) if what == "paths-info" else files
            found = [self._entry(repo, f) for f in files if f in wanted]
            return json.dumps(found).encode(), {"Content-Type": "application/json"}
        about = dict(id=f"{owner}/{name}", modelId=f"{owner}/{name}", sha=COMMIT, private=False,
                     tags=[], downloads=0, siblings=[dict(rfilename=f) for f in files])
        return json.dumps(about).encode(), {"Content-Type": "application/json"}

    def _entry(self, repo, file):
        data = (repo / file).read_bytes()
        return dict(type="file", path=file, size=len(data), oid=self._sum(data))

    def _sum(self, data): return hashlib.sha1(data).hexdigest()
    def log_message(self, *args): pass


def bert(folder, **how):
    tokenizer = toy_tokenizer()
    sizes = dict(layers=2, positions=512, feed_forward=32, pooler=True)
    toy_bert(len(tokenizer), **sizes).save_pretrained(folder, **how)
    tokenizer.save_pretrained(folder)


def extras(folder):
    "What repositories have besides, and what an encoder does not need."
    for name in (".gitattributes", "README.md", "code.py", "tf_model.h5", "rust_model.ot",
                 "onnx/config.json", "onnx/model.onnx", "1_Pooling/config.json", "picture.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CODE if name == "code.py" else "{}")
    (folder / "big.dat").write_bytes(bytes(100))


def sharded(folder):
    bert(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def pickled(folder):
    bert(folder)
    torch.save(T.AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def slow(folder):
    tokenizer = xlm(folder)
    model = T.XLMModel(T.XLMConfig(vocab_size=len(tokenizer), emb_dim=16, n_layers=1, n_heads=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def codes(folder):
    "PhoBERT's tokenizer: its merges are in bpe.codes."
    (folder / "dict").mkdir()
    (folder / "dict/vocab.txt").write_text("a 1\nb 1\na@@ 1\n")
    (folder / "dict/bpe.codes").write_text("a b</w> 1\n")
    tokenizer = T.PhobertTokenizer(str(folder / "dict/vocab.txt"), str(folder / "dict/bpe.codes"))
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = T.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **size)
    T.RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert (folder / "bpe.codes").is_file()
    for file in (folder / "dict").iterdir(): file.unlink()


SHAPES = dict(bert=bert, sharded=sharded, pickled=pickled, slow=slow, codes=codes)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "A server with one repository of each shape, and a reader."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.requests = tmp_path_factory.mktemp("hub"), []
    for name, fill in SHAPES.items():
        folder = server.folder / "owner" / name
        folder.mkdir(parents=True)
        fill(folder)
        extras(folder)
    reader = server.folder / "owner" / "reader"
    make().save_pretrained(reader)
    extras(reader)
    (reader / "encoder" / "code.py").write_text(CODE)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from s2dm.encoder import load_encoder
from s2dm.reader import S2DMReader
out = {}
for name in sys.argv[1:]:
    if name.endswith("reader"):
        reader = S2DMReader.from_pretrained(name, device="cpu")
        out[name] = reader.answer("Wo?", "Er ist am See.")[0][:3]
    else:
        encoder = load_encoder(name, "cpu")
        states = encoder(encoder.split([["a", "b"]]))
        size = round(states.abs().sum().item(), 4)
        out[name] = [encoder.revision, len(encoder.split.tokenizer), size]
print(json.dumps(out))
"""


def load(home, url, *names, **env):
    "What a process of its own makes of encoders and readers on the hub at `url`."
    where = dict(HF_HOME=str(home), HF_ENDPOINT=url, PYTHONPATH=str(ROOT))
    env = os.environ | dict(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1") | where | env
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", SCRIPT, *names]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


def nobody():
    "An address at which nobody answers."
    return "http://127.0.0.1:9"


def test_what_was_downloaded_loads_offline_and_without_the_server(hub, tmp_path):
    names = [f"owner/{name}" for name in (*SHAPES, "reader")]
    first = load(tmp_path, hub.url, *names)
    assert all(first[n][0] == COMMIT for n in names[:-1]) and first["owner/codes"][1] > 3
    hub.requests.clear()
    assert load(tmp_path, hub.url, *names, HF_HUB_OFFLINE="1") == first
    assert hub.requests == [] # the switch was obeyed
    assert load(tmp_path, nobody(), *names) == first
    assert load(tmp_path, nobody(), *names, HF_HUB_OFFLINE="1") == first
    encoders = names[:-1]
    assert load(tmp_path, hub.url, *encoders) == {n: first[n] for n in encoders}
    assert hub.requests == [] # an encoder in the cache is not asked for again


def test_no_code_and_no_second_form_of_the_weights_is_fetched(hub, tmp_path):
    load(tmp_path, hub.url, "owner/bert", "owner/codes")
    fetched = {p.name for p in (tmp_path / "hub").rglob("snapshots/*/*") if p.is_file()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "bpe.codes", "vocab.txt"}
    useless = {"code.py", "tf_model.h5", "rust_model.ot", "README.md", "model.onnx", "picture.png"}
    assert needed <= fetched and not useless & fetched
    assert not any("code.py" in request for request in hub.requests)


@pytest.mark.slow
def test_a_tokenizer_that_other_software_left_out_is_fetched_or_named(hub, tmp_path):
    "transformers' own loading of a model leaves the weights alone in the cache."
    code = "from transformers import AutoModel; AutoModel.from_pretrained('owner/bert')"
    env = os.environ | dict(HF_HOME=str(tmp_path), HF_ENDPOINT=hub.url)
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    folder = tmp_path / "hub/models--owner--bert/snapshots" / COMMIT
    assert (folder / "model.safetensors").exists() and not (folder / "tokenizer.json").exists()
    with pytest.raises(AssertionError, match="DataError.*lacks the tokenizer's vocab.txt"):
        load(tmp_path, nobody(), "owner/bert")
    assert load(tmp_path, hub.url, "owner/bert")["owner/bert"][0] == COMMIT
    assert (folder / "tokenizer.json").exists()


def test_a_repository_that_is_not_there(hub, tmp_path):
    with pytest.raises(AssertionError, match="the hub has no owner/nothing"):
        load(tmp_path, hub.url, "owner/nothing")
    with pytest.raises(AssertionError, match="MissingData.*is not in the cache"):
        load(tmp_path, nobody(), "owner/bert")
