"""Text as a reader understands it: whatever hides a word is undone, and every hit leads back to the original.

A view is the text after some foldings. All checks run on several views, since what undoes one trick may spoil
another: `b.e.s.t` is joined, `b3st` is read as letters, `最 佳` is closed up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

SLOT: Final = re.compile(r"\{([^{}]*)\}")
HAN: Final = re.compile(r"[㐀-鿿]")
BLANK: Final = "￼"  # stands for a slot: no letter, no space
# Letters of other scripts that look like Latin ones (Unicode TS 39), and small capitals that NFKC leaves.
_LOOKALIKE: Final = {
    sign: letter
    for letter, signs in {
        "a": "аɑαᴀ",
        "b": "ьƅʙ",
        "c": "сϲᴄ",
        "d": "ԁđᴅ",
        "e": "еεэᴇ",
        "f": "ƒғ",
        "g": "ɡɢ",
        "h": "һнħʜ",
        "i": "іїιɩɪı",
        "j": "јᴊ",
        "k": "кκᴋ",
        "l": "ӏłʟ",
        "m": "мᴍ",
        "n": "ոɴ",
        "o": "оοøօᴏ",
        "p": "рρᴘ",
        "q": "ԛ",
        "r": "гʀ",
        "s": "ѕƨꜱ",
        "t": "тτᴛ",
        "u": "υսᴜ",
        "v": "ѵνᴠ",
        "w": "ԝωᴡ",
        "x": "хχ",
        "y": "уγʏ",
        "z": "ᴢƶ",
    }.items()
    for sign in signs
}
# Variant characters that OpenCC keeps, and the capital numerals of cheques.
_VARIANT: Final = dict(zip("囯蕞隹壹贰叁肆伍陆柒捌玖拾〇", "国最佳一二三四五六七八九十零", strict=True))
_LEET: Final = str.maketrans("034579@$!|€", "oeastgasiie")
_JOINERS: Final = r" .\-_*·•~|/\\+,'’^=:"
_SPACED: Final = re.compile(rf"(?<![^\W\d_])[^\W\d_](?:[{_JOINERS}]{{1,2}}[^\W\d_]){{2,}}(?![^\W\d_])")
_TOKEN: Final = re.compile(r"[^\W_]*(?:[@$!|][^\W_]+|[^\W_]+)+")
_ELONGATED: Final = re.compile(r"([a-z])\1{2,}")
_SMALL: Final = "︎️"  # variation selectors: they belong to emoji


@dataclass(frozen=True, slots=True)
class View:
    """A folded text; origin: the place in the original of each character, and one more for the end."""

    text: str
    origin: tuple[int, ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original's half-open span that `text[start:end]` came from."""
        return self.origin[start], self.origin[end - 1] + 1 if end > start else self.origin[start]


def hidden(text: str) -> list[int]:
    """Places of characters that show nothing: format, control, tag, unassigned and private ones.

    The joiner between two emoji is a part of them and left out.
    """
    found = []
    for place, char in enumerate(text):
        category = unicodedata.category(char)
        if category not in ("Cf", "Cc", "Co", "Cn", "Cs") or char in "\n\t":
            continue
        around = text[place - 1 : place] + text[place + 1 : place + 2]
        if char == "\u200d" and len(around) == 2 and all(is_emoji(c) or c in _SMALL for c in around):
            continue
        found.append(place)
    return found


def is_emoji(char: str) -> bool:
    """Whether `char` is a pictograph; marks such as ™ and © are not."""
    code = ord(char)
    return 0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or code in (0x2B50, 0x2B55, 0x231A, 0x231B)


def visible(text: str) -> str:
    """`text` without what `hidden` finds."""
    gone = set(hidden(text))
    return "".join(char for place, char in enumerate(text) if place not in gone)


@lru_cache(maxsize=4_096)  # calls to action and templates come again and again
def views(text: str) -> tuple[View, ...]:
    """The folded text first, then each view that differs from those before it; slots are blanked."""
    blanked = SLOT.sub(lambda match: BLANK * len(match.group()), text)
    base = fold(blanked)
    found = {base.text: base}
    for change in (_closed_han, _joined, _joined_after_article):
        _add(found, change(base))
    for view in list(found.values()):
        for change in (_letters_i, _letters_l, _single, _double):
            _add(found, change(view))
    return tuple(found.values())


