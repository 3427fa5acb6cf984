"""Reads a page as a browser would, as far as the tests need it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Element:
    """A tag with its attributes and the text below it."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    parents: tuple[str, ...] = ()


@dataclass
class Page(HTMLParser):
    """All elements of a document in order, and its visible text."""

    source: str
    elements: list[Element] = field(default_factory=list)
    text: str = ""
    unbalanced: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(self.source)
        self.close()
        self.unbalanced += [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), parents=tuple(e.tag for e in self._open))
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), parents=tuple(e.tag for e in self._open)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1].tag != tag:
            self.unbalanced.append(f"/{tag}")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data
        if not any(element.tag == "style" for element in self._open):
            self.text += data

    def all(self, tag: str, of_class: str | None = None) -> list[Element]:
        """Elements by tag and, where given, by one of their classes."""
        return [
            e
            for e in self.elements
            if e.tag == tag and (of_class is None or of_class in (e.attributes.get("class") or "").split())
        ]

    def section(self, name: str) -> str:
        """Text of the section with the id `name`; empty where there is none."""
        return next((e.text for e in self.elements if e.attributes.get("id") == name), "")
