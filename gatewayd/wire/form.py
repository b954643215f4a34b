"""Forms (``multipart/form-data``), read so strictly that every parser reads the same fields.

The gateway reads few fields of a form, above all the model. The backend reads them again and runs
what its own parser has found. Parsers differ on repeated parameters, extended parameters
(``name*=``), character sets, transfer encodings, escapes, separators within quotes, and boundaries
in unusual places. A form with any of these is refused. The contents of the parts are not read.

Sources: RFC 7578, RFC 2046 (5.1), RFC 9110 (5.6.6), and the parsers of Go, cpp-httplib (llama.cpp),
Starlette (vLLM) and Django.
"""

from __future__ import annotations

import re

import attrs

from .errors import InvalidValue

#: The most parts of a form, and the most bytes of each part's head.
MAX_PARTS = 128
MAX_HEAD = 8192

_CRLF = b"\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER = re.compile(rb"(%b):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)" % _TOKEN)
# A backslash before the closing quote would be an escape to some parsers and a letter to others.
_QUOTED = rb'"(?:[^"\\\x00-\x1f\x7f]|\\[^"\x00-\x1f\x7f])*"'
_PARAMETER = re.compile(rb"[ \t]*;[ \t]*(%b)=(%b|%b)[ \t]*" % (_TOKEN, _TOKEN, _QUOTED))
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_NAME = re.compile(rb"[0-9A-Za-z_.\[\]-]{1,100}")
_TEXT = re.compile(rb'text/plain([ \t]*;[ \t]*charset="?(utf-8|us-ascii)"?)?', re.IGNORECASE)
_IDENTITY = (b"7bit", b"8bit", b"binary")


@attrs.frozen
class Field:
    """A field of a form: its text, which is ``body[start:end]``."""

    value: str
    start: int
    end: int


def boundary(content_type: bytes) -> bytes:
    """The boundary in the ``Content-Type`` of a request.

    :raises InvalidValue: it is not the type of a form, or two parsers could find different
        boundaries.
    """
    kind, semicolon, rest = content_type.partition(b";")
    if kind.strip(b" \t").lower() != b"multipart/form-data":
        raise InvalidValue("The body must be multipart/form-data with a boundary.")
    parameters = _parameters(semicolon + rest, "the Content-Type")
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise _ambiguous("the Content-Type names another charset than UTF-8")
    found = parameters.get(b"boundary", b"")
    if b"boundary*" in parameters:
        raise _ambiguous("the Content-Type has 'boundary*'")
    if not _BOUNDARY.fullmatch(found):
        raise InvalidValue("The Content-Type needs a boundary of 1 to 70 plain characters.")
    return found


def read(body: bytes, boundary: bytes, known: tuple[str, ...]) -> dict[str, Field]:
    """The ``known`` fields that a form has, by name.

    :raises InvalidValue: the body is not a form, or two parsers could read different fields.
    """
    mark = b"--" + boundary
    fields: dict[str, Field] = {}
    at = body.find(mark)
    if at < 0 or (at and body[at - 2 : at] != _CRLF):
        raise _malformed()
    for _ in range(MAX_PARTS + 1):
        at += len(mark)
        if body.startswith(b"--", at):
            if body.find(mark, at) >= 0:
                raise _malformed()
            return fields
        end = body.find(mark, at) - 2
        head_end = body.find(b"\r\n\r\n", at, max(end, 0))
        if body[at : at + 2] != _CRLF or body[end : end + 2] != _CRLF:
            raise _malformed()
        if not at < head_end <= at + MAX_HEAD:
            raise _malformed()
        start = head_end + 4
        name = _name(body[at + 2 : head_end], end - start, known)
        if name in fields:
            raise InvalidValue(f"The form has '{name}' twice.", param=name)
        if name is not None:
            fields[name] = Field(_text(body[start:end], name), start, end)
        at = end + 2
    raise InvalidValue(f"The form has more than {MAX_PARTS} parts.")


def _name(head: bytes, size: int, known: tuple[str, ...]) -> str | None:
    """Check the head of a part; return the part's name if it is a known one.

    :param size: bytes of the part's content.
    """
    headers: dict[bytes, bytes] = {}
    for line in head.split(_CRLF):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _malformed()
        header, value = match[1].lower(), match[2]
        if header in headers:
            raise _ambiguous("a part has the same header twice")
        headers[header] = value.rstrip(b" \t")
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in _IDENTITY:
        raise _ambiguous("a part has a Content-Transfer-Encoding")
    if headers.get(b"content-length", b"%d" % size) != b"%d" % size:
        raise _ambiguous("a part does not have the length of its Content-Length")
    kind, semicolon, rest = headers.get(b"content-disposition", b"").partition(b";")
    if kind.strip().lower() != b"form-data":
        raise _malformed()
    parameters = _parameters(semicolon + rest, "a Content-Disposition")
    raw = parameters.get(b"name", b"")
    if b"name*" in parameters or not _NAME.fullmatch(raw):
        raise _ambiguous("a part's name is not plain ('name' once, letters, digits, '_.-[]')")
    name = raw.decode("ascii")
    if name.lower() == "_charset_":
        raise _ambiguous("it has a field '_charset_'")
    if name.lower() not in known:
        return None
    if name not in known:
        raise _ambiguous(f"the name of a part differs from '{name.lower()}' only in case")
    if b"filename" in parameters or b"filename*" in parameters:
        raise InvalidValue(f"The form's '{name}' must not be a file.", param=name)
    if not _TEXT.fullmatch(headers.get(b"content-type", b"text/plain")):
        raise InvalidValue(f"The form's '{name}' must be plain UTF-8.", param=name)
    return name


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidValue(f"The form's '{name}' must be plain UTF-8.", param=name) from None


def _parameters(text: bytes, where: str) -> dict[bytes, bytes]:
    """The parameters of a header's value, by their names in lower case.

    :param where: names the header in the message of an error.
    :raises InvalidValue: two parsers could read different parameters.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            raise _ambiguous(f"the parameters of {where} are malformed")
        name, value = match[1].lower(), match[2]
        if name in found:
            raise _ambiguous(f"{where} has a parameter twice")
        if b"*" in name[:-1]:
            raise _ambiguous(f"{where} has a parameter in pieces")
        if b";" in value and b"=" in value:  # some parsers split at every semicolon, in quotes too
            raise _ambiguous(f"{where} has what could be a parameter within quotes")
        found[name] = value[1:-1] if value.startswith(b'"') else value
        at = match.end()
    return found


def _malformed() -> InvalidValue:
    return InvalidValue("The body is not valid multipart/form-data.")


def _ambiguous(reason: str) -> InvalidValue:
    return InvalidValue(f"Two parsers could read this form differently: {reason}.")
