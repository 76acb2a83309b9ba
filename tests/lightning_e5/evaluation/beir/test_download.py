"""Downloads from a local server that cuts, lies and sends bombs: nothing with the final name remains, a retry succeeds."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir import download as beir_download
from lightning_e5.evaluation.beir.collection import load_collection
from lightning_e5.evaluation.beir.download import download_beir
from lightning_e5.evaluation.beir.sets import BEIR_SETS, beir_set, mean_of_forums


def archive(members, *, link=None, compress=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as out:
        for name, text in members:
            out.writestr(name, text)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            out.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def collection(folder, split="test", text="a text"):
    return [
        (f"{folder}/corpus.jsonl", json.dumps({"_id": "d1", "title": "Title", "text": text}) + "\n"),
        (f"{folder}/queries.jsonl", json.dumps({"_id": "q1", "text": "a query"}) + "\n"),
        (f"{folder}/qrels/{split}.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n"),
    ]


GOOD = archive(collection("scifact"), compress=zipfile.ZIP_STORED)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        mode, body = server.modes.pop(0) if server.modes else "good", server.body
        if mode == "404":
            page = b"<html>not here</html>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        if mode == "html":
            body = b"<html>please log in</html>"
        first = 0
        asked = self.headers.get("Range")
        if asked and mode != "no ranges":
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if mode == "html" else "application/zip")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first:][: len(body) // 2 if mode == "cut" else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.body, found.modes, found.ranges = GOOD, [], []
        found.address = f"http://127.0.0.1:{found.server_port}/scifact.zip"
        thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def get(server, folder, name="scifact", md5="of the body"):
    md5 = hashlib.md5(server.body).hexdigest() if md5 == "of the body" else md5
    return download_beir(folder, name, address=server.address, md5=md5, timeout_s=5)


def load_beir_set(folder, name):
    """The set's collections by its own rules: one, or one per forum."""
    found = load_collection(folder / name, name, rules=beir_set(name))
    return [*found.forums.values()] or [found.data]


def test_a_whole_download_loads_and_is_not_fetched_twice(server, tmp_path):
    get(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["scifact"]
    (data,) = load_beir_set(tmp_path, "scifact")
    assert data.corpus == {"d1": "Title a text"}
    assert data.split == "test"
    get(server, tmp_path)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("second", ["good", "no ranges"])
def test_a_connection_cut_at_half_is_gone_on_with(server, tmp_path, second):
    server.modes = ["cut", second]
    with pytest.raises(UserError, match=rf"after {len(GOOD) // 2:,} of {len(GOOD):,} bytes; call again"):
        get(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".scifact.zip.part"]
    get(server, tmp_path)
    assert server.ranges == [None, f"bytes={len(GOOD) // 2}-"]
    assert load_beir_set(tmp_path, "scifact")[0].qrels == {"q1": {"d1": 1}}


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / ".scifact.zip.part").write_bytes(GOOD)
    get(server, tmp_path)
    assert load_beir_set(tmp_path, "scifact")


@pytest.mark.parametrize(
    ("mode", "message"), [("404", "the server answered 404"), ("html", "a page of HTML"), ("wrong", "the archive's md5 is")]
)
def test_what_is_not_the_archive_leaves_nothing_and_a_retry_succeeds(server, tmp_path, mode, message):
    server.modes = [mode]
    with pytest.raises(UserError, match=message):
        get(server, tmp_path, md5="0" * 32 if mode == "wrong" else "of the body")
    assert list(tmp_path.iterdir()) == []
    get(server, tmp_path)
    assert load_beir_set(tmp_path, "scifact")


def test_a_part_of_another_archive_is_found_out_by_the_checksum(server, tmp_path):
    (tmp_path / ".scifact.zip.part").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="the archive's md5 is"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    get(server, tmp_path)


