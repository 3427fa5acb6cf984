"""Checks for personal data: words for a whole segment name nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qiance.guard.results import Finding
from qiance.guard.rules import Rule
from qiance.guard.scene import Part, Scene

_EMAIL: Final = re.compile(
    r"[\w.+-]+ ?(?:@|[(\[{]\s?at\s?[)\]}]| at ) ?[\w-]+"
    r"(?: ?(?:\.|[(\[{]\s?dot\s?[)\]}]| dot ) ?[a-zA-Z]{2,})+"
)
_SPELLED_AT: Final = re.compile(r" at ")
_DIGITS: Final = re.compile(r"\+?\(?\d(?:[ ().-]{0,2}\d){5,}")
_HAN_DIGITS: Final = re.compile(r"[零〇一二三四五六七八九幺两]{7,}")
_YEARS: Final = re.compile(r"(?:19|20)\d\d ?- ?(?:19|20)\d\d")
_SOCIAL: Final = re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")
_PASSPORT: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{1,2}\d{7,8}(?!\d)")
_LONG: Final = re.compile(r"\d(?:[ -]?\d){11,18}[ -]?[\dXx]")
_GREETING: Final = re.compile(
    r"\b(?:[Dd]ear|[Hh]i|[Hh]ello|[Hh]ey|[Ww]elcome(?: back)?|[Gg]ood (?:morning|evening|afternoon)|"
    r"[Jj]ust for you|[Hh]appy birthday|[Tt]hank(?:s| you)|[Ss]ee you|[Mm]iss you|[Cc]ongratulations),? "
    r"([A-Z][a-z]+)(?![\w-])"
)
_SURNAMES: Final = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗高郑梁谢宋唐许韩冯邓曹彭曾萧肖田董袁潘蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆"
    "汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_ADDRESSED: Final = re.compile(
    r"(?:亲爱的|尊敬的|嗨[，,! ]?|你好[，,! ]?|您好[，,! ]?|欢迎回来[，,! ]?|恭喜)"
    rf"([{_SURNAMES}][\u4e00-\u9fff]{{1,2}})(?=[，,！!。:： ]|先生|女士|您|你|$)"
)
_TITLED: Final = re.compile(
    rf"(?<![\u4e00-\u9fff老小])([{_SURNAMES}][\u4e00-\u9fff]{{0,2}}?)(?:先生|女士|小姐|太太|老师(?!傅)|阿姨|叔叔|经理|总(?=[，,您]))"
)
_OPENING: Final = re.compile(rf"(?:^|[。！!]\s?)([{_SURNAMES}][\u4e00-\u9fff]{{1,2}})[，,](?:您|你)")
_NICKNAME: Final = re.compile(
    rf"(?:联系|转|找|问|添加|加)(?:一下)?(?:小|老|阿)([{_SURNAMES}])(?![\u4e00-\u9fff])"
)


def check_email(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Addresses, also those with the signs spelled out."""
    for part in scene.parts:
        for match in _EMAIL.finditer(part.spoken):
            spelled = _SPELLED_AT.search(match.group()) and "dot" not in match.group()
            if not spelled:
                yield _found(rule, scene, part, match.group())


def check_phone(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Seven to fifteen digits in a row, as figures or as Chinese numerals."""
    for part in scene.parts:
        for match in [*_DIGITS.finditer(part.spoken), *_HAN_DIGITS.finditer(part.spoken)]:
            count = sum(c.isalnum() for c in match.group())
            if 7 <= count <= 15 and not _YEARS.fullmatch(match.group()):
                yield _found(rule, scene, part, match.group())


def check_id_number(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Identity cards, payment cards (13 digits and more), social security numbers, passports."""
    for part in scene.parts:
        for pattern in (_LONG, _SOCIAL, _PASSPORT):
            for match in pattern.finditer(part.spoken):
                yield _found(rule, scene, part, match.group())


def check_names(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """People greeted by name, and names after a form of address."""
    generic = frozenset(rule.generic.split())
    titles = "|".join(rule.titles)
    titled = re.compile(rf"\b(?:{titles})\b\.? ([A-Z][a-z]+)", re.IGNORECASE)
    for part in scene.parts:
        for pattern in (_GREETING, titled):
            for match in pattern.finditer(part.plain):
                name = match.group(1)
                if name[0].isupper() and name.lower() not in generic:
                    yield _found(rule, scene, part, name)
        for pattern in (_ADDRESSED, _TITLED, _OPENING, _NICKNAME):
            for match in pattern.finditer(part.plain):
                if match.group(1) not in generic:
                    yield _found(rule, scene, part, match.group(1))


def _found(rule: Rule, scene: Scene, part: Part, text: str) -> Finding:
    """The finding, with its place in the words if they stand there letter by letter."""
    at = part.raw.find(text)
    return scene.finding(rule, part.field, max(at, 0), at + len(text) if at >= 0 else 0, found=text)
