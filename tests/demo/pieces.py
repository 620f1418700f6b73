"""Reads pieces of HTML as a visitor does."""

import re
from html import unescape


def words(piece):
    """Text without tags, with single blanks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", piece)).split())


def numbers(piece):
    """Texts of the elements that carry a reply's numbers, by what they carry."""
    found = {}
    for name, text in re.findall(r'data-tf="([\w-]+)"[^>]*>\s*([^<]*)', piece):
        found.setdefault(name, []).append(unescape(text).strip())
    return found
