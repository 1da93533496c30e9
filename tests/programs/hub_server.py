"""A local server that speaks the endpoints of the Hub which `huggingface_hub` uses for models, with failures on
request.

Used as a context manager; ``server.url`` is its address, ``server.repositories`` what it holds, ``server.requests``
what it was asked. ``server.fail(method, pattern, *failures)`` makes the next matching requests fail: an HTTP status,
``"cut"`` (the connection ends in the middle of the body) or ``"slow"`` (the answer takes a second).
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN, READ_TOKEN, USER = "hf_write", "hf_read", "somebody"
# What the real Hub accepts for these keys (an excerpt).
PIPELINE_TAGS = {"image-classification", "image-feature-extraction", "object-detection"}
LICENSES = {"apache-2.0", "mit", "unknown", "other"}


class Repository:
    def __init__(self, private=False):
        self.private = private
        self.commits = [{}]  # file name -> bytes, newest last
        self.pull_requests = []

    @property
    def files(self):
        return self.commits[-1]

    @property
    def sha(self):
        return hashlib.sha1(f"{id(self)}-{len(self.commits)}".encode()).hexdigest()


class HubServer:
    def __init__(self):
        self.repositories, self.objects, self.requests, self._failures = {}, {}, [], []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, token=TOKEN):
        """Environment variables with which `huggingface_hub` talks to this server (and uses LFS: xet is a service
        apart)."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token,
            "NO_PROXY": "*",
        }

    def fail(self, method, pattern, *failures):
        self._failures += [(method, pattern, failure) for failure in failures]

    def next_failure(self, method, path):
        with self.lock:
            for index, (wanted, pattern, failure) in enumerate(self._failures):
                if wanted == method and re.search(pattern, path):
                    del self._failures[index]
                    return failure
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def _handle(self):
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        failure = self.hub.next_failure(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if failure == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if failure == "slow":
            time.sleep(1)
        elif failure is not None:
            self._json({"error": f"injected {failure}"}, failure)
            return
        for method, pattern, respond in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                with self.hub.lock:
                    respond(self, *match.groups(), query=query, body=body)
                return
        self._json({"error": f"{self.command} {path}: no such route"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _chunked(self):
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content, status=200, **headers):
        headers.update({"X-Error-Message": content["error"]} if "error" in content else {})
        self._send(json.dumps(content).encode(), status, Content_Type="application/json", **headers)

    def _may_write(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            self._json({"error": "Invalid credentials"}, 401)
        elif token == READ_TOKEN:
            self._json({"error": "You don't have the rights to write here"}, 403)
        return token == TOKEN

    def _repository(self, repo_id):
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return repository

    def whoami(self, query, body):
        self._json(
            {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        )

    def validate_yaml(self, query, body):
        """The card's metadata, as far as this project writes it."""
        import yaml

        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---")[1])
        errors = []
        for field, known in (("pipeline_tag", PIPELINE_TAGS), ("license", LICENSES)):
            if field in metadata and metadata[field] not in known:
                errors.append(f'"{field}" {metadata[field]} is not known')
        for field in ("tags", "datasets"):
            if not all(isinstance(value, str) for value in metadata.get(field, [])):
                errors.append(f'"{field}" must be a list of strings')
        if errors:
            self._json({"error": "; ".join(errors)}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def create(self, query, body):
        request = json.loads(body)
        if not self._may_write():
            return
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            self._json({**answer, "error": "You already created this model repo"}, 409)
            return
        if request.get("type") == "space" and request.get("sdk") not in ("gradio", "docker", "static"):
            self._json({"error": "A Space needs an SDK"}, 400)
            return
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(is_private)
        self._json(answer)

    def info(self, repo_id, revision=None, query=None, body=None):
        repository = self._repository(repo_id)
        if repository is not None:
            siblings = [{"rfilename": name} for name in repository.files]
            answer = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": repository.sha, "siblings": siblings}
            self._json({**answer, "private": repository.private, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo_id, revision, folder=None, query=None, body=None):
        repository = self._repository(repo_id)
        if repository is not None:
            entries = [
                {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
                for name, data in repository.files.items()
            ]
            self._send(json.dumps(entries).encode(), Content_Type="application/json")

    def empty_list(self, *_, query, body):
        self._send(b"[]", Content_Type="application/json")

    def branch(self, repo_id, name, query, body):
        self._json({"error": "already exists"}, 409)

    def preupload(self, repo_id, revision, query, body):
        if self._may_write() and self._repository(repo_id) is not None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def lfs_batch(self, repo_id, query, body):
        if not self._may_write():
            return
        objects = []
        for entry in json.loads(body)["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify/{entry['oid']}"},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid, query, body):
        if hashlib.sha256(body).hexdigest() != oid:
            self._json({"error": "the bytes do not have the announced SHA-256"}, 400)
            return
        self.hub.objects[oid] = body
        self._send(b"")

    def lfs_verify(self, oid, query, body):
        is_there = oid in self.hub.objects and len(self.hub.objects[oid]) == json.loads(body)["size"]
        self._json({} if is_there else {"error": "not uploaded"}, 200 if is_there else 404)

    def commit(self, repo_id, revision, query, body):
        if not self._may_write():
            return
        repository = self._repository(repo_id)
        if repository is None:
            return
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        answer = {"success": True, "commitOid": repository.sha, "hookOutput": ""}
        if query.get("create_pr") == ["1"]:
            repository.pull_requests.append(files)
            number = len(repository.pull_requests)
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        else:
            repository.commits.append(files)
            answer["commitOid"] = repository.sha
        self._json({**answer, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{answer['commitOid']}"})

    def resolve(self, repo_id, revision, name, query, body):
        repository = self._repository(repo_id)
        if repository is None:
            return
        if name not in repository.files:
            self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.sha)
            return
        data = repository.files[name]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers = {"X_Repo_Commit": repository.sha, "ETag": etag, "Accept_Ranges": "bytes"}
        if start:
            first = int(start[1])
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(data[first:], 206, **headers)
        else:
            self._send(data, **headers)


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("GET",), rf"/api/(?:models|spaces)/{_REPO}", _Handler.info),
    (("GET",), rf"/api/(?:models|spaces)/{_REPO}/revision/(.+)", _Handler.info),
    (("GET",), rf"/api/(?:models|spaces)/{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (("GET",), rf"/api/(?:models|spaces)/{_REPO}/(discussions|refs|commits)", _Handler.empty_list),
    (("POST",), rf"/api/(?:models|spaces)/{_REPO}/branch/(.+)", _Handler.branch),
    (("POST",), rf"/api/(?:models|spaces)/{_REPO}/preupload/(.+)", _Handler.preupload),
    (("POST",), rf"/api/(?:models|spaces)/{_REPO}/commit/(.+)", _Handler.commit),
    (("POST",), rf"/(?:spaces/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/(\w+)", _Handler.lfs_put),
    (("POST",), r"/lfs-verify/(\w+)", _Handler.lfs_verify),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
