"""The explorer: what it answers, what it refuses, and its page in headless Chromium."""

import http.client
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import miniature
from browser import CHROMIUM, Browser
from command import HANGS
from spanbox.cli.explore import explore
from spanbox.data.images import load_image
from spanbox.data.manifest import Entity, Manifest, Record, write_manifest
from spanbox.errors import DataError
from spanbox.explore.opening import open_session
from spanbox.explore.server import LARGEST_PICTURE, ExplorerServer
from spanbox.explore.session import LONGEST_TEXT, Session
from spanbox.wiring import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes and two runs on them. One pair has markup in its text, another a script in the name of its image."""
    folder = miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))
    records = list(Manifest(folder / "test.jsonl"))
    named = "images/test/<img src=x onerror=alert(1)>.jpg"
    (folder / records[1].image).rename(folder / named)
    hostile = "<script>document.title = 'taken'</script>"
    records[0] = type(records[0])(id="<b>first</b>", image=records[0].image, text=hostile)
    records[1] = type(records[1])(id="second", image=named, text=records[1].text, entities=records[1].entities)
    write_manifest(folder / "test.jsonl", records)
    for name in ("one", "two"):
        train(miniature.demo_config(folder, folder / name, "train.steps=3", f"seed={len(name)}"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ExplorerServer]:
    with ExplorerServer(open_session([folder / "one", folder / "two"], folder / "test.jsonl", "cpu")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ExplorerServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and answer, as JSON where it is JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=HANGS)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request(
        method, path, content, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    response = connection.getresponse()
    found = response.read()
    connection.close()
    is_json = response.headers["Content-Type"].startswith("application/json")
    return response.status, json.loads(found) if is_json else found


def is_alive(server: ExplorerServer) -> bool:
    return ask(server, "GET", "/api/info")[0] == 200


def picture_bytes(server: ExplorerServer, size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "orange").save(file, "PNG")
    return file.getvalue()


class TestAnswers:
    def test_a_sentence_finds_pairs_by_each_model(self, server: ExplorerServer) -> None:
        session = server.session
        status, found = ask(server, "POST", "/api/search", {"text": "蝴蝶"})
        assert status == 200
        assert [each["name"] for each in found["models"]] == ["one", "two"]
        for answer, searched in zip(found["models"], session.models, strict=True):
            images = [session.manifest.image_path(record) for record in session.manifest]
            scores = searched.model.similarity(
                searched.model.encode_texts("蝴蝶"), searched.model.encode_images(images)
            )[0]
            expected = sorted(range(len(images)), key=lambda row, of=scores: -float(of[row]))
            assert [hit["pair"] for hit in answer["hits"]] == expected
            assert answer["hits"][0]["score"] == pytest.approx(float(max(scores)), abs=1e-5)

    def test_scores_that_are_no_numbers_are_null_and_stand_last(
        self, server: ExplorerServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        searched = server.session.models[0]
        image = searched.bank.image.clone()
        image[0] = float("nan")
        monkeypatch.setattr(server.session, "models", [replace(searched, bank=replace(searched.bank, image=image))])
        hits = ask(server, "POST", "/api/search", {"text": "a red kite"})[1]["models"][0]["hits"]
        assert [hit["pair"] for hit in hits if hit["score"] is None] == [hits[-1]["pair"]] == [0]

    def test_a_model_of_the_coarse_level_alone_gives_words_no_score(self, server: ExplorerServer, folder: Path) -> None:
        """Nor heatmaps: their projections are random."""
        searched = server.session.models[0]
        config = miniature.demo_config(folder, folder / "one", "loss.fine.weight=0")
        coarse = replace(searched, model=replace(searched.model, config=config))
        answer = Session([coarse], server.session.manifest).ground("2", None)
        assert answer["boxes"]
        assert {(unit["heat"], unit["score"], len(unit["scores"])) for unit in answer["models"][0]["units"]} == {
            (None, None, 0)
        }

    def test_words_that_the_model_does_not_know_are_named(self, server: ExplorerServer) -> None:
        for text, unknown in (("a μικρό red kite μικρό", ["μικρό"]), ("a red kite", [])):
            assert ask(server, "POST", "/api/search", {"text": text})[1]["unknown"] == unknown

    def test_a_picture_finds_pairs_and_is_kept(self, server: ExplorerServer) -> None:
        status, found = ask(server, "POST", "/api/search-picture", picture_bytes(server))
        assert status == 200
        assert ask(server, "GET", f"/picture/{found['picture']}")[1][:2] == b"\xff\xd8"
        status, grounded = ask(server, "POST", "/api/ground", {"picture": found["picture"], "text": "a red kite"})
        assert (status, grounded["boxes"]) == (200, [])
        assert [len(model["units"]) for model in grounded["models"]] == [3, 3]
        for unit in grounded["models"][0]["units"]:
            assert len(unit["heat"]) == len(unit["heat"][0]) == 3
            assert all(0 <= edge <= 1 for edge in unit["box"])

    def test_words_and_boxes_of_a_pair(self, server: ExplorerServer) -> None:
        session = server.session
        record = session.manifest[2]
        status, found = ask(server, "POST", "/api/ground", {"picture": "2"})
        assert (status, found["text"]) == (200, record.text)
        entities = [record.text[unit["start"] : unit["end"]] for unit in found["units"] if unit["entity"]]
        assert set(entities) == {record.span_text(entity) for entity in record.entities}
        model = session.models[1].model
        boxes = list(dict.fromkeys([box for each in record.entities for box in each.boxes]))
        image = session.manifest.image_path(record)
        for unit, answer in zip(found["units"], found["models"][1]["units"], strict=True):
            spans = model.encode_spans(record.text, [(unit["start"], unit["end"])])
            expected = model.similarity(spans, model.encode_regions(image, boxes))[0]
            assert answer["scores"][: len(boxes)] == pytest.approx(expected.tolist(), abs=1e-5)
            assert answer["shown"] is (max(answer["scores"]) >= model.threshold)


@pytest.fixture(scope="module")
def odd(server: ExplorerServer, folder: Path) -> Session:
    """Pairs with a long text, no text, a box outside the image, and no image."""
    first = server.session.manifest[2]
    boxes = first.entities[0].boxes
    entity = Entity(0, 4, boxes=((900.0, 900.0, 950.0, 950.0), *boxes))
    records = [
        Record(id="long", image=first.image, text="kite " * 1_000, entities=(Entity(4_000, 4_004),)),
        Record(id="empty", image=first.image, text=""),
        Record(id="outside", image=first.image, text="kite", entities=(entity,)),
        Record(id="gone", image="images/test/gone.jpg", text="kite"),
    ]
    write_manifest(folder / "odd.jsonl", records)
    return Session(server.session.models, Manifest(folder / "odd.jsonl"))


class TestOddPairs:
    def test_a_pair_with_a_long_text_opens(self, odd: Session) -> None:
        found = odd.ground("0", None)
        assert len(found["units"]) == 1_000
        read = [unit is not None for unit in found["models"][0]["units"]]
        assert 10 < sum(read) < 64  # the tokens that are read
        assert read == sorted(read, reverse=True)

    def test_a_pair_without_a_text_opens(self, odd: Session) -> None:
        found = odd.ground("1", None)
        assert (found["text"], found["units"]) == ("", [])

    def test_a_box_outside_the_image_is_left_out(self, odd: Session) -> None:
        found = odd.ground("2", None)
        record = odd.manifest[2]
        width, height = load_image(odd.manifest.image_path(record)).size
        x0, y0, x1, y1 = record.entities[0].boxes[1]
        assert found["boxes"][0]["box"] == pytest.approx((x0 / width, y0 / height, x1 / width, y1 / height))
        assert len(found["boxes"]) == len(record.entities[0].boxes) - 1
        assert len(found["models"][0]["units"][0]["scores"]) == len(found["boxes"])

    def test_an_image_that_is_missing(self, odd: Session) -> None:
        with pytest.raises(DataError, match=r"gone\.jpg: broken image: no such file"):
            odd.ground("3", None)


class TestRefusals:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "evil.example"},
            {"Host": "evil.example:80"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "https://127.0.0.1"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ],
    )
    @pytest.mark.parametrize(("method", "path"), [("GET", "/api/info"), ("POST", "/api/search")])
    def test_other_origins(self, server: ExplorerServer, method: str, path: str, headers: dict[str, str]) -> None:
        body = {"text": "kite"} if method == "POST" else None
        assert ask(server, method, path, body, **headers)[0] == 403
        assert is_alive(server)

    def test_its_own_origin_is_accepted(self, server: ExplorerServer) -> None:
        own = server.url.rstrip("/")
        assert ask(server, "POST", "/api/search", {"text": "kite"}, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200

    @pytest.mark.parametrize(
        "path",
        [
            *("/picture/../../etc/passwd", "/picture/%2e%2e%2fetc%2fpasswd", "/picture/-1", "/picture/99", "/picture/"),
            *("/picture/1e3", "/picture/%D9%A3", "/../pyproject.toml", "/session.py", "//etc/passwd", "/picture/u999"),
            f"/picture/{'9' * 5000}",
        ],
    )
    def test_paths_outside(self, server: ExplorerServer, path: str) -> None:
        status, found = ask(server, "GET", path)
        assert (status, set(found)) == (404, {"error"})

    def test_a_picture_of_200_megabytes_is_refused_unread(self, server: ExplorerServer) -> None:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=HANGS) as connection:
            head = f"POST /api/search-picture HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
            connection.sendall(f"{head}Content-Length: {200 * 2**20}\r\n\r\n".encode() + b"\0" * 1000)
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")
        assert is_alive(server)

    @pytest.mark.parametrize("length", ["", "-1", "ten", "1" * 400, "²"])
    def test_lengths_that_are_none(self, server: ExplorerServer, length: str) -> None:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=HANGS) as connection:
            head = f"POST /api/search-picture HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode("latin-1"))
            assert connection.recv(4096).split()[1] in (b"411", b"413")
        assert is_alive(server)

    @pytest.mark.parametrize("content", [b"", b"\0" * 100, b"GIF89a", b"<svg onload='alert(1)'/>", b"%!PS-Adobe-3.0"])
    def test_what_is_no_picture(self, server: ExplorerServer, content: bytes) -> None:
        status, found = ask(server, "POST", "/api/search-picture", content)
        assert status == 400
        assert "picture" in found["error"] or "image" in found["error"]

    @pytest.mark.parametrize("error", [RuntimeError("no item"), EOFError(), struct.error("short"), SyntaxError("eh")])
    def test_what_decoders_raise(
        self, server: ExplorerServer, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A damaged AVIF raises a RuntimeError as soon as it is opened."""

        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr("PIL.Image.open", fail)
        status, found = ask(server, "POST", "/api/search-picture", b"x")
        assert (status, "no picture that can be read" in found["error"]) == (400, True)

    def test_a_picture_that_unpacks_to_gigabytes(self, server: ExplorerServer) -> None:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        pixels = zlib.compress(b"\0" * 10_000_000, 9)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        assert len(bomb) < LARGEST_PICTURE
        status, found = ask(server, "POST", "/api/search-picture", bomb)
        assert status == 400
        assert "50000 x 50000 pixels" in found["error"] or "no picture" in found["error"]
        assert is_alive(server)

    @pytest.mark.parametrize("length", [LONGEST_TEXT + 1, 100_000])
    def test_texts_that_are_too_long(self, server: ExplorerServer, length: int) -> None:
        for path, body in (("/api/search", {}), ("/api/ground", {"picture": "0"})):
            status, found = ask(server, "POST", path, {**body, "text": "x" * length})
            assert status == (400 if length < 60_000 else 413)
            assert "more than" in found["error"]
        assert is_alive(server)

    def test_an_error_of_its_own_is_answered(
        self, server: ExplorerServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(content: bytes) -> None:
            raise KeyError("oops")

        monkeypatch.setattr(server.session, "search_picture", fail)
        assert ask(server, "POST", "/api/search-picture", b"x") == (500, {"error": "spanbox failed (KeyError)"})
        assert "spanbox explore: KeyError: 'oops'" in capsys.readouterr().err
        assert is_alive(server)

    @pytest.mark.parametrize("text", ["x" * LONGEST_TEXT, "\ud800", "\0", "字" * 500, "<script>"])
    def test_texts_that_are_odd(self, server: ExplorerServer, text: str) -> None:
        status, found = ask(server, "POST", "/api/ground", {"picture": "2", "text": text})
        assert status == 200
        assert len(found["models"]) == 2

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[" * 60_000, b"[]", b"null", b'{"text": 3}', b"{}", b'{"text": "  "}', b"\xff"]
    )
    def test_requests_that_are_none(self, server: ExplorerServer, body: bytes) -> None:
        assert ask(server, "POST", "/api/search", body)[0] == 400
        assert is_alive(server)

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE"])
    def test_other_methods(self, server: ExplorerServer, method: str) -> None:
        assert ask(server, method, "/api/info")[0] == 501

    def test_it_listens_on_the_loopback_interface_alone(self, server: ExplorerServer) -> None:
        assert server.server_address[0] == "127.0.0.1"


PAINTED = """[...document.querySelectorAll("canvas.heat")].map(
  (each) => each.getContext("2d").getImageData(0, 0, each.width, each.height).data.some((value) => value > 0))"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(server: ExplorerServer, tmp_path: Path) -> None:
    picture = tmp_path / "<img src=x onerror=document.title='taken'>.png"
    picture.write_bytes(picture_bytes(server))
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait_for("document.querySelector('#about').textContent.includes('12')")
        # The language.
        browser.evaluate("document.querySelector('[data-language=zh]').click()")
        assert browser.evaluate("document.documentElement.lang") == "zh-CN"
        assert "检索" in browser.evaluate("document.body.innerText")
        browser.evaluate("document.querySelector('[data-language=en]').click()")
        # By the keyboard alone: type, search, go to a result, open it, go to a word.
        browser.evaluate("document.querySelector('#text').focus()")
        browser.type("a red kite")
        browser.press("Enter", "\r")
        browser.wait_for("document.querySelectorAll('.hit').length === 24")
        for _ in range(12):
            browser.press("Tab")
            if browser.evaluate("document.activeElement.className") == "hit":
                break
        assert browser.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Pair")
        browser.press("Enter", "\r")
        browser.wait_for("document.querySelectorAll('#pictures figure').length === 2")
        assert browser.wait_for("document.activeElement.id") == "detail"
        browser.press("Tab")
        assert "unit" in browser.evaluate("document.activeElement.className")
        assert "score" in browser.evaluate("document.querySelector('#spoken').textContent")
        assert browser.evaluate(PAINTED) == [True, True]
        # By the mouse: a box shows its words.
        browser.evaluate("document.activeElement.blur()")
        assert browser.evaluate(PAINTED) == [False, False]
        has_box = "[...document.querySelectorAll('.hit')].findIndex((h) => !h.textContent.includes('<script>'))"
        browser.evaluate(f"document.querySelectorAll('.hit')[{has_box}].click()")
        browser.wait_for("document.querySelectorAll('.box').length > 0")
        browser.wait_for("!document.body.hasAttribute('aria-busy')")
        browser.point_at(".box")
        browser.wait_for("document.querySelector('#spoken').textContent.startsWith('Box 1')")
        browser.point_at(".unit.entity")
        browser.wait_for("document.querySelectorAll('.box b:not(:empty)').length > 0")
        # A picture, with a script for a name.
        browser.choose_file("#file", picture)
        browser.wait_for("document.querySelector('#pictures img')?.src.includes('picture/u')")
        browser.wait_for("document.querySelector('#pictures img').naturalWidth > 0")
        # The same picture can be chosen again: the field is empty when it asks for a file.
        assert browser.evaluate("document.querySelector('#file').value") != ""
        browser.evaluate("document.querySelector('#file').dispatchEvent(new Event('click'))")
        assert browser.evaluate("document.querySelector('#file').value") == ""
        # Another picture, dragged over the page and dropped.
        other = tmp_path / "图片.png"
        other.write_bytes(picture_bytes(server, (48, 64)))
        address = browser.evaluate("document.querySelector('#pictures img').src")
        browser.drag_file("main", other, drop=False)
        browser.wait_for("document.querySelector('#drop').classList.contains('over')")
        browser.drag_file("main", other, drop=True)
        browser.wait_for("!document.querySelector('#drop').classList.contains('over')")
        browser.wait_for(f"document.querySelector('#pictures img').src !== {address!r}")
        browser.wait_for("document.querySelector('#pictures img').naturalWidth === 48")
        assert browser.evaluate("location.href") == server.url  # a browser by itself would open the file
        # A phone.
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth <= 390")
        # Markup in data stays text; nothing was asked of another server; nothing failed.
        assert browser.evaluate("document.title") == "spanbox explore"
        assert browser.evaluate("document.querySelectorAll('main script, main b b').length") == 0
        assert all(url.startswith((server.url, "data:", "about:")) for url in browser.requests)
        assert browser.console == []
        # A file that is no picture.
        notes = tmp_path / "notes.txt"
        notes.write_text("no picture")
        browser.drag_file("main", notes, drop=True)
        browser.wait_for("document.querySelector('#status.error')?.textContent")
        # What the server refuses is said in the language of the page.
        browser.evaluate("setLanguage('zh')")
        browser.drag_file("main", notes, drop=True)
        browser.wait_for("document.querySelector('#status.error')?.textContent.includes('不是可以读取的图片')")
        browser.evaluate("searchText('  ')")
        browser.wait_for("document.querySelector('#status.error')?.textContent.includes('文本为空')")
        browser.evaluate("openPicture('u999')")
        browser.wait_for("document.querySelector('#status.error')?.textContent.includes('不再保留')")


def test_ctrl_c_ends_the_command_without_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: ExplorerServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExplorerServer, "serve_forever", interrupted)
    explore([folder / "one"], folder / "test.jsonl", port=0, device="cpu")
    assert capsys.readouterr().out.endswith("in a browser; Ctrl-C ends it\n")
