"""Word lists of the wording checks: barred terms by rule and language, and small closed classes.

Sources of the Chinese absolute terms: Advertising Law of the PRC, art. 9(3). A starting list; each shop
has its own, and the full review of law and brand words reads these tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final


def _words(*phrases: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf"(?<![a-z]){phrase}(?![a-z])") for phrase in phrases)


def _parts(text: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(re.escape(part)) for part in text.split())


ABSOLUTE_EN: Final = _words(
    "best", "greatest", "cheapest", "finest", "lowest", "ultimate", "unbeatable", "unmatched", "unrivalled",
    "number one", "no one else", "top[- ](?:notch|rated|quality)", "world[- ]?(?:class|renowned)", "worlds?'s?",
    "in the world", "on (?:the planet|earth)", "guaranteed?", "flawless", "miracles?", "always", "never", "every ?one",
    "most", "only", "legendary", "lifesaver", "lifeblood", "gift from", "everybody", "perfection",
)  # fmt: skip
CLAIMS_EN: Final = _words(
    "health(?:y|ier|ily)?", "immun(?:e|ity)", "cures?", "heals?", "antioxidants?", "weight", "vitamins?", "organic",
    "natural(?:ly)?", "nutriti(?:on|ous|onal)", "protein", "safe(?:st|ty)?", "clinical(?:ly)?", "proven", "doctors?",
    "rejuvenat\\w*", "invigorat\\w*", "energy", "stress", "sleep", "calories", "allerg\\w*", "sustainable", "local(?:ly)?",
    "home ?made", "hand[- ]?made", "award\\w*", "favou?rites? (?:among|of|by)", "vegan", "gluten", "boosts?",
    "lifetime", "lives", "soul", "mood", "loyalty", "rewards?", "points", "probiotics?", "high[- ]end", "quality",
)  # fmt: skip
PRICE_EN: Final = _words(
    "free", "discount\\w*", "off", "percent", "per cent", "dollars?", "cents?", "half", "cheap(?:er)?", "sav(?:e|es|ings?)",
    "sale", "coupons?", "deals?", "bargains?", "two", "three", "four", "five", "ten", "twenty", "fifty", "hundreds?",
    "thousands?", "millions?", "double", "twice", "price[sd]?", "stock", "limited", "last chance", "today only",
)  # fmt: skip
VOICE_EN: Final = _words(
    "i", "i'm", "i've", "i'll", "my", "me", "mine", "sorry", "die", "dead", "kill", "crap", "hell", "damn", "sex\\w*",
    "stupid", "lazy", "sell", "customers?", "product", "can't", "cannot", "don't", "not", "no", "but", "god\\w*",
    "palms?", "santa", "it's a", "ad", "advert\\w*", "headline", "slogan", "word",
)  # fmt: skip
ABSOLUTE_ZH: Final = _parts(
    "最 第一 首选 国家级 顶级 极品 极致 唯一 独一无二 绝对 万能 永久 完美 百分百 全网 史上 世界级 冠军 王牌 之王 空前 绝无仅有"
)
CLAIMS_ZH: Final = _parts("治疗 治愈 疗效 祛病 减肥 排毒 抗癌 医生推荐 无副作用 纯天然 有机 保健 养生")
PRICE_ZH: Final = _parts("免费 半价 折 元 块钱 打折 特价 立减 白送 清仓 跳楼价 省钱 优惠券 仅剩 限量")
VOICE_ZH: Final = _parts("抱歉 作为一个 广告语 标题")

BARRED: Final[Mapping[str, Mapping[str, tuple[re.Pattern[str], ...]]]] = {
    "en": {"W05": ABSOLUTE_EN + CLAIMS_EN, "W11": PRICE_EN, "W12": VOICE_EN},
    "zh": {"W05": ABSOLUTE_ZH + CLAIMS_ZH, "W11": PRICE_ZH, "W12": VOICE_ZH},
}

# Words that carry no subject: they may repeat, and they never show what a text is about.
STOP: Final = frozenset(
    "a an the and or of to in on for with at by from as is are be it its that this your you our we their they"
    " so just up out into over all more new has have will can when while than until now get some any who"
    " one them these those every each".split()
)
# A text does not end on these.
DANGLING: Final = frozenset(
    "a an the and or but of to for with at by from as is are be that your our their its than so while"
    " when if because into it's you're perfect any every each just very".split()
)
UNITS: Final = frozenset(
    "oz lb lbs ct pk pack ml l g kg gal qt pt ea each count dz sz misc all other reg".split()
)