def _add(found: dict[str, View], view: View) -> None:
    found.setdefault(view.text, view)


def fold(text: str) -> View:
    """Hidden characters and combining marks dropped, NFKC, lower case, look-alikes and traditional folded."""
    chars: list[str] = []
    origin: list[int] = []
    gone = set(hidden(text))
    for place, char in enumerate(text):
        if place in gone or char in _SMALL or char == "\u200d":
            continue
        for folded in _fold_char(char):
            chars.append(folded)
            origin.append(place)
    return View("".join(chars), (*origin, len(text)))


@lru_cache(maxsize=8_192)
def _fold_char(char: str) -> str:
    if is_emoji(char) or (
        unicodedata.category(char) == "So" and not unicodedata.name(char, "").count("LETTER")
    ):
        return char  # NFKC would make 🈳 a word of the text
    kept = "".join(
        c for c in unicodedata.normalize("NFKD", char) if unicodedata.category(c) not in ("Mn", "Me")
    )
    plain = unicodedata.normalize("NFKC", kept).casefold().replace("’", "'").replace("‘", "'")
    plain = plain.replace("–", "-").replace("‐", "-").replace("‑", "-").replace("—", "-")
    plain = "".join(_VARIANT.get(c, _LOOKALIKE.get(c, c)) for c in plain)
    return _simplified()(plain) if HAN.search(plain) else plain


@cache
def _simplified() -> Callable[[str], str]:
    import opencc  # a C++ library: loaded with its dictionary when the first Chinese text comes

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


def _without(view: View, dropped: set[int]) -> View:
    if not dropped:
        return view
    kept = [place for place in range(len(view.text)) if place not in dropped]
    origin = tuple(view.origin[place] for place in kept)
    return View("".join(view.text[place] for place in kept), (*origin, view.origin[-1]))


def _closed_han(view: View) -> View:
    """Spaces and signs between two Chinese characters dropped, but for punctuation that parts sentences."""
    dropped: set[int] = set()
    run: list[int] = []
    after_han = False
    for place, char in enumerate(view.text):
        if HAN.match(char):
            if after_han:
                dropped.update(run)
            after_han, run = True, []
        elif after_han and _is_filler(char):
            run.append(place)
        else:
            after_han, run = False, []
    return _without(view, dropped)


def _is_filler(char: str) -> bool:
    return (
        char.isspace() or char in _JOINERS.replace("\\", "") + '"`#&@' or unicodedata.category(char) == "So"
    )


def _joined(view: View) -> View:
    """`b.e.s.t` as `best`."""
    return _without(view, {p for m in _SPACED.finditer(view.text) for p in _separators(m)})


def _joined_after_article(view: View) -> View:
    """`a f r e e cup` as `a free cup`: the first letter stays a word where it is one."""
    dropped: set[int] = set()
    for match in _SPACED.finditer(view.text):
        places = list(_separators(match))
        dropped.update(places[1:] if match.group()[0] in "ai" else places)
    return _without(view, dropped)


def _separators(match: re.Match[str]) -> Iterator[int]:
    return (match.start() + n for n, char in enumerate(match.group()) if not char.isalpha())


def _letters_i(view: View) -> View:
    """Digits and signs within words as the letters that they stand for, 1 as i."""
    return _letters(view, "i")


def _letters_l(view: View) -> View:
    return _letters(view, "l")


def _letters(view: View, one: str) -> View:
    text = _TOKEN.sub(lambda match: _as_letters(match.group(), one), view.text)
    return View(text, view.origin)


def _as_letters(token: str, one: str) -> str:
    mixed = any("a" <= c <= "z" for c in token) and not re.match(r"\d+[a-z]{1,3}$", token)
    return token.translate(_LEET).replace("1", one) if mixed else token


def _single(view: View) -> View:
    """Letters said three times or more are said once."""
    return _shortened(view, 1)


def _double(view: View) -> View:
    return _shortened(view, 2)


def _shortened(view: View, most: int) -> View:
    return _without(
        view, {p for m in _ELONGATED.finditer(view.text) for p in range(m.start() + most, m.end())}
    )
