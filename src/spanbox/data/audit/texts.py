"""Damaged texts: read in a wrong encoding, with HTML left in them, or with accents apart from their letters.

Such characters change the tokens, hide that two texts are equal, and shift the offsets after them.
"""

import json
import re
from collections.abc import Iterator
from html.entities import html5
from unicodedata import is_normalized

_HTML_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_HTML_TAG = re.compile(
    r"<!--|</[a-z][a-z0-9]*>|<a\s[^<>]*>|<(?:br|div|em|font|h[1-6]|hr|img|li|ol|p|span|strong|table|td|tr|ul)(?:\s[^<>]*)?/?>",
    re.I,
)
_EXCERPT = 60  # characters
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_UTF8 = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})+")
# Windows-1252, and Latin-1 where that has no character; a file is read in either.
_WESTERN = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0xA0) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_ACCENTED = re.compile("[À-ÖØ-öø-ÿ]{5,}")  # of Western languages, no word has so many in a row
_ASKED = re.compile(r"(?<=\w)\s*[?!]+")  # punctuation: `Why?????`
_AFTER_A_WORD = "‘’“”„‚«»‹›…–—"  # they follow a capital with an accent, too: «NÃO É»


def find_odd_text(text: str) -> Iterator[tuple[str, str]]:
    """Signs of damage in a text, as (kind, detail)."""
    if "\ufffd" in text:
        yield "text in a wrong encoding", f"text: lost characters in {text[:_EXCERPT]!r}"
    elif found := _find_misread(text):
        yield "text in a wrong encoding", f"text: {found[0][:_EXCERPT]!r} was probably {found[1][:_EXCERPT]!r}"
    elif _is_lost(text):
        yield "text in a wrong encoding", f"text: question marks for characters in {text[:_EXCERPT]!r}"
    entities = (match for match in _HTML_ENTITY.finditer(text) if match[0][1] == "#" or match[0][1:] in html5)
    if html := next(entities, None) or _HTML_TAG.search(text):
        yield "HTML in a text", f"text: {html[0]!r} in {text[:_EXCERPT]!r}"
    if not is_normalized("NFC", text):
        yield "accents apart from their letters", f"text: {text[:_EXCERPT]!a}"


def _find_misread(text: str) -> tuple[str, str] | None:
    """A part of a text that is UTF-8 read as Windows-1252, Windows-1251 or GBK, Windows-1251 read as Latin-1, or the
    escapes of a JSON string, and the original text."""
    if escapes := _ESCAPES.search(text):
        return escapes[0], str(json.loads(f'"{escapes[0]}"'))
    for run in _NOT_ASCII.finditer(text):
        if all(character in _WESTERN for character in run[0]):
            content = bytes(_WESTERN[character] for character in run[0])
            for part in _UTF8.finditer(content):
                start, end = run.start() + part.start(), run.start() + part.end()
                right = _decoded(part[0])
                if right and _is_certain(text[start:end], right, text[end : end + 1]):
                    return text[start:end], right
        for encoding in ("cp1251", "gbk"):
            right = _decoded(run[0].encode(encoding, errors="ignore"))
            is_script = min(right, default="") >= ("\u2e80" if encoding == "gbk" else "\u0400")
            if len(right) >= 2 and is_script and right.encode().decode(encoding, errors="ignore") == run[0]:
                return run[0], right
    accented = (match[0] for match in _ACCENTED.finditer(text) if len(set(match[0].lower())) > 2)
    return next(((letters, letters.encode("latin-1").decode("cp1251")) for letters in accented), None)


def _is_lost(text: str) -> bool:
    """Whether most of a text is question marks that follow no word, as of characters that an encoding does not have."""
    visible = "".join(_ASKED.sub("", text).split())
    return visible.count("?") >= max(4, len(visible) / 2)


def _is_certain(wrong: str, right: str, following: str) -> bool:
    """Whether characters of Windows-1252 that form UTF-8 are hardly anything else."""
    if len(right) > 1 or "\u2010" <= right <= "\u2122" or right >= "\U0001f000" or any(map(_is_control, wrong)):
        return True
    may_end_a_word = any(character in _AFTER_A_WORD for character in wrong[1:])
    if "\u3040" <= right <= "\u9fff":
        return not may_end_a_word
    return "Â" <= wrong[0] <= "Å" and (not may_end_a_word or following.isalpha())


def _is_control(character: str) -> bool:
    return "\x80" <= character <= "\x9f"


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""
