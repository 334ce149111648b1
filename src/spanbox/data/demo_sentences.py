"""Sentences of the demo's scenes, with slots for the names of objects and for their relations.

`{a}`, `{b}`, `{c}` and `{d}` are the objects, `{x}` is one that the scene does not show; `{ab}` is how a lies to b.
"""

from typing import Literal

Language = Literal["en", "zh"]

SENTENCES: dict[Language, tuple[str, ...]] = {
    "en": (
        "The {a} is {ab} the {b}, and the {c} is {cb} it.",
        "A picture of the {a} {ab} the {b}, with the {c} {cb} the latter.",
        "Look: the {b}, the {a} {ab} it and the {c} {cb} it.",
        "We found the {a}, the {b} and the {c}; the first is {ab} the second.",
    ),
    "zh": (
        "{a}在{b}的{ab}，{c}在它的{cb}。",
        "图中{a}位于{b}{ab}，还有{c}在{b}{cb}。",
        "看：{b}，{ab}是{a}，{cb}是{c}。",
        "这里有{a}、{b}和{c}，第一个在第二个的{ab}。",
    ),
}
FOURTHS: dict[Language, tuple[str, ...]] = {
    "en": (" The {d} is {da} the {a}.", " And {da} the {a} is the {d}."),
    "zh": ("{d}在{a}的{da}。", "{a}的{da}是{d}。"),
}
ABSENCES: dict[Language, tuple[str, ...]] = {
    "en": (" There is no {x}.", " The {x} is gone.", " The {x} stayed at home."),
    "zh": ("这里没有{x}。", "{x}被人拿走了。", "{x}留在家里了。"),
}
ONE_RELATION: dict[Language, tuple[str, ...]] = {
    "en": (
        "The {a} is {ab} the {b}. There is a {c} too.",
        "A picture of a {c}, and of the {a} {ab} the {b}.",
        "Look: the {a}, {ab} the {b}. It comes with a {c}.",
    ),
    "zh": (
        "{a}在{b}的{ab}，还有{c}。",
        "图中有{c}，{a}位于{b}{ab}。",
        "看：{a}，在{b}的{ab}，旁边有{c}。",
    ),
}
RELATIONS: dict[Language, dict[str, str]] = {
    "en": {"left": "left of", "right": "right of", "above": "above", "below": "below"},
    "zh": {"left": "左边", "right": "右边", "above": "上方", "below": "下方"},
}
