"""Bytes to text by the rule of the web, for what Korean servers send."""

from __future__ import annotations

import codecs

import pytest

from aegis.http.charset import decode

BEYOND_EUC_KR = "똠방각하"  # cp949 has it, strict EUC-KR lacks the first syllable


@pytest.mark.parametrize(
    "label",
    ["euc-kr", "EUC-KR", "euckr", "ks_c_5601-1987", "KS_C_5601", "ksc5601", "ksc_5601", "cp949", "ms949", "uhc",
     "windows-949", "x-windows-949", "korean", "ks_c_5601-1989", "iso-ir-149"],
)  # fmt: skip
def test_every_name_of_korean_text_is_cp949(label):
    """As the Encoding Standard has it (encoding.spec.whatwg.org, the labels of EUC-KR), and the names of Windows."""
    assert decode(BEYOND_EUC_KR.encode("cp949"), f"text/html; charset={label}") == BEYOND_EUC_KR


@pytest.mark.parametrize(
    ("mark", "codec"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_a_mark_beats_every_label_and_is_no_text(mark, codec):
    """The bytes themselves say what they are."""
    assert decode(mark + "값".encode(codec), "text/plain; charset=euc-kr") == "값"


def test_a_document_is_asked_in_its_first_kibibyte_only():
    """Later it is content, which may be about anything."""
    meta = b'<meta charset="latin-1">'
    assert decode(meta + "값".encode("latin-1", "ignore") + b"\xe9") == '<meta charset="latin-1">é'
    late = b" " * 1024 + meta + "값".encode()
    assert decode(late).endswith("값")


def test_the_header_beats_the_document_and_the_document_the_profile():
    """Then UTF-8, then cp949; an unknown label is none."""
    prolog = '<?xml version="1.0" encoding="EUC-KR"?>값'
    assert decode(prolog.encode(), "text/xml; charset=utf-8").endswith("값")
    assert decode(prolog.encode("cp949"), "", "utf-8").endswith("값")
    assert decode("값".encode("cp949"), "", "euc-kr") == "값"
    assert decode("값".encode(), "text/plain; charset=nonsense") == "값"
    assert decode(BEYOND_EUC_KR.encode("cp949")) == BEYOND_EUC_KR
