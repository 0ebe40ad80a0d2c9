from __future__ import annotations

import pytest

from neuroweaver.mesh.handlers.filters import parse
from neuroweaver.mesh.wire.errors import InvalidArgument

KEYS = ("state", "tags.")


def test_terms_are_joined_by_and_and_spaces_around_a_key_do_not_count():
    assert parse("state =READY AND tags.team=service", KEYS) == [("state", "READY"), ("tags.team", "service")]


@pytest.mark.parametrize("text", ["colour=red", "state", "tags.", "state=READY AND "])
def test_a_term_of_another_form_is_refused_with_what_is_allowed(text):
    with pytest.raises(InvalidArgument, match=r"state=value, tags\.name=value"):
        parse(text, KEYS)
