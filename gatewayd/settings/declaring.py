"""What the declaration of a setting consists of. :mod:`.model` declares all settings."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import attrs

from .values import unless_empty

T = TypeVar("T")


class SectionId(NamedTuple):
    """A section: ``[gateway]``, or one of several such as ``[backend gpu1]``."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"[{self.kind} {self.name}]" if self.name else f"[{self.kind}]"


@attrs.frozen
class Setting:
    """The declaration of one setting."""

    default: str | None
    """As written in an ini file; ``None`` if the setting must be given."""
    parse: Callable[[str], Any]
    """Text -> value; raises `ValueError` that says what is wrong and what is expected."""
    doc: str
    """One sentence, the same in ``docs/configuration.rst`` and ``etc/gatewayd.ini``."""
    is_file: bool = False
    """Whether the text is the name of a file."""
    is_secret: bool = False
    """Whether other users must not be able to read an ini file that has this setting."""


def setting(default: str, parse: Callable[[str], T], doc: str, is_file: bool = False) -> T:
    """Declare a setting; without a source its value is that of the default."""
    return declare(Setting(default, parse, doc, is_file), parse(default))  # type: ignore[no-any-return]  # attrs.field


def declare(declared: Setting, value: Any = attrs.NOTHING, repr: bool = True) -> Any:
    """Declare a setting whose value without a source is another one than that of the default.

    :param value: that value; a setting without one must be given.
    :param repr: whether the value may be shown in logs.
    """
    return attrs.field(default=value, repr=repr, metadata={"setting": declared})


def declare_own(section: type[attrs.AttrsInstance], kind: str, key: str) -> Any:
    """Declare a backend's own value of a setting. If it is empty, that of the section applies.

    :param section: the class that declares the common setting, and ``kind`` is its name.
    """
    common = attrs.fields_dict(section)[key]
    parse = unless_empty(common.metadata["setting"].parse)
    doc = f"This backend's own {key}; empty = the one of [{kind}]."
    return declare(Setting("", parse, doc), common.default)
