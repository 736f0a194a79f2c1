"""
Bytes to text by the rule of the web: header, then mark, then what the document says of itself, then UTF-8, then cp949.

Korean servers label cp949 as `euc-kr` or `ks_c_5601-1987`; the WHATWG Encoding Standard reads all of them as cp949, so
do we. Nothing is ever replaced silently: what cannot be decoded is an error.
"""

from __future__ import annotations

import codecs
import re

_CP949 = frozenset({"euc-kr", "euckr", "ks_c_5601-1987", "ks_c_5601", "ksc5601", "ksc_5601", "cp949", "ms949", "uhc"})
_CP949_MORE = frozenset({"windows-949", "korean", "ks_c_5601-1989", "iso-ir-149", "x-windows-949"})
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_IN_HEADER = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
_IN_DOCUMENT = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9_.:-]+)|<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_.:-]+)""",
    re.IGNORECASE,
)
_LOOK_BYTES = 1024
#: Codecs of Python that no server means: they would turn a Korean word into something else without a complaint.
_NO_CHARSETS = frozenset({"unicode-escape", "raw-unicode-escape", "idna", "punycode", "charmap", "utf-7"})


def canonical(name: str) -> str | None:
    """
    The codec that a charset label means, None for an unknown one.

    Raises:
        LookupError: Python has such a codec, but it is no charset.
    """
    label = name.strip().lower()
    if label in _CP949 or label in _CP949_MORE:
        return "cp949"
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    if name in _NO_CHARSETS:
        raise LookupError(f"{name} is no charset")
    return name


def decode(content: bytes, content_type: str = "", default: str | None = None) -> str:
    """
    The text of a body. `default` is what the profile knows when the server says nothing.

    Raises:
        UnicodeDecodeError: the bytes are not of the charset that applies.
        LookupError: the charset that applies is none.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return content.decode(name)
    in_header = _IN_HEADER.search(content_type)
    declared = in_header[1] if in_header else None
    if declared is None:
        in_document = _IN_DOCUMENT.search(content[:_LOOK_BYTES])
        declared = (in_document[1] or in_document[2]).decode("ascii") if in_document else default
    codec = canonical(declared) if declared else None
    if codec is not None:
        return content.decode(codec)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp949")
