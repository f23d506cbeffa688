"""A stand-in for the hub on the loopback: as much of its protocol as the real client needs to load and to push."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_PLACE = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"


class Hub:
    """Repositories in memory, served by a thread.

    Attributes:
        commits: Files by commit: ``{repo: {commit: {name: bytes}}}``.
        refs: Commits by branch or tag: ``{repo: {ref: commit}}``.
        cut: Names of files whose body ends after half of its bytes.
        swapped: Bytes to send instead of a file's own, by name.
        large: Names of files that are no part of a commit's request, as weights are not: they are stored before (LFS).
        stored: Large files by their SHA-256; None where nothing can be stored.
        down: Answer everything with 503.
        asked: Method and path of each request.
    """

    def __init__(self):
        self.commits, self.refs = {}, {}
        self.cut, self.swapped = set(), {}
        self.large, self.stored = set(), {}
        self.down = False
        self.asked = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo, files, ref="main"):
        """Put files on a branch, in a commit of its own."""
        before = self.commits.get(repo, {}).get(self.refs.get(repo, {}).get(ref), {})
        files = {**before, **files}
        told = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, sort_keys=True)
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[ref] = commit
        return commit

    def commit_folder(self, repo, folder, ref="main"):
        return self.commit(repo, {p.name: p.read_bytes() for p in folder.iterdir()}, ref)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._dispatch("HEAD")

    def do_GET(self):
        self._dispatch("GET")

    def do_POST(self):
        self._dispatch("POST")

    def do_PUT(self):
        self._dispatch("PUT")

    def _dispatch(self, method):
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks() if "Transfer-Encoding" in self.headers else b""
        hub.asked.append((method, path))
        if hub.down:
            return self._send(503, b"down")
        for verb, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == ("GET" if method == "HEAD" else method) and found:
                return action(self, body, **found.groupdict())
        return self._send(404, b"{}")

    def _chunks(self):
        whole = b""
        while size := int(self.rfile.readline().strip(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _send(self, status, body, send=None, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if send is None else send)
            if send is not None:
                self.close_connection = True

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, code):
        self._send(404, b"{}", X_Error_Code=code, X_Error_Message=code)

    def _commit(self, repo, revision):
        """The commit that a revision names; None, and the refusal sent, if there is none."""
        if repo not in self.hub.commits:
            return self._refuse("RepoNotFound")
        commit = self.hub.refs[repo].get(revision, revision)
        if commit not in self.hub.commits[repo]:
            return self._refuse("RevisionNotFound")
        return commit

    def info(self, body, repo, revision="main"):
        if commit := self._commit(repo, revision):
            names = [{"rfilename": name} for name in self.hub.commits[repo][commit]]
            self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": names})

    def tree(self, body, repo, revision):
        if commit := self._commit(repo, revision):
            files = self.hub.commits[repo][commit].items()
            self._json(
                [{"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()} for k, v in files]
            )

    def resolve(self, body, repo, revision, file):
        commit = self._commit(repo, revision)
        if commit is None:
            return
        data = self.hub.commits[repo][commit].get(file)
        if data is None:
            return self._refuse("EntryNotFound")
        told = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        data = self.hub.swapped.get(file, data)
        start = int(re.match(r"bytes=(\d+)", self.headers.get("Range", "bytes=0"))[1])
        if start:
            told["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        half = data[start : len(data) // 2] if file in self.hub.cut else None
        self._send(206 if start else 200, data[start:], half, **told)

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if repo not in self.hub.commits:
            self.hub.commit(repo, {})
        self._json({"url": f"{self.hub.address}/{repo}"})

    def preupload(self, body, repo, revision):
        files = json.loads(body)["files"]
        modes = {f["path"]: "lfs" if f["path"] in self.hub.large else "regular" for f in files}
        self._json({"files": [{"path": k, "uploadMode": mode, "shouldIgnore": False} for k, mode in modes.items()]})

    def batch(self, body, repo):
        objects = json.loads(body)["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": f"{self.hub.address}/store/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        if self.hub.stored is None or hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, b"{}")
        self.hub.stored[oid] = body
        self._json({})

    def push(self, body, repo, revision):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        files = {name: base64.b64decode(content) for name, content in files.items()}
        large = [line["value"] for line in lines if line["key"] == "lfsFile"]
        files |= {file["path"]: self.hub.stored[file["oid"]] for file in large}
        commit = self.hub.commit(repo, files, revision)
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{commit}", "commitOid": commit})

    def validate(self, body):
        self._json({"errors": [], "warnings": []})


_ROUTES = (
    ("GET", rf"/api/models/{_PLACE}/tree/{_REVISION}/?", _Handler.tree),
    ("GET", rf"/api/models/{_PLACE}/revision/{_REVISION}", _Handler.info),
    ("GET", rf"/api/models/{_PLACE}", _Handler.info),
    ("GET", rf"/{_PLACE}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_PLACE}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/api/models/{_PLACE}/commit/{_REVISION}", _Handler.push),
    ("POST", rf"/{_PLACE}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/store/(?P<oid>[0-9a-f]{64})", _Handler.store),
)
