"""Synonyms from files of each kind, and where they are found in texts."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanbox.data.synonym_files import load_synonyms, read_multilingual, read_table, read_wordnet
from spanbox.data.synonyms import Synonyms
from spanbox.errors import DataError

LICENCE = "  1 This software and database is being provided to you\n"
# wndb(5WN): offset, file, type, number of words (hexadecimal), words with their ids, number of pointers, ...
DATA = {
    "noun": [
        "00000001 05 n 02 dog 0 domestic_dog 0 001 @ 00000004 n 0000 | a member of the genus Canis  ",
        "00000002 18 n 02 chap 0 dog 1 000 | informal term for a man  ",
        "00000003 06 n 03 sofa 0 couch 0 lounge 1 000 | an upholstered seat  ",
        "00000004 06 n 02 lounge 0 waiting_room 0 000 | a room  ",
        "00000005 15 n 02 Paris 0 City_of_Light 0 000 | the capital of France  ",
        "00000006 06 n 02 t-shirt 0 tee_shirt 0 000 | a close-fitting pullover  ",
        "00000007 06 n 02 file 0 data_file 0 000 | a set of records  ",
    ],
    "verb": ["00000001 38 v 02 chase 0 dog 0 000 01 + 08 00 | go after  ", "00000002 38 v 01 file 0 000 00 | march  "],
    "adj": ["00000001 00 a 02 large(a) 0 big 0 000 | above average in size  "],
}
INDEX = {
    "noun": [
        "city_of_light n 1 0 1 0 00000005  ",
        "chap n 1 0 1 0 00000002  ",
        "couch n 1 1 @ 1 1 00000003  ",
        "data_file n 1 0 1 0 00000007  ",
        "dog n 2 1 @ 2 1 00000001 00000002  ",
        "domestic_dog n 1 0 1 0 00000001  ",
        "file n 1 0 1 0 00000007  ",
        "lounge n 2 0 2 1 00000004 00000003  ",
        "paris n 1 0 1 0 00000005  ",
        "sofa n 1 0 1 1 00000003  ",
        "t-shirt n 1 0 1 0 00000006  ",
        "tee_shirt n 1 0 1 0 00000006  ",
        "waiting_room n 1 0 1 0 00000004  ",
    ],
    "verb": ["chase v 1 0 1 1 00000001  ", "dog v 1 0 1 1 00000001  ", "file v 1 0 1 0 00000002  "],
    "adj": ["big a 1 0 1 1 00000001  ", "large a 1 0 1 1 00000001  "],
}
COUNTS = [
    "big%3:00:00:: 1 20",
    "dog%1:05:00:: 1 42",
    "dog%2:38:00:: 1 2",
    "large%3:00:00:: 1 40",
    "lounge%1:06:00:: 1 3",
    "sofa%1:06:00:: 1 4",
]


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    for pos in DATA:
        (tmp_path / f"data.{pos}").write_text(LICENCE + "\n".join(DATA[pos]) + "\n")
        (tmp_path / f"index.{pos}").write_text(LICENCE + "\n".join(INDEX[pos]) + "\n")
    (tmp_path / "cntlist.rev").write_text("\n".join(COUNTS) + "\n")
    return tmp_path


class TestWordNet:
    def test_words_of_one_certain_sense(self, wordnet: Path) -> None:
        assert read_wordnet(wordnet) == {
            "dog": ("domestic dog",),  # 42 of 44 counted uses, of nouns and verbs
            "domestic dog": ("dog",),
            "sofa": ("couch",),  # lounge is most often a room
            "couch": ("sofa",),
            "waiting room": ("lounge",),
            "lounge": ("waiting room",),
            "t-shirt": ("tee shirt",),
            "tee shirt": ("t-shirt",),
            "big": ("large",),
            "large": ("big",),
        }

    def test_without_counts_only_words_of_one_sense(self, wordnet: Path) -> None:
        (wordnet / "cntlist.rev").unlink()
        table = read_wordnet(wordnet)
        assert not {"dog", "domestic dog", "lounge", "waiting room"} & set(table)
        assert table["sofa"] == ("couch",)

    def test_a_word_of_two_parts_of_speech_without_counts_is_left_alone(self, wordnet: Path) -> None:
        assert "file" not in read_wordnet(wordnet)

    def test_names_are_left_out(self, wordnet: Path) -> None:
        assert not {"paris", "Paris", "city of light"} & set(read_wordnet(wordnet))

    def test_of_a_folder(self, wordnet: Path) -> None:
        synonyms = load_synonyms([str(wordnet)])
        assert [match.synonyms for match in synonyms.find("A large dog", "en")] == [("big",), ("domestic dog",)]
        assert not list(synonyms.find("A large dog", "de"))

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("index.noun", "dog n 2 1 @ 2 1 00000001"),
            ("index.noun", "dog n x"),
            ("data.noun", "00000009 05 n zz dog 0"),
            ("data.noun", "00000009 05 n 03 dog 0 hound 0"),
            ("cntlist.rev", "dog 1"),
            ("cntlist.rev", "dog%9:05:00:: 1 42"),
        ],
    )
    def test_wrong_line(self, wordnet: Path, name: str, line: str) -> None:
        path = wordnet / name
        path.write_text(f"# or a licence\n{line}\n" if name == "cntlist.rev" else f"{LICENCE}{line}\n")
        with pytest.raises(DataError, match=rf"{name}, line 2: '.*' is not a line of WordNet's database; expected"):
            read_wordnet(wordnet)

    def test_missing_index(self, wordnet: Path) -> None:
        (wordnet / "index.noun").unlink()
        with pytest.raises(DataError, match=r"index\.noun: cannot be read as a file of synonyms: No such file"):
            read_wordnet(wordnet)


class TestMultilingual:
    HEADER = "# Chinese Open Wordnet\tcmn\thttp://compling.hss.ntu.edu.sg/cow/\twordnet\n"

    def write(self, folder: Path, *rows: str) -> Path:
        path = folder / "wn-data-cmn.tab"
        path.write_text(self.HEADER + "".join(f"{row}\n" for row in rows), encoding="utf-8")
        return path

    def test_words_that_share_all_senses(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            "00000001-n\tcmn:lemma\t汽车",
            "00000001-n\tcmn:lemma\t轿车",
            "00000001-n\tcmn:def\t一种车",
            "00000002-n\tcmn:lemma\t车",
            "00000001-n\tcmn:lemma\t车",
            "00000003-a\tcmn:lemma\t巨大+的",
            "00000003-a\tcmn:lemma\t庞大+的",
        )
        language, table = read_multilingual(path)
        assert language == "zh"
        assert table == {
            "汽车": ("轿车", "车"),
            "轿车": ("汽车", "车"),
            "巨大的": ("庞大的",),
            "庞大的": ("巨大的",),
        }

    def test_roots_and_broken_plurals_of_arabic_are_no_lemmas(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            "00000001-n\tarb:lemma\tكتاب",
            "00000001-n\tarb:lemma:root\tكتب",
            "00000001-n\tarb:lemma:brokenplural\tكتب",
            "00000001-n\tarb:lemma\tمؤلف",
        )
        assert read_multilingual(path) == ("ar", {"كتاب": ("مؤلف",), "مؤلف": ("كتاب",)})

    def test_without_a_language_in_the_rows_that_of_the_header_counts(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "00000001-n\tlemma\t汽车", "00000001-n\tlemma\t轿车")
        assert read_multilingual(path)[0] == "zh"
        path.write_text("00000001-n\tlemma\t汽车\n00000001-n\tlemma\t轿车\n", encoding="utf-8")
        assert read_multilingual(path)[0] == ""

    @pytest.mark.parametrize(("code", "language"), [("qcn", "zh"), ("als", "sq"), ("pol", "pl"), ("xyz", "xyz")])
    def test_language_of_its_pairs(self, tmp_path: Path, code: str, language: str) -> None:
        path = self.write(tmp_path, f"00000001-n\t{code}:lemma\ta", f"00000001-n\t{code}:lemma\tb")
        assert read_multilingual(path)[0] == language

    def test_of_a_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path, "00000001-n\tcmn:lemma\t汽车", "00000001-n\tcmn:lemma\t轿车")
        matches = list(load_synonyms([str(tmp_path)]).find("红色的汽车停了", "zh"))
        assert matches == [(3, 5, ("轿车",))]

    @pytest.mark.parametrize("row", ["00000001-n\t汽车", "00000001-n\tcmn:lemma\t", "1-n\tcmn:lemma\t车", "汽车"])
    def test_wrong_line(self, tmp_path: Path, row: str) -> None:
        path = self.write(tmp_path, "00000001-n\tcmn:lemma\t汽车", row)
        with pytest.raises(DataError, match=r"line 3: .* is not an entry of the Open Multilingual WordNet"):
            read_multilingual(path)

    def test_two_languages(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "00000001-n\tcmn:lemma\t汽车", "00000001-n\tjpn:lemma\t車")
        with pytest.raises(DataError, match="line 3: the language 'jpn' after 'cmn'"):
            read_multilingual(path)


class TestTables:
    def test_table(self, tmp_path: Path) -> None:
        path = tmp_path / "words.tsv"
        path.write_text(
            "# comment\n\nfire engine\tfire  truck\nhouse\thome\tdwelling\t\r\n猫\t猫咪\n", encoding="utf-8"
        )
        assert read_table(path) == {"fire engine": ("fire truck",), "house": ("home", "dwelling"), "猫": ("猫咪",)}

    @pytest.mark.parametrize("line", ["house", "house\t", "\thome"])
    def test_a_line_without_a_synonym(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "words.tsv"
        path.write_text(f"a\tb\n{line}\n")
        with pytest.raises(DataError, match=r"words\.tsv, line 2: .* has no synonym; expected a word and its synonyms"):
            read_table(path)

    def test_several_sources_are_joined(self, tmp_path: Path) -> None:
        path = tmp_path / "words.tsv"
        path.write_text("above\tover\tatop\nsofa\tcouch\n")
        synonyms = load_synonyms(["built-in", str(path)])
        assert [match.synonyms for match in synonyms.find("above a sofa", "en")] == [
            ("over", "higher than", "atop"),
            ("couch",),
        ]

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"no such file or folder; expected .*apt install wordnet-base.*/usr/share/wo"
        ):
            load_synonyms([str(tmp_path / "wordnet")])

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has neither data\.noun nor a \.tab file; expected"):
            load_synonyms([str(tmp_path)])

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "words.pkl"
        path.write_bytes(b"\x80\x04\x95\x00\xff")
        with pytest.raises(DataError, match=r"words\.pkl: cannot be read as a file of synonyms: not UTF-8 text"):
            load_synonyms([str(path)])

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spanbox.data.synonym_files.MAX_BYTES", 10)
        path = tmp_path / "words.tsv"
        path.write_text("house\tdwelling\n")
        with pytest.raises(DataError, match=r"more than .* MiB, the limit"):
            load_synonyms([str(path)])

    @pytest.mark.parametrize("language", ["en", "zh"])
    def test_built_in(self, language: str) -> None:
        table = load_synonyms(["built-in"]).tables[language]
        assert len(table) > 250
        for word, synonyms in table.items():
            assert synonyms
            assert word not in synonyms
            assert len(set(synonyms)) == len(synonyms)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words.tsv", "wn-data-cmn.tab", "data.noun", "index.noun", "cntlist.rev"])
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_damaged_files_are_refused_or_read(name: str, data: st.DataObject, wordnet: Path) -> None:
    whole = {
        "words.tsv": "house\thome\tdwelling\n",
        "wn-data-cmn.tab": "00000001-n\tcmn:lemma\t汽车\n00000001-n\tcmn:lemma\t轿车\n",
        "data.noun": "\n".join(DATA["noun"]),
        "index.noun": "\n".join(INDEX["noun"]),
        "cntlist.rev": "\n".join(COUNTS),
    }[name].encode()
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 9))
    put = data.draw(st.binary(max_size=4) | st.sampled_from([b"-1", b"9" * 5000, b" ", b"\n", b"\t", b"ffffffff"]))
    (wordnet / name).write_bytes(whole[:at] + put + whole[at + cut :])
    source = wordnet / name if name in ("words.tsv", "wn-data-cmn.tab") else wordnet
    try:
        synonyms = load_synonyms([str(source)])
    except DataError:
        return
    for table in synonyms.tables.values():
        assert all(word not in others for word, others in table.items())


SYNONYMS = Synonyms(
    {
        "en": {
            "fire engine": ("fire truck",),
            "engine": ("motor",),
            "car": ("motor car", "auto"),
            "Christmas": ("Xmas",),
        },
        "zh": {"公共汽车": ("巴士",), "汽车": ("轿车",), "猫": ("猫咪",), "左边": ("左侧",), "T恤": ("短袖",)},
        "": {"naïve": ("simple",)},
    }
)


def found(text: str, language: str = "", edges: tuple[int, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
    return [(text[start:end], synonyms) for start, end, synonyms in SYNONYMS.find(text, language, edges)]


class TestFind:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The fire engine", [("fire engine", ("fire truck",))]),
            ("The fire  engine", [("engine", ("motor",))]),
            ("Fire engine! ENGINE", [("Fire engine", ("Fire truck",)), ("ENGINE", ("MOTOR",))]),
            ("A big Engine", []),  # a name
            ("At Christmas", [("Christmas", ("Xmas",))]),
            ("engines", []),
            ("a motor car", []),  # stands in a synonym already
            ("a car", [("car", ("motor car", "auto"))]),
            ("公共汽车在左边", [("公共汽车", ("巴士",)), ("左边", ("左侧",))]),
            ("小汽车", [("汽车", ("轿车",))]),
            ("熊猫", []),
            ("猫。猫", [("猫", ("猫咪",)), ("猫", ("猫咪",))]),
            ("他穿T恤走", [("T恤", ("短袖",))]),
            ("XT恤", []),
            ("naïve car", [("naïve", ("simple",)), ("car", ("motor car", "auto"))]),
            ("", []),
            ("c", []),
        ],
    )
    def test_longest_matches(self, text: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
        assert found(text) == expected

    def test_language(self) -> None:
        assert found("car 汽车 naïve", "en-GB") == [("car", ("motor car", "auto")), ("naïve", ("simple",))]
        assert found("car 汽车 naïve", "zh_TW") == [("汽车", ("轿车",)), ("naïve", ("simple",))]
        assert found("car 汽车 naïve", "fr") == [("naïve", ("simple",))]

    def test_no_match_across_an_edge(self) -> None:
        assert found("The fire engine", edges=(9,)) == [("engine", ("motor",))]
        assert found("公共汽车", edges=(2,)) == [("汽车", ("轿车",))]

    def test_one_character_between_edges(self) -> None:
        assert found("一只猫在", edges=(2, 3)) == [("猫", ("猫咪",))]

    @given(st.text(alphabet="fire engicar 猫汽车T恤左边e\u0301🐈Christma.", max_size=20), st.integers(0, 20))
    def test_matches_are_in_order_and_across_no_edge(self, text: str, edge: int) -> None:
        position = 0
        for start, end, synonyms in SYNONYMS.find(text, edges=(edge,)):
            assert position <= start < end <= len(text)
            assert not start < edge < end
            assert synonyms
            position = end
