"""Approved words with slots: what is sent when no model's words pass, and the sentence that states an offer.

Each entry is (headline, body, call to action). No offer is named in the plain ones; the others state it with
`{discount}` and `{ends}`, and `threshold_sentence` adds the condition where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qiance.domain import Channel, Creative

Words = tuple[str, str, str]

_PLAIN_EN: Final[Mapping[Channel, tuple[Words, ...]]] = {
    Channel.EMAIL: (
        ("Time for {product}?", "It may be a while since your last one. {product} is ready for your basket.", "Add to basket"),
        ("A little something for your list", "Planning the week? Put {product} on the list and tick it off in a minute.", "Shop now"),
        ("{product}, picked for you", "We looked at what you enjoy and thought of {product}. Have a look.", "Take a look"),
        ("Dinner, snacks or just because", "Whatever the occasion, {product} fits right in. Add it to your next order.", "Order today"),
    ),
    Channel.PUSH: (
        ("Running low?", "{product} is one tap away.", "Add to basket"),
        ("{product} today?", "Add it to your basket before your next shop.", "Shop now"),
        ("Something you may like", "Have a look at {product}.", "Take a look"),
        ("Your list is waiting", "Add {product} and you are done.", "Add to basket"),
    ),
    Channel.DISPLAY: (
        ("Meet {product}", "Ready when you are, in store and online.", "Shop now"),
        ("On your list this week?", "Find {product} and more for your kitchen and home.", "Take a look"),
        ("A treat for the weekend", "Bring home {product} and enjoy.", "Try it today"),
        ("Good things, close by", "{product} is waiting on the shelf.", "Shop now"),
    ),
    Channel.MAILER: (
        ("Put {product} on your list", "Plan your week with things you like. Look for {product} on your next visit.", "Visit us"),
        ("New week, full basket", "From breakfast to dinner we have you covered. Start with {product}.", "Shop now"),
        ("Something good in aisle and online", "Pick up {product} on your next visit, or order it to your door.", "Order today"),
        ("Made for your table", "Share {product} with the people you love this week.", "Try it today"),
    ),
}  # fmt: skip
_OFFER_EN: Final[Mapping[Channel, tuple[Words, ...]]] = {
    Channel.EMAIL: (
        ("{discount} {product}", "Fill your basket a little lighter. Get {discount} {product} until {ends}.", "Shop now"),
        ("A treat from us to you", "Here is {discount} {product}, yours until {ends}. Enjoy it with someone you like.", "Get my offer"),
        ("{product} for less", "Until {ends} you get {discount} {product}. Add it to your next order.", "Add to basket"),
        ("Your offer ends {ends}", "There is still time to get {discount} {product}. Pick it up while it lasts.", "Shop now"),
    ),
    Channel.PUSH: (
        ("{discount} until {ends}", "Time for {product}? Your offer is ready.", "Shop now"),
        ("{product} for less", "Get {discount} until {ends}.", "Add to basket"),
        ("An offer for you", "{discount} {product} until {ends}.", "See the offer"),
        ("Ready for {product}?", "It is {discount} until {ends}.", "Order today"),
    ),
    Channel.DISPLAY: (
        ("{discount} {product}", "Pick it up by {ends}, in store and online.", "Shop now"),
        ("{product} for less", "Now {discount}, until {ends}.", "See the offer"),
        ("Treat yourself by {ends}", "Enjoy {discount} {product}.", "Try it today"),
        ("This week: {discount}", "Bring home {product} until {ends}.", "Shop now"),
    ),
    Channel.MAILER: (
        ("{discount} {product}", "Bring this page to the store, or order online. Valid until {ends}.", "Visit us"),
        ("A little extra for your basket", "Get {discount} {product} until {ends}, in store and online.", "Shop now"),
        ("{product} for less until {ends}", "Stock your kitchen with {discount} {product} on your next visit.", "Visit us"),
        ("Something nice for the week", "Take {discount} {product}. The offer runs until {ends}.", "See the offer"),
    ),
}  # fmt: skip
_PLAIN_ZH: Final[Mapping[Channel, tuple[Words, ...]]] = {
    Channel.EMAIL: (
        ("该补一补{product}了吗？", "有一阵子没买了吧？{product}已为您备好，随时加入购物车。", "加入购物车"),
        ("为您挑选：{product}", "根据您平时的喜好，我们想到了{product}，来看看吧。", "马上看看"),
        ("本周清单，添一样好物", "安排一周的餐桌，别忘了把{product}写进清单。", "立即选购"),
        ("给日常加点好心情", "无论正餐还是小食，{product}都合适，随下一单一起带走。", "今天就下单"),
    ),
    Channel.PUSH: (
        ("家里快用完了？", "{product}，轻点一下就到。", "加入购物车"),
        ("今天来点{product}？", "下次购物前先放进购物车。", "立即选购"),
        ("也许您会喜欢", "来看看{product}。", "马上看看"),
        ("购物清单在等您", "加上{product}，清单就齐了。", "加入购物车"),
    ),
    Channel.DISPLAY: (
        ("遇见{product}", "门店与线上均有，随时等您。", "立即选购"),
        ("本周清单有它吗？", "{product}，为厨房和家添一份好物。", "马上看看"),
        ("周末犒劳一下自己", "把{product}带回家，好好享用。", "今天就下单"),
        ("好东西就在身边", "{product}已上架，等您来选。", "立即选购"),
    ),
    Channel.MAILER: (
        ("把{product}写进清单", "按喜欢的样子安排一周，下次到店记得看看{product}。", "欢迎光临"),
        ("新的一周，装满购物篮", "从早餐到晚餐都为您备好，先从{product}开始。", "立即选购"),
        ("门店与线上，好物都在", "下次到店带上{product}，也可以下单送到家。", "今天就下单"),
        ("为您的餐桌而备", "这一周，与家人分享{product}。", "马上看看"),
    ),
}  # fmt: skip
_OFFER_ZH: Final[Mapping[Channel, tuple[Words, ...]]] = {
    Channel.EMAIL: (
        ("{product}限时{discount}", "{product}现享{discount}，截至{ends}，欢迎选购。", "立即选购"),
        ("送您一份小心意", "{ends}之前，{product}为您准备了{discount}，与家人一起享用。", "领取优惠"),
        ("{product}，这周更划算", "即日起至{ends}，{product}{discount}，随下一单一起带走。", "加入购物车"),
        ("优惠到{ends}为止", "还来得及：{product}{discount}，喜欢就带回家。", "立即选购"),
    ),
    Channel.PUSH: (
        ("{discount}，到{ends}", "来点{product}？优惠已为您备好。", "立即选购"),
        ("{product}更划算", "现享{discount}，截至{ends}。", "加入购物车"),
        ("您有一份优惠", "{product}{discount}，截至{ends}。", "查看优惠"),
        ("想要{product}吗？", "{ends}前享{discount}。", "今天就下单"),
    ),
    Channel.DISPLAY: (
        ("{product}{discount}", "{ends}前，门店与线上同享。", "立即选购"),
        ("{product}更划算", "现享{discount}，截至{ends}。", "查看优惠"),
        ("{ends}前，犒劳一下自己", "{product}{discount}，带回家好好享用。", "今天就下单"),
        ("本周{discount}", "把{product}带回家，截至{ends}。", "立即选购"),
    ),
    Channel.MAILER: (
        ("{product}{discount}", "持本页到店或线上下单均可，有效期至{ends}。", "欢迎光临"),
        ("给购物篮加一份惊喜", "{product}现享{discount}，截至{ends}，门店与线上同享。", "立即选购"),
        ("{ends}前，{product}更划算", "下次到店，{product}{discount}，为厨房备上一份。", "欢迎光临"),
        ("为这一周添一份美味心情", "{product}{discount}，活动到{ends}为止。", "查看优惠"),
    ),
}  # fmt: skip
_TEMPLATES: Final = {"en": (_PLAIN_EN, _OFFER_EN), "zh": (_PLAIN_ZH, _OFFER_ZH)}
_OFFER: Final[Mapping[str, Mapping[Channel, str]]] = {
    "en": {
        Channel.EMAIL: "Get {discount} {product} until {ends}.",
        Channel.PUSH: "Now {discount} until {ends}.",
        Channel.DISPLAY: "Now {discount} until {ends}.",
        Channel.MAILER: "Get {discount} {product} until {ends}.",
    },
    "zh": {
        Channel.EMAIL: "{product}现享{discount}，截至{ends}。",
        Channel.PUSH: "现享{discount}，截至{ends}。",
        Channel.DISPLAY: "现享{discount}，截至{ends}。",
        Channel.MAILER: "{product}现享{discount}，截至{ends}。",
    },
}
_THRESHOLD: Final[Mapping[str, str]] = {
    "en": " For baskets of {threshold} or more.",
    "zh": "订单满{threshold}可用。",
}


def template_count(channel: Channel, has_offer: bool, language: str) -> int:
    """How many templates there are for that channel, offer and language."""
    return len(_TEMPLATES[language][int(has_offer)][channel])


def template(channel: Channel, language: str, has_offer: bool, has_threshold: bool, number: int) -> Creative:
    """Template `number`, counted round and round, with its condition stated."""
    choices = _TEMPLATES[language][int(has_offer)][channel]
    headline, body, call_to_action = choices[number % len(choices)]
    return Creative(
        channel, language, headline, body + threshold_sentence(language, has_threshold), call_to_action
    )


def offer_sentence(channel: Channel, language: str, has_threshold: bool) -> str:
    """The sentence that states an offer and when it ends, appended to words written by a model."""
    return _OFFER[language][channel] + threshold_sentence(language, has_threshold)


def threshold_sentence(language: str, has_threshold: bool) -> str:
    """The least basket as a sentence of its own, empty where there is none."""
    return _THRESHOLD[language] if has_threshold else ""