DEFLATED = archive(collection("scifact", text=" ".join(map(str, range(2000)))))
BOMB = "0" * (3 << 20)
BAD = {
    "dots": (archive([*collection("scifact"), ("scifact/../../evil.txt", "x")]), "could write outside"),
    "dots first": (archive([("../evil.txt", "x")]), "could write outside"),
    "absolute": (archive([("/tmp/evil.txt", "x")]), "could write outside"),
    "backslash": (archive([("scifact\\..\\..\\evil.txt", "x")]), "could write outside"),
    "drive": (archive([("c:/evil.txt", "x")]), "could write outside"),
    "link": (archive(collection("scifact"), link="scifact/link"), "is a link"),
    "bomb": (archive([*collection("scifact"), ("scifact/big.txt", BOMB)]), "which is no text"),
    "other folder": (archive(collection("fiqa")), "does not lie in the folder 'scifact'"),
    "manifest": (archive([("scifact/manifest.json", "{}")]), "not allowed"),
    "empty": (archive([]), "has no files"),
    "no zip": (b"PK but no more", "not a readable zip"),
    "damaged": (GOOD.replace(b"a text", b"b text"), "not a readable zip"),
    "damaged deflate": (DEFLATED.replace(DEFLATED[200:230], b"\xff" * 30), "not a readable zip"),
    "file and folder": (archive([*collection("scifact"), ("scifact/qrels", "x")]), "'qrels' is a file and a folder at once"),
    "folder and file": (archive([("scifact/a/b/c", "x"), ("scifact/a", "x")]), "'a' is a file and a folder at once"),
    "long name": (archive([*collection("scifact"), (f"scifact/{'n' * 300}", "x")]), "has a name that no file can have"),
    "not utf-8": (archive([("scifact/ü", "x")]).replace("ü".encode(), b"\xff\xff"), "not a readable zip"),
    "no name": (archive([("/", "")]), "could write outside"),
    "cut": (GOOD[:-30], "not a readable zip"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_leaves_nothing_and_a_retry_succeeds(server, tmp_path, case):
    server.body, message = BAD[case]
    folder = tmp_path / "inside" / "data"
    with pytest.raises(UserError, match=message):
        get(server, folder)
    assert list(folder.iterdir()) == []
    assert list((tmp_path / "inside").iterdir()) == [folder]
    server.body = GOOD
    get(server, folder)
    assert load_beir_set(folder, "scifact")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(server, tmp_path):
    server.body = archive([*collection("scifact"), *collection("scifact", text="another")])
    with pytest.raises(UserError, match="is there twice"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []



def test_limits_of_bytes_and_files(server, tmp_path, monkeypatch):
    monkeypatch.setattr(beir_download, "MAX_FILES", 2)
    with pytest.raises(UserError, match="3 files of"):
        get(server, tmp_path)
    monkeypatch.setattr(beir_download, "MAX_FILES", 3)
    monkeypatch.setattr(beir_download, "MAX_BYTES", 20)
    with pytest.raises(UserError, match="at most 3 of 20"):
        get(server, tmp_path)


def test_a_member_longer_than_it_says_is_stopped(server, tmp_path):
    name, size = b"scifact/corpus.jsonl", len(collection("scifact")[0][1])
    raw = bytearray(GOOD)
    for signature, offset, header in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
        at = raw.index(name, raw.index(signature)) - header
        assert int.from_bytes(raw[at + offset : at + offset + 4], "little") == size
        raw[at + offset : at + offset + 4] = (5).to_bytes(4, "little")
    server.body = bytes(raw)
    with pytest.raises(UserError):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_published_checksum_the_first_digest_is_kept(server, tmp_path):
    target = get(server, tmp_path, md5=None)
    assert json.loads((tmp_path / "first_digests.json").read_text()) == {server.address: hashlib.sha256(GOOD).hexdigest()}
    for path in sorted(target.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    target.rmdir()
    server.body = archive(collection("scifact", text="changed"))
    with pytest.raises(UserError, match="at the first download it was"):
        get(server, tmp_path, md5=None)
    server.body = GOOD
    get(server, tmp_path, md5=None)
    server.modes, other = ["good"], tmp_path / "other"
    server.body = b"service unavailable"
    with pytest.raises(UserError, match="not a zip archive"):
        get(server, other, md5=None)
    assert list(other.iterdir()) == []


def test_other_schemes_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(GOOD)
    with pytest.raises(UserError, match="not an address of http"):
        download_beir(tmp_path / "data", "scifact", address=(tmp_path / "a.zip").as_uri())


def test_a_server_that_is_not_there(tmp_path, server):
    server.server_close()
    with pytest.raises(UserError, match="the download stopped"):
        get(server, tmp_path)


def test_cqadupstack_is_twelve_collections_and_quora_is_all_queries(server, tmp_path):
    forums = BEIR_SETS["cqadupstack"].forums
    server.body = archive([m for forum in forums for m in collection(f"cqadupstack/{forum}")])
    get(server, tmp_path, "cqadupstack")
    assert [d.name for d in load_beir_set(tmp_path, "cqadupstack")] == [f"cqadupstack/{forum}" for forum in forums]
    server.body = archive(collection("quora"))
    get(server, tmp_path, "quora")
    assert load_beir_set(tmp_path, "quora")[0].corpus == {"d1": "a text"}  # without its title
    quora, forums_together = (load_collection(tmp_path / name, name, rules=beir_set(name)) for name in ("quora", "cqadupstack"))
    other = load_collection(tmp_path / "quora", "quora", rules="none")
    assert (quora.passage_kind, quora.queries_are_documents, other.passage_kind) == ("query", True, "passage")
    assert (forums_together.passage_kind, len(forums_together.forums)) == ("passage", 12)
    server.body = archive(collection("msmarco", split="dev"))
    get(server, tmp_path, "msmarco")
    assert load_beir_set(tmp_path, "msmarco")[0].split == "dev"
    assert mean_of_forums([{"ndcg@10": 0.5}, {"ndcg@10": 0.25}]) == {"ndcg@10": 0.375}


def test_the_table():
    assert len(BEIR_SETS) == 15
    assert all(len(s.md5) == 32 and set(s.md5) <= set("0123456789abcdef") for s in BEIR_SETS.values())
    assert len({s.md5 for s in BEIR_SETS.values()}) == 15
    assert [s.name for s in BEIR_SETS.values() if s.split != "test"] == ["msmarco"]
    assert len(BEIR_SETS["cqadupstack"].forums) == 12
    assert [s.name for s in BEIR_SETS.values() if s.passage_kind == "query"] == ["quora"]
    assert BEIR_SETS["arguana"].queries_are_documents
    with pytest.raises(UserError, match="did you mean 'scifact'"):
        beir_set("scifakt")
