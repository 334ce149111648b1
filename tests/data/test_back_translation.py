"""Paraphrases by translation: entities, what is left out, and what stays when a translator fails."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pairs import entity
from spanbox.data.audit import audit
from spanbox.data.back_translation import BackTranslation
from spanbox.data.manifest import Manifest, Record, write_manifest
from spanbox.data.paraphrases import Paraphrase
from spanbox.errors import DataError, OutputError

TEXT = "the cat is left of the dog"
ZH = "猫在狗的左边"


@dataclass
class Fake:
    """A translator that counts what it is asked for."""

    function: Callable[[str], Any]
    name: str = "fake"
    key: str = "fake"
    seen: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def translate(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        self.batches.append(len(texts))
        return [self.function(text) for text in texts]


def turned(text: str) -> str:
    """The words backwards: markers come out in another order."""
    return " ".join(reversed(text.split()))


def pair(number: int = 0, text: str = TEXT, *names: str) -> Record:
    return Record(
        f"p{number}",
        f"images/{number}.png",
        text,
        entities=tuple(entity(text, name) for name in names or ("dog", "cat")),
    )


def manifest(folder: Path, *records: Record) -> Path:
    write_manifest(folder / "in.jsonl", records)
    return folder / "in.jsonl"


def paraphrased(
    path: Path, *translators: Fake, out: Path | None = None, **options: Any
) -> tuple[BackTranslation, Manifest]:
    out = out or path.with_name("out.jsonl")
    work = BackTranslation(path, out, translators, **options)
    work.run()
    return work, Manifest(out)


def test_entities_come_back_with_their_spans(tmp_path: Path) -> None:
    work, out = paraphrased(manifest(tmp_path, pair(), pair(1, ZH, "猫", "狗")), Fake(turned))
    assert work.counts == {"for both levels": 1, "left out: the same as its text or another paraphrase": 1}
    (paraphrase,) = out[0].paraphrases
    assert paraphrase.text == "dog the of left is cat the"
    assert paraphrase.source == "fake"
    other = out[0].paraphrased(paraphrase)
    assert [other.span_text(found) for found in other.entities] == ["dog", "cat"]
    assert out[1] == pair(1, ZH, "猫", "狗")
    assert audit([out.path], decode=False).findings.keys() == {"missing image"}


def test_several_translators_and_earlier_paraphrases(tmp_path: Path) -> None:
    first = Record("a", "a.png", "one two", paraphrases=(Paraphrase("eins zwei", lang="de"), Paraphrase("two one")))
    translators = Fake(turned), Fake(str.upper, "upper", "upper"), Fake(str.upper, "again", "again")
    work, out = paraphrased(manifest(tmp_path, first), *translators)
    assert out[0].paraphrases == (*first.paraphrases, Paraphrase("ONE TWO", source="upper"))
    assert work.counts == {"for both levels": 1, "left out: the same as its text or another paraphrase": 2}


class TestLostEntities:
    def lose(self, text: str) -> str:
        return text.replace("X2", "it").upper()

    def test_the_coarse_level_only(self, tmp_path: Path) -> None:
        translator = Fake(self.lose)
        work, out = paraphrased(manifest(tmp_path, pair()), translator)
        assert translator.seen == ["the X1 is left of the X2", TEXT]  # again, without markers
        assert out[0].paraphrases == (Paraphrase(TEXT.upper(), source="fake"),)
        assert work.counts == {"for the coarse level only": 1}

    def test_dropped(self, tmp_path: Path) -> None:
        translator = Fake(self.lose)
        work, out = paraphrased(manifest(tmp_path, pair()), translator, lost="drop")
        assert translator.seen == ["the X1 is left of the X2"]
        assert out[0] == pair()
        assert work.counts == {"left out: an entity was lost": 1}


def test_what_is_left_out(tmp_path: Path) -> None:
    answers = {"one": "", "two": None, "three": "x" * 200, "four": "four", "five": "  fünf ", "six": "   "}
    records = [Record(text, f"{text}.png", text) for text in answers]
    work, out = paraphrased(manifest(tmp_path, *records), Fake(answers.get))
    assert work.counts == {
        "left out: no translation": 3,
        "left out: much longer than its text": 1,
        "left out: the same as its text or another paraphrase": 1,
        "for both levels": 1,
    }
    assert [record.paraphrases for record in out if record.paraphrases] == [(Paraphrase("fünf", source="fake"),)]


@pytest.mark.parametrize("text", ["a", "猫", "🐈", ".", "1"])
def test_texts_of_one_character(tmp_path: Path, text: str) -> None:
    work, out = paraphrased(manifest(tmp_path, pair(0, text, text), Record("b", "b.png", "word")), Fake(turned))
    assert out[0].paraphrases == ()
    assert work.translated == 1


def test_half_an_emoji_becomes_a_question_mark(tmp_path: Path) -> None:
    """As models of bytes give them: UTF-8 cannot hold it."""
    path = manifest(tmp_path, Record("a", "a.png", "two dogs"))
    for _ in ("translated", "from the cache"):
        _, out = paraphrased(path, Fake(lambda text: "dogs \ud83d"))
        assert [paraphrase.text for paraphrase in out[0].paraphrases] == ["dogs ?"]


def test_equal_texts_are_translated_once(tmp_path: Path) -> None:
    translator = Fake(turned)
    _, out = paraphrased(manifest(tmp_path, pair(0), pair(1), pair(2)), translator)
    assert len(translator.seen) == 1
    assert [len(record.paraphrases) for record in out] == [1, 1, 1]


def test_batches_are_of_similar_length(tmp_path: Path) -> None:
    texts = ["word " * count + "end" for count in (5, 1, 4, 2, 3)]
    translator = Fake(turned)
    paraphrased(
        manifest(tmp_path, *(Record(str(i), "a.png", text) for i, text in enumerate(texts))), translator, batch_size=2
    )
    assert translator.batches == [2, 2, 1]
    assert translator.seen == sorted(texts, key=len)


def test_image_paths_stay_right_in_another_folder(tmp_path: Path) -> None:
    _, out = paraphrased(manifest(tmp_path, pair()), Fake(turned), out=tmp_path / "new" / "out.jsonl")
    assert out[0].image == "../images/0.png"
    assert out[0].group == "images/0.png"  # as it was by default
    assert out.image_path(out[0]).resolve() == (tmp_path / "images" / "0.png").resolve()


class TestFailures:
    def records(self) -> list[Record]:
        return [Record(str(i), "a.png", f"text number {i:03}") for i in range(40)]

    @pytest.mark.parametrize("fault", ["raises", "nothing", "none", "too few", "no texts"])
    def test_in_the_middle_and_what_is_done_stays(self, tmp_path: Path, fault: str) -> None:
        path = manifest(tmp_path, *self.records())
        translator = Fake(turned)
        calls = 0

        def translate(texts: Sequence[str]) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                if fault == "raises":
                    raise ValueError("the service is down")
                faults = {"nothing": None, "none": 7, "too few": ["one"], "no texts": [1] * len(texts)}
                return faults[fault]
            return Fake.translate(translator, texts)

        translator.translate = translate  # type: ignore[method-assign]
        with pytest.raises(DataError) as raised:
            paraphrased(path, translator, batch_size=8)
        message = str(raised.value)
        assert "16 translations are kept in" in message
        assert "the same command goes on from there" in message
        expected = {
            "raises": "fake failed with ValueError: the service is down at a batch of 8 texts, one of them of",
            "nothing": "fake gave NoneType for",
            "none": "fake gave int for",
            "too few": "fake gave 1 texts for a batch of 8 texts",
            "no texts": "fake gave a list with int; expected texts",
        }
        assert expected[fault] in message
        assert not (tmp_path / "out.jsonl").exists()
        work, out = paraphrased(path, translator, batch_size=8)
        assert work.translated == 24
        assert sorted(translator.seen) == sorted(record.text for record in self.records())
        assert all(len(record.paraphrases) == 1 for record in out)

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"fake: gave no translation of any text; .*out\.jsonl is not written"):
            paraphrased(manifest(tmp_path, *self.records()), Fake(lambda text: None))
        assert not (tmp_path / "out.jsonl").exists()

    def test_another_translator_does_not_use_the_cache(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, *self.records())
        paraphrased(path, Fake(turned))
        other = Fake(str.upper, key="other")
        _, out = paraphrased(path, other)
        assert len(other.seen) == 40
        assert out[0].paraphrases[0].text == "TEXT NUMBER 000"

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-9], lambda b: b + b'{"key":"zz"}\n\xff\n[[[', lambda b: b"\0\n" + b]
    )
    def test_a_damaged_cache_is_read_as_far_as_it_goes(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        path = manifest(tmp_path, *self.records())
        work, whole = paraphrased(path, Fake(turned))
        expected = list(whole)
        work.cache.path.write_bytes(damage(work.cache.path.read_bytes()))
        translator = Fake(turned)
        _, again = paraphrased(path, translator)
        assert len(translator.seen) <= 1
        assert list(again) == expected

    def test_a_wrong_manifest_is_refused_before_any_translation(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, *self.records())
        path.write_text(path.read_text() + "{}\n")
        with pytest.raises(DataError, match=r"in\.jsonl, line 41: "):
            BackTranslation(path, tmp_path / "out.jsonl", [Fake(turned)])

    def test_output_that_cannot_be_written_is_refused_before_any_translation(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, *self.records())
        (tmp_path / "out.jsonl").mkdir()
        with pytest.raises(OutputError):
            BackTranslation(path, tmp_path / "out.jsonl", [Fake(turned)])
        with pytest.raises(OutputError, match=r"is not a \.jsonl file"):
            BackTranslation(path, Path(__file__), [Fake(turned)])


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = manifest(tmp_path, *(Record(str(i), "a.png", f"text number {i:03}") for i in range(40)))
    script = f"""
        import os, signal
        from pathlib import Path
        from spanbox.data.back_translation import BackTranslation
        class Translator:
            name = key = "fake"
            done = 0
            def translate(self, texts):
                if self.done == 24:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.done += len(texts)
                return [" ".join(reversed(text.split())) for text in texts]
        BackTranslation(Path({str(path)!r}), Path({str(tmp_path / "out.jsonl")!r}), [Translator()], batch_size=8).run()
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()
    cache = tmp_path / "out.jsonl.translations"
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 24
    translator = Fake(turned)
    _, out = paraphrased(path, translator, batch_size=8)
    assert len(translator.seen) == 16
    assert [record.paraphrases[0].text for record in out] == [turned(record.text) for record in Manifest(path)]


def test_the_manifest_itself_is_not_replaced(tmp_path: Path) -> None:
    path = manifest(tmp_path, pair())
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is read by this command"):
        BackTranslation(path, tmp_path / "." / "in.jsonl", [Fake(turned)])
    assert path.read_bytes() == before
