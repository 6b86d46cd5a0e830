"""Personal data in texts: found by form, replaced by what kind it was. Texts in, texts and counts out.

Found are mail addresses, telephone numbers, payment cards (Luhn's check), bank accounts (IBAN's check, ISO 13616), addresses of
machines, and keys of services. The same value becomes the same mark within one conversation, `[EMAIL_1]`, so that a text still makes sense.
Left out on purpose: names of people and places, which no pattern knows; a person must look before such a set is shared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


def _luhn(text: str) -> bool:
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + doubled) % 10 == 0


def _iban(text: str) -> bool:
    plain = re.sub(r"\s", "", text).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= sum(letter.isdigit() for letter in text) <= 15


def _machine(text: str) -> bool:
    return all(int(part) <= 255 for part in text.split("."))


_KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "KEY": (re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp]|hf|AKIA)[-_A-Za-z0-9]{14,}\b"), lambda text: True),
    "EMAIL": (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), lambda text: True),
    "IBAN": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _iban),
    "CARD": (re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d|\.\d)"), _luhn),
    "IP": (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)"), _machine),
    "PHONE": (re.compile(r"(?<![\w.])(?:\+\d{1,3}[ ./-]?|0)(?:\(\d{1,5}\)[ ./-]?)?\d(?:[ ./-]?\d){6,13}(?!\w)"), _phone),
}


@dataclass
class Mask:
    """The marks of one conversation, and how many values of each kind were replaced."""

    marks: dict[tuple[str, str], str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def cover(self, text: str) -> str:
        """The text with its personal data replaced."""
        for kind, (pattern, holds) in _KINDS.items():
            text = pattern.sub(lambda match, kind=kind, holds=holds: self._mark(kind, match.group(), holds), text)  # type: ignore[misc]
        return text

    def cover_all(self, value: Any) -> Any:
        """A value of JSON with every text in it covered, at any depth; keys stay, they are names of fields."""
        if isinstance(value, str):
            return self.cover(value)
        if isinstance(value, Mapping):
            return {key: self.cover_all(entry) for key, entry in value.items()}
        return [self.cover_all(entry) for entry in value] if isinstance(value, list | tuple) else value

    def _mark(self, kind: str, value: str, holds: Callable[[str], bool]) -> str:
        if not holds(value):
            return value
        self.counts[kind] += 1
        number = 1 + sum(known == kind for known, _ in self.marks)
        return self.marks.setdefault((kind, value), f"[{kind}_{number}]")


def kinds() -> Iterator[str]:
    """What is looked for."""
    yield from _KINDS
