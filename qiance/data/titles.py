"""Product names that a shopper can read, from the abbreviations of a retailer's product table."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

_WORDS = {
    "BBQ": "BBQ",
    "BKD": "Baked",
    "BKFST": "Breakfast",
    "BN": "Beans",
    "BRD": "Bread",
    "BRKFST": "Breakfast",
    "BTL": "Bottle",
    "BTR": "Butter",
    "CARB": "Carbonated",
    "CATFD": "Cat Food",
    "CHIX": "Chicken",
    "CHOC": "Chocolate",
    "CHOCOCLATE": "Chocolate",
    "CKYS": "Cookies",
    "CLEANG": "Cleaning",
    "CND": "Canned",
    "CNDY": "Candy",
    "COCO": "Cocoa",
    "CONC": "Concentrate",
    "CRBNTD": "Carbonated",
    "CRKR": "Crackers",
    "CRMD": "Creamed",
    "CRYSTL": "Crystal",
    "DAN": "Danish",
    "DISPOSIBLE": "Disposable",
    "DNR": "Dinner",
    "DNRS": "Dinners",
    "DRNK": "Drink",
    "DRNKING": "Drinking",
    "DRNKNG": "Drinking",
    "DRNKS": "Drinks",
    "DRSNG": "Dressing",
    "DSH": "Dishes",
    "FD": "Food",
    "FEM": "Feminine",
    "FLVR": "Flavor",
    "FLVRD": "Flavored",
    "FRD": "Fried",
    "FRZ": "Frozen",
    "FRZN": "Frozen",
    "FS": "French Style",
    "GDS": "Goods",
    "GM": "General Merchandise",
    "GRND": "Ground",
    "HANDKE": "Handkerchiefs",
    "HBC": "Care",
    "HYGN": "Hygiene",
    "IWS": "Wrapped",
    "JCE": "Juice",
    "MACH": "Machine",
    "MEMORABLILIA": "Memorabilia",
    "MFG": "Manufacturer",
    "MIXS": "Mixes",
    "MLK": "Milk",
    "MLT": "Multi",
    "MNERAL": "Mineral",
    "MNRL": "Mineral",
    "MX": "Mix",
    "MXS": "Mixes",
    "NDAIRY": "Non-Dairy",
    "PAC": "Pack",
    "PCKGD": "Packaged",
    "PK": "Pack",
    "PKG": "Packaged",
    "PKGD": "Packaged",
    "PKLD": "Pickled",
    "PLSTC": "Plastic",
    "PNCH": "Punch",
    "PNT": "Peanut",
    "PPK": "Prepacked",
    "PREP": "Prepared",
    "PRESLC": "Presliced",
    "PRPCK": "Prepacked",
    "PWDR": "Powder",
    "PWDRS": "Powders",
    "REFRGRATD": "Refrigerated",
    "REFRIG": "Refrigerated",
    "REG": "Regular",
    "RTS": "Ready-to-Serve",
    "RW": "Random Weight",
    "SALD": "Salad",
    "SAUCESSALSAPICANTEE": "Sauces/Salsa/Picante",
    "SAUS": "Sausage",
    "SFT": "Soft",
    "SGL": "Single",
    "SHERBTS": "Sherbets",
    "SNDWCH": "Sandwich",
    "SNGL": "Single",
    "SNKS": "Snacks",
    "SOD": "Sodas",
    "SPECILATY": "Specialty",
    "SPLY": "Supply",
    "SPRD": "Spreads",
    "SRV": "Serve",
    "SS": "Single-Serve",
    "STK": "Stick",
    "SUPPPLIES": "Supplies",
    "SV": "Serve",
    "SW": "Sweet",
    "SWEETNERS": "Sweeteners",
    "SYRP": "Syrup",
    "TISS": "Tissue",
    "TORT": "Tortilla",
    "TRSH": "Trash",
    "VAC": "Vacuum",
    "VEG": "Vegetables",
    "VEND": "Vending",
    "WHL": "Whole",
    "WHLSM": "Wholesome",
    "WRA": "Wraps",
    "WT": "Weight",
    "WTR": "Water",
}
_UNITS = {
    "OZ": "oz",
    "CT": "ct",
    "CTN": "ct",
    "LB": "lb",
    "ML": "ml",
    "L": "l",
    "PK": "pack",
    "QT": "qt",
    "GAL": "gal",
    "GA": "gal",
    "PT": "pint",
    "PC": "piece",
    "FT": "ft",
    "IN": "in",
    "DZ": "dozen",
    "SQ FT": "sq ft",
    "FL OZ": "fl oz",
    "STEM": "stem",
    "LOAD": "loads",
    "LOADS": "loads",
    "LD": "loads",
}
_UNITS_ZH = {
    "oz": "盎司", "ct": "件", "lb": "磅", "ml": "毫升", "l": "升", "pack": "包", "qt": "夸脱", "gal": "加仑",
    "pint": "品脱", "piece": "块", "ft": "英尺", "in": "英寸", "dozen": "打", "sq ft": "平方英尺",
    "fl oz": "液盎司", "stem": "支", "loads": "次用量",
}  # fmt: skip
_CODE = 1000.0  # a number this large is an article code in the wrong field
_WIDTH = 30  # of the source's text fields
_SMALL = {"And", "Or", "The", "With", "In", "For", "Of", "On"}
# Types that name a cut or an occasion, not the product: the category goes in front.
_VAGUE_DEPARTMENTS = ("MEAT", "SEAFOOD", "MEAT-PCKGD", "SEAFOOD-PCKGD", "FROZEN GROCERY")
_OCCASIONS = ("HALLOWEEN", "EASTER", "VALENTINE", "CHRISTMAS  SEASONAL")
# A produce size at or above these is the crate that the shop receives, not what a shopper takes home.
_CRATE = {"LB": 11.0, "CT": 0.0, "CTN": 0.0}


def readable(text: str) -> str:
    """`FRZN MEAT/MEAT DINNERS` → `Frozen Meat/Meat Dinners`; a remark in brackets is left out.

    Text of the full field width was cut off by the source: its last word goes, unless it looks whole.
    """
    if len(text) == _WIDTH:
        text = re.sub(r"[ /&-]+(?![A-Z]{3,}S$)[^ /&-]*$", "", text)
    text = re.sub(r"\((?:EX|INCL|NO|BULK)[^)]*\)?", "", text)
    text = re.sub(r"\([^)]*\)|\([^)]*$", "", text)
    text = re.sub(r"\bW/", "with ", text)
    words = re.sub(r"(?<![A-Za-z0-9'])[A-Za-z']+", lambda match: _word(match.group()), text)
    words = re.sub(r"(\d)(?:PK|PACK)\b", r"\1-Pack", words)
    words = re.sub(r"(?<=\d)[A-Z]+\b", lambda match: match.group().lower(), words)
    words = re.sub(r"\s*:\s*", ": ", re.sub(r"\s*&\s*", " & ", words))
    words = re.sub(r"\s+", " ", words).strip(" -/:&,")
    return " ".join(word.lower() if n and word in _SMALL else word for n, word in enumerate(words.split(" ")))


def _word(word: str) -> str:
    return _WORDS.get(word.upper(), word.capitalize())


def readable_size(size: str | None, department: str) -> str:
    """`1 GA` → `1 gal`; empty where the size is unreadable or is that of a crate of produce."""
    match = re.fullmatch(r"\s*(\d*\.?\d+)\s*([A-Z]+(?: [A-Z]+)?)\s*", size or "")
    if match is None or match[2] not in _UNITS or float(match[1]) >= _CODE:
        return ""
    if department == "PRODUCE" and float(match[1]) >= _CRATE.get(match[2], float("inf")):
        return ""
    return f"{match[1]} {_UNITS[match[2]]}"


class Titles(NamedTuple):
    """A product's names for shoppers; zh: Chinese, empty where there is none."""

    en: str
    zh: str


def titles_of(department: str, category: str, kind: str, size: str | None) -> Titles:
    """A shopper's names of a product, e.g. `Milk, 1 gal` and `鲜牛奶（1加仑）`."""
    name, measure = _type_of(department, category, kind), readable_size(size, department)
    en, zh = _names().get(readable(category), {}).get(name, (name, ""))
    amount, _, unit = measure.partition(" ")
    return Titles(
        f"{en}, {measure}" if measure and en else en,
        f"{zh}（{amount}{_UNITS_ZH[unit]}）" if measure and zh else zh,
    )


@cache
def _names() -> dict[str, dict[str, tuple[str, str]]]:
    text = resources.files("qiance.data").joinpath("journey_names.yaml").read_text(encoding="utf-8")
    return {
        category: {kind: (en, zh) for kind, (en, zh) in kinds.items()}
        for category, kinds in yaml.safe_load(text).items()
    }


def _type_of(department: str, category: str, kind: str) -> str:
    name, group = readable(kind), readable(category)
    stem = group.split("/")[0].split(" ")[0].rstrip("s").lower()
    vague = department in _VAGUE_DEPARTMENTS or category in _OCCASIONS
    if vague and stem not in name.lower():
        return f"{group}: {name}" if name else group
    return name
