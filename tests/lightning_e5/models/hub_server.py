"""A model hub on the loopback interface: the few requests of its protocol that fetching a repository needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(repositories: dict[str, Path], *, cut: str | None = None) -> Iterator[str]:
    """Serve folders as repositories; the value is the address for ``HF_ENDPOINT``.

    Args:
        repositories: ``OWNER/NAME`` (of a data set ``datasets/OWNER/NAME``) -> folder.
        cut: a file that is sent only by half before the connection is closed.
    """

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0].lstrip("/")
            for name, folder in repositories.items():
                api = f"api/{name}" if name.startswith("datasets/") else f"api/models/{name}"
                if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
                    listing = {"id": name.removeprefix("datasets/"), "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                    return self.send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
                if path == f"{api}/tree/{COMMIT}" or path.startswith(f"{api}/tree/{COMMIT}/"):
                    below = folder / unquote(path[len(f"{api}/tree/{COMMIT}") :].lstrip("/"))
                    wanted = below.rglob("*") if "recursive=true" in self.path.lower() else below.glob("*")
                    if below != folder and not below.is_dir():
                        return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                    tree = [self.entry(p, p.relative_to(folder).as_posix()) for p in sorted(wanted)]
                    return self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
                for revision in ("main", COMMIT):
                    prefix = f"{name}/resolve/{revision}/"
                    if path.startswith(prefix) and (folder / path[len(prefix) :]).is_file():
                        content = (folder / path[len(prefix) :]).read_bytes()
                        facts = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                        wanted_bytes = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                        if wanted_bytes is not None:
                            first, last = map(int, wanted_bytes.groups())
                            facts["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                            return self.send(206, content[first : last + 1], facts, body)
                        return self.send(200, content, facts, body, half=path.endswith(cut or "\0"))
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body)

        def entry(self, path: Path, name: str) -> dict[str, Any]:
            if path.is_dir():
                return {"type": "directory", "path": name, "oid": "0" * 40}
            return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}

        def send(self, status: int, content: bytes, headers: dict[str, str], body: bool, half: bool = False) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body and half:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub(repositories: dict[str, Path], cache: Path) -> Iterator[str]:
    """`hub_server`, to which the Hub's client and `datasets` of this process are connected; what is fetched is kept in ``cache``."""
    import datasets.config
    from huggingface_hub import HfFileSystem, close_session, constants

    with pytest.MonkeyPatch.context() as patch, hub_server(repositories) as endpoint:
        for module, name, value in (
            (constants, "ENDPOINT", endpoint),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"),
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_CACHE", str(cache)),
            (datasets.config, "HF_ENDPOINT", endpoint),
            (datasets.config, "HF_HUB_OFFLINE", False),
        ):
            patch.setattr(module, name, value)
        # For processes that begin meanwhile.
        for key, text in {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": str(cache), "no_proxy": "*"}.items():
            patch.setenv(key, text)
        close_session()  # it has read the environment
        HfFileSystem.clear_instance_cache()
        try:
            yield endpoint
        finally:
            close_session()
            HfFileSystem.clear_instance_cache()
