"""Damaged texts are found: a wrong encoding, HTML, accents apart; and good texts in any script are not."""

from pathlib import Path

import pytest
from PIL import Image

from spanbox.data.audit import audit
from spanbox.data.audit.texts import find_odd_text
from spanbox.data.manifest import Entity, Record, write_manifest

ENCODING, HTML, ACCENTS = "text in a wrong encoding", "HTML in a text", "accents apart from their letters"


def kinds(text: str) -> list[str]:
    return [kind for kind, _ in find_odd_text(text)]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["Café Müller", "François", "don’t", "25°C", "“both”", "北方", "猫狗", "😀 hi", "Привет"]
)
def test_utf8_that_was_read_in_a_western_encoding(text: str, encoding: str) -> None:
    misread = "".join(
        bytes([byte]).decode(encoding) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )
    assert kinds(misread) == [ENCODING]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Привет, мир", "cp1251"), ("北京的猫", "gbk"), ("一只猫在垫子上", "gbk"), ("\ufffd\ufffd", "gbk")],
)
def test_utf8_that_was_read_in_the_encoding_of_another_script(text: str, encoding: str) -> None:
    assert kinds(text.encode().decode(encoding, errors="replace")) == [ENCODING]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Собака на улице".encode("cp1251").decode("latin-1"), "Собака"),
        (r"caf\u00e9", "é"),
        (r"\u4e00\u53ea\u732b and a dog", "一只猫"),
        (r"\ud83d\ude00", "😀"),
    ],
)
def test_cyrillic_that_was_read_as_western_and_escapes_of_json(text: str, right: str) -> None:
    ((kind, detail),) = find_odd_text(text)
    assert kind == ENCODING
    assert detail.endswith(f"was probably {right!r}")


@pytest.mark.parametrize("text", ["????????", "???? ?? ???? 2024", "???????，", "2024 ???? ?? ????"])
def test_characters_that_an_encoding_does_not_have(text: str) -> None:
    assert kinds(text) == [ENCODING]


@pytest.mark.parametrize(
    "text",
    [
        "What??? No way!!!",
        "???",
        "Why?????",
        "Quoi ?!?!?!?!",
        "是吗????",
        "ööööööh, ÄÄÄÄÄÄH! une fée créée",
        r"the folder C:\users\me",
        "„Gruß“ und «CAFÉ»… Spaß…",
        "NÃO É “AMANHÃ” – “É”",
        "Größe 25°C, naïve façade, señor ¡Olé! ½ ±5 §3 100 µm",
        "Рік і їжак «Ёлка» Привет, мир! Ёж…",
        "一只红色的猫坐在垫子上。联通",
        "日本語のテキスト 한국어 עברית العربية",
        "Å, Ä och Ö – “BLÅ”, voilà» «café»…",
        "Tom & Jerry; R&D; AT&T; x < y > z; I <3 you; &amp ; &nothing;",
        "👩‍🚀 and 🐈",
    ],
)
def test_good_texts(text: str) -> None:
    assert not kinds(text)


@pytest.mark.parametrize(
    "text", ["Tom &amp; Jerry", "it&#39;s", "&#x4e00;", "a&nbsp;cat", "red<br/>", "<!-- a -->", '<a href="x">it</a>']
)
def test_html(text: str) -> None:
    assert kinds(text) == [HTML]


def test_accents_apart_from_their_letters() -> None:
    assert kinds("Cafe\u0301") == [ACCENTS]
    assert not kinds("Café")


def test_the_audit_names_them_and_spans_with_spaces_around_them(tmp_path: Path) -> None:
    texts = ["CafÃ© MÃ¼ller", "Tom &amp; Jerry", "Cafe\u0301 noir", "a cat sleeps"]
    for number in range(len(texts)):
        Image.new("RGB", (40 + number, 30)).save(tmp_path / f"{number}.png")
    records = [Record(str(n), f"{n}.png", text, entities=(Entity(2, 6),) * (n == 3)) for n, text in enumerate(texts)]
    write_manifest(tmp_path / "m.jsonl", records)
    report = audit([tmp_path / "m.jsonl"])
    places = {kind: [(e.line, e.detail) for e in finding.examples] for kind, finding in report.findings.items()}
    assert places == {
        ENCODING: [(1, "text: 'Ã©' was probably 'é'")],
        HTML: [(2, "text: '&amp;' in 'Tom &amp; Jerry'")],
        ACCENTS: [(3, "text: 'Cafe\\u0301 noir'")],
        "span with white space at its edge": [(4, "entities[0]: [2, 6) is 'cat '")],
    }
    assert [finding.kind for finding in report.problems] == [ENCODING]
