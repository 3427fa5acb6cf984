"""What a language model is asked for advertising words, and the JSON schema that binds its answer.

The body comes first: a small model writes a better headline for a sentence that it has just written.
Figures, currency signs and braces are outside the character classes, so no model can write a fact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qiance.guard.normalise import fold, hidden


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to a chat model.

    system, user: the texts of those roles; turns: earlier (user, assistant) pairs that show the form.
    """

    system: str
    user: str
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """As chat templates take it."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.turns:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*found, {"role": "user", "content": self.user}]


_EN: Final = "[a-z ,'-]"
# An order opens the body: left to itself a small model defines the product (`A soup is a meal`).
_OPENINGS: Final = (
    "Enjoy|Bring|Treat|Start|Make|Share|Add|Keep|Give|Try|Fill|Brighten|Discover|Take|Wake|Put|Pick|Relax"
)
_ZH: Final = "[\\u4e00-\\u9fff，、]"
# Longest texts that the schema admits, characters; a text that reaches them was cut and is dropped.
MOST: Final[Mapping[str, Mapping[str, int]]] = {
    "en": {"headline": 46, "body": 92},
    "zh": {"headline": 18, "body": 50},
}
CALLS: Final[Mapping[str, tuple[str, ...]]] = {
    "en": ("Shop now", "Add to basket", "Try it today", "Order today", "Take a look"),
    "zh": ("立即选购", "加入购物车", "马上看看", "今天就下单"),
}
# Words that would fail a check or lead astray: asking a model not to write them saves samples.
_AVOID_EN: Final = """
best finest greatest ultimate unbeatable most only always never every world worlds planet life lives lifetime
health healthy healthier natural organic protein energy boost immune free save sale deal deals price cheap
half two three customer customers product I my me not but no can't homemade favorites gods soul mood is are
was guarantee Greece Greek sell business industry staple people restaurant local complimentary paid
"""
AVOID: Final[Mapping[str, tuple[str, ...]]] = {"en": tuple(_AVOID_EN.split()), "zh": ()}
_PATTERNS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {"body": f"^({_OPENINGS}) {_EN}{{15,85}}[.!]$", "headline": f"^[A-Z]{_EN}{{9,46}}[!]?$"},
    "zh": {"body": f"^{_ZH}{{8,48}}[。！]$", "headline": f"^{_ZH}{{4,17}}[！]?$"},
}
_SYSTEM: Final[Mapping[str, str]] = {
    "en": "You write short, friendly advertisements for a grocery shop. Never write numbers or prices.",
    "zh": "你为一家超市写简短亲切的广告文案。不写数字、价格和绝对化用语。",
}
# (product, body, headline, call to action)
_SHOTS: Final[Mapping[str, tuple[tuple[str, str, str, str], ...]]] = {
    "en": (
        (
            "strawberry jam",
            "Start the day with ripe strawberry jam on warm toast.",
            "Sweeter mornings begin here",
            "Add to basket",
        ),
        (
            "dish soap",
            "Make dishes shine again with one small drop of dish soap.",
            "Sparkling plates with less scrubbing",
            "Shop now",
        ),
        (
            "rice",
            "Enjoy soft, fluffy rice with your favorite curry and a squeeze of lime.",
            "A warm bowl for dinner tonight",
            "Order today",
        ),
        (
            "bath towels",
            "Keep your bathroom cozy with soft, fluffy bath towels.",
            "Wrap up in something soft",
            "Try it today",
        ),
    ),
    "zh": (
        ("草莓酱", "熟透的草莓熬成果酱，抹在热吐司上，早晨多一分甜。", "早餐多一分甜", "加入购物车"),
        ("洗洁精", "轻轻一挤就能洗去油污，碗碟亮起来。", "让碗碟重新发亮", "立即选购"),
        ("大米", "米粒饱满松软，配什么菜都香。", "今晚来一碗热饭", "今天就下单"),
    ),
}
_ASK: Final[Mapping[str, str]] = {
    "en": "Write an advertisement for {name}{readers}: one sentence, a headline, and a call to action.",
    "zh": "为{name}写一则广告{readers}：一句正文、一个标题、一个行动号召。",
}
# In the place of a product's name: what could be said of any.
ANYTHING: Final[Mapping[str, str]] = {"en": "groceries", "zh": "商品"}
_READERS: Final[Mapping[str, str]] = {"en": " for {segment}", "zh": "，写给{segment}"}


# A name has no more of these; what is longer is a text.
_LONGEST: Final = 60
_MOST_WORDS: Final = 9
_STRUCTURE: Final = re.compile(r"[\n\r\t{}\[\]<>|\\`#*=@\"“”「」]|//|-{2,}")
_ORDERS: Final = re.compile(
    r"(?<![a-z])(?:ignore|disregard|forget|override|bypass|instead|instructions?|rules?|systems?|assistants?|prompts?|"
    r"outputs?|writes?|prints?|respond|repl(?:y|ies)|answers?|json|schema|pretend|you|your|must|always|say|says|tell|"
    r"claim|state|change|set|discounts?|free|off|price[sd]?|guaranteed|admin|developer|mode|review)(?![a-z])|"
    r"忽略|无视|遵守|规则|指令|系统|输出|写|回复|提示|假装|你|扮演|改为|改成|折|免费|价格|设为|必须|声称|告诉|用户|助手|管理员|评价"
)


def is_plain(text: str) -> bool:
    """Whether a text of the catalogue or a brief may stand in a prompt as a name.

    Catalogues are filled by suppliers and customers: hidden characters, structure and words that give orders
    stay out of the prompt. A real name that is refused costs little, since the category stands in for it.
    """
    folded = fold(text).text
    long = len(text) > _LONGEST or len(text.split()) > _MOST_WORDS
    return not (long or hidden(text) or _STRUCTURE.search(text) or _ORDERS.search(folded))


def copy_prompt(name: str, segment: str, language: str, examples: bool = True) -> Prompt:
    """Asks for words about `name`; the examples teach the form and are the same for every prompt."""
    shots = _SHOTS[language] if examples else ()
    turns = tuple((_ask(n, "", language), _answer(b, h, c)) for n, b, h, c in shots)
    return Prompt(_SYSTEM[language], _ask(name, segment, language), turns)


def _ask(name: str, segment: str, language: str) -> str:
    named = segment and segment != "everybody" and not any(c.isdigit() for c in segment) and is_plain(segment)
    readers = _READERS[language].format(segment=segment) if named else ""
    return _ASK[language].format(name=name, readers=readers)


def _answer(body: str, headline: str, call_to_action: str) -> str:
    answer = {"body": body, "headline": headline, "call_to_action": call_to_action}
    return json.dumps(answer, ensure_ascii=False)


def copy_schema(language: str) -> dict[str, Any]:
    """JSON schema of one answer: `body`, `headline` and a `call_to_action` from a closed list."""
    texts = {name: {"type": "string", "pattern": p} for name, p in _PATTERNS[language].items()}
    properties = {**texts, "call_to_action": {"type": "string", "enum": list(CALLS[language])}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def is_example(headline: str, body: str, language: str) -> bool:
    """Whether a model only copied the headline or the body of an example."""
    texts = {text for _, b, h, _ in _SHOTS[language] for text in (b, h)}
    return headline in texts or body in texts
