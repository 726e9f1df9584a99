"""Models on a hub, of which a small server on this machine speaks the parts that are asked for."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, constants

import protonmf_cli
from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files import hub
from toys import run

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name: file -> bytes; and who asked for what."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuses: int | None = None
        self.token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def answer(self, body: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/")
        if parts[0] == "api":  # /api/models/ORG/NAME
            name = "/".join(parts[2:4])
            if name in self.server.repositories:
                return self.answer({"id": name, "sha": COMMIT})
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name not in self.server.repositories:
            return self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        found = self.server.repositories[name].get(file)
        if found is None:
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha256(found).hexdigest()}"'
        return self.answer(found, headers={"ETag": etag, "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        self.server.token = self.headers.get("authorization")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.server.refuses:
            return self.answer({"error": "not yours"}, self.server.refuses)
        if self.path == "/api/repos/create":
            said = json.loads(content)
            name = f"{said['organization']}/{said['name']}"
            self.server.private[name] = said.get("private", said.get("visibility") == "private")
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            return self.answer({"files": files})
        assert "/commit/main" in self.path
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub of one's own with a token for it, and an empty cache."""
    with Hub() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found
        found.shutdown()
        thread.join()


def test_a_model_goes_to_the_hub_and_explains_from_there(toy, converted, server):
    code, out, err = run("push", converted, "me/digits", "--private", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["repository"], said["url"], said["commit"]) == ("me/digits", f"{server.url}/me/digits", COMMIT)
    assert set(server.repositories["me/digits"]) == {"prototypes.safetensors", "README.md"}
    assert server.repositories["me/digits"]["prototypes.safetensors"] == converted.read_bytes()
    assert server.private["me/digits"] is True and server.token == "Bearer hf_mine"
    assert server.repositories["me/digits"]["README.md"].decode() == said["card"]

    own, theirs = (protonmf_cli.load(model).explain(toy.image(1)) for model in (converted, "hub:me/digits"))
    assert theirs.logit == own.logit and theirs.model.endswith("prototypes.safetensors")
    code, out, err = run("explain", toy.image(1), "--model", "hub:me/digits@main", "--json")
    assert code == 0 and json.loads(out)["logit"] == own.logit, err
    code, out, err = run("inspect", "hub:me/digits")
    assert code == 0 and "8 with" in out, err

    server.asked.clear()  # from here on the cache alone
    code, out, err = run("explain", toy.image(1), "--model", "hub:me/digits", "--offline", "--json")
    assert code == 0 and json.loads(out)["logit"] == own.logit, err
    code, out, err = run("inspect", "hub:me/digits", "--offline")
    assert code == 0 and "8 with" in out, err
    assert server.asked == []


def test_the_card_says_what_the_file_says(toy, converted, server):
    code, out, err = run("push", converted, "me/toy", "--dry-run")
    assert code == 0, err
    assert not server.asked and not server.repositories
    card = ModelCard(out)
    data = card.data.to_dict()
    assert data["library_name"] == "protonmf" and data["pipeline_tag"] == "image-classification"
    assert "base_model" not in data and "license" not in data  # a folder of one's own
    assert "prototypes" in data["tags"]
    assert "hub:me/toy" in card.text and "exactness" in card.text and "8 prototypes" in card.text
    assert ", ".join(sorted(["red things", "green things"], reverse=True)) in card.text
    assert str(toy.folder) not in out  # nothing of the machine that it was made on
    assert "crops of training images" in card.text


@pytest.mark.parametrize(
    ("name", "repository", "licence"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "apache-2.0"),
        ("hf-hub:me/net@v1", "me/net", None),
        ("hf:me/net", "me/net", None),
        ("torchvision:resnet18", None, None),
        ("local-dir:/home/me/net", None, None),
        ("no_such_network", None, None),
    ],
)
def test_where_a_network_comes_from(name, repository, licence):
    origin = hub.origin_of(name)
    assert (origin.repository, origin.licence) == (repository, licence)
    data = ModelCard(hub.card_text("# toy", origin, ["prototypes"])).data.to_dict()
    assert (data.get("base_model"), data.get("license")) == (repository, licence)


def test_push_refuses(converted, server, monkeypatch, tmp_path):
    server.repositories["me/old"] = {"README.md": b"mine"}
    code, out, err = run("push", converted, "me/old")
    assert (code, out) == (3, "") and "me/old exists already. Give another name, or --force" in err
    assert server.repositories["me/old"] == {"README.md": b"mine"}
    code, _, err = run("push", converted, "me/old", "--force")
    assert code == 0 and len(server.repositories["me/old"]) == 2, err
    for name in ("digits", "me/", "a/b/c", "me/di gits", "/digits", "me/../you"):
        with pytest.raises(UsageError, match="is not of the form ORG/NAME"):
            protonmf_cli.push(converted, name)
    with pytest.raises(ModelFileError, match="there is no prototype model"):
        protonmf_cli.push(tmp_path / "gone.safetensors", "me/gone")
    server.refuses = 403
    with pytest.raises(InputError, match=r"the token may not write to you/digits \(the hub said 403\)"):
        protonmf_cli.push(converted, "you/digits")
    assert "you/digits" not in server.repositories


def test_nothing_is_sent_without_a_token_or_a_network(converted, server, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="there is no token of the hub, so nothing was sent"):
        protonmf_cli.push(converted, "me/new")
    monkeypatch.undo()
    monkeypatch.setattr(hub, "get_token", lambda: "hf_mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 cannot be reached, so nothing was sent"):
        protonmf_cli.push(converted, "me/new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="switched off"):
        protonmf_cli.push(converted, "me/new")
    assert server.asked == []


def test_what_the_hub_does_not_have(toy, server):
    server.repositories["me/other"] = {"README.md": b"a model of another kind"}
    expected = {
        "hub:me/gone": "the hub has no model me/gone, or no access to it",
        "hub:me/other": "me/other holds no prototypes.safetensors, so it is no model of `protonmf push`",
        "hub:me/other@v7": "me/other has no revision 'v7'",
    }
    for name, words in expected.items():
        code, out, err = run("explain", toy.image(0), "--model", name)
        assert (code, out) == (3, "") and words in err, err
    code, _, err = run("explain", toy.image(0), "--model", "hub:me/other", "--offline")
    assert code == 3 and "is not on this machine and cannot be downloaded" in err
    assert run("explain", toy.image(0), "--model", "hub:me")[0] == 2


def test_a_damaged_download_is_refused(toy, converted, server):
    content = bytearray(converted.read_bytes())
    content[-3] ^= 1
    server.repositories["me/broken"] = {"prototypes.safetensors": bytes(content)}
    with pytest.raises(ModelFileError, match="damaged"):
        protonmf_cli.load("hub:me/broken")
