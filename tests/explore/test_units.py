"""The words of a text that the explorer scores one by one."""

from spanbox.explore.session import _units


def test_units_cover_scripts() -> None:
    text = "A don't-stop kite，蝴蝶2只"
    assert [text[start:end] for start, end, _ in _units(text, None)] == [
        "A",
        "don't-stop",
        "kite",
        "蝴",
        "蝶",
        "2",
        "只",
    ]


def test_units_keep_the_marks_of_their_letters() -> None:
    for text, words in (("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]), ("กิน", ["กิ", "น"]), ("cafe\u0301s", ["cafe\u0301s"])):
        assert [text[start:end] for start, end, _ in _units(text, None)] == words
