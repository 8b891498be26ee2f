from __future__ import annotations

import json
import json.decoder

import pytest

from lightning_distilbert._lazy import attach


def test_names_come_from_their_modules():
    get, names = attach("json", {"JSONDecoder": "decoder"})
    assert get("JSONDecoder") is json.decoder.JSONDecoder
    assert {"JSONDecoder", "loads", "__name__"} <= set(names())
    assert names() == sorted(names())


def test_others_are_unknown_to_the_package():
    get, _ = attach("json", {"JSONDecoder": "decoder"})
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'decode'"):
        get("decode")
