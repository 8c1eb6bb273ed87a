"""File names of ids: nothing escapes, nothing collides."""

import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdxl_core.storage.file_names import MAX_NAME_CHARACTERS, file_name_of_id

# Dense in what could go wrong: escapes that look like names, capitals, dots, slashes, long runs.
TRICKY = st.text(st.sampled_from("aAbB=h0049._-/\\ \0éÉ图\ud800"), max_size=6)
ROW_ID = st.one_of(st.text(), TRICKY, TRICKY.map(lambda text: text * 20))


@given(ROW_ID, ROW_ID)
def test_different_ids_have_different_names_whatever_the_case(first: str, second: str) -> None:
    assume(first != second)

    assert file_name_of_id(first).lower() != file_name_of_id(second).lower()


@given(ROW_ID)
def test_names_are_short_plain_and_stay_in_their_folder(row_id: str) -> None:
    name = file_name_of_id(row_id)

    assert re.fullmatch(r"[a-z0-9_=-]+", name)
    assert len(name) <= MAX_NAME_CHARACTERS


@given(st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=80))
def test_plain_ids_are_their_own_names(row_id: str) -> None:
    assume(row_id[:3] not in ("con", "prn", "aux", "nul", "com", "lpt"))

    assert file_name_of_id(row_id) == row_id


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        ("row-000012", "row-000012"),
        ("IMG_1.png", "=49=4d=47_1=2epng"),
        ("../../etc/passwd", "=2e=2e=2f=2e=2e=2fetc=2fpasswd"),
        ("a b", "a=20b"),
        ("ü", "=c3=bc"),
        ("nul", "=6eul"),
    ],
)
def test_known_names(row_id: str, name: str) -> None:
    assert file_name_of_id(row_id) == name
