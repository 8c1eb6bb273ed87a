"""What a cell stands for, whichever reader it comes from."""

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.cells import (
    MAX_PROMPT_CHARACTERS,
    SAMPLERS,
    describe,
    read_boolean,
    read_id,
    read_integer,
    read_number,
    read_sampler,
    read_text,
)


@pytest.mark.parametrize(
    "raw", [20, 20.0, "20", "20.0", "+20", " 20 ", np.int16(20), np.float32(20)]
)
def test_read_integer_of_each_reader_is_the_same_number(raw):
    number = read_integer(raw)
    assert number == 20
    assert type(number) is int


@pytest.mark.parametrize(
    "raw",
    [True, np.True_, 20.5, "20.5", "1e3", "1_000", "٢٠", "twenty", "", "0x14", "20\n", math.nan,
     math.inf, 2.0**60, b"20", Decimal(20), None, [20], "9" * 20],
)  # fmt: skip
def test_read_integer_of_anything_else_is_none(raw):
    assert read_integer(raw) is None


@given(st.integers(-(2**63), 2**63 - 1))
def test_read_integer_survives_being_written_as_text(number):
    assert read_integer(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_read_number_survives_being_written_as_text(number):
    assert read_number(repr(number)) == number


@pytest.mark.parametrize(
    "raw",
    [True, "nan", "inf", "-Infinity", "1e999", "1,5", "1_0.0", math.nan, math.inf, 10**400, b"1"],
)
def test_read_number_of_what_is_not_finite_is_none(raw):
    assert read_number(raw) is None


@pytest.mark.parametrize(("raw", "expected"), [
    (True, True), (False, False), ("true", True), ("False", False), ("1", True), ("0", False),
    (1, True), (0.0, False), ("yes", None), ("", None), (2, None), ("t", None), (math.nan, None),
])  # fmt: skip
def test_read_boolean_takes_true_false_one_and_zero(raw, expected):
    assert read_boolean(raw) is expected


@pytest.mark.parametrize(("raw", "expected"), [
    ("heun", "heun"), ("k_euler_ancestral", "euler_ancestral"), (3, "euler"), ("5", "heun"),
    (1.0, "ddim"), ("k_lms", None), (8, None), (9, None), ("Euler", None), ("", None), (True, None),
])  # fmt: skip
def test_read_sampler_knows_our_names_and_those_of_diffusiondb(raw, expected):
    assert read_sampler(raw) == expected


def test_read_sampler_of_each_of_our_names_is_the_name():
    assert [read_sampler(name) for name in SAMPLERS] == list(SAMPLERS)


@pytest.mark.parametrize(
    "raw", ["", "two\nlines\tand a tab\r\n", "日本語 🐈 e\u0301", "\x92s", "x" * 100_000]
)
def test_read_text_leaves_text_as_it_is(raw):
    assert read_text(raw) == raw


@pytest.mark.parametrize(
    "raw",
    ["a\0b", "\x1b[31m", "\x7f", "\ud800", "x" * (MAX_PROMPT_CHARACTERS + 1), 7, b"cat", ["cat"]],
)
def test_read_text_of_what_is_no_text_is_none(raw):
    assert read_text(raw) is None


@pytest.mark.parametrize(("raw", "expected"), [
    ("a/b c", "a/b c"), (7, "7"), (3.0, "3"), ("3.0", "3.0"), ("007", "007"), (-1, "-1"),
    ("", None), ("x" * 200, "x" * 200), ("x" * 201, None), ("a\nb", None), ("a\x85b", None),
    ("\udfff", None), (3.5, None), (True, None), (b"id", None),
])  # fmt: skip
def test_read_id_takes_short_text_and_whole_numbers(raw, expected):
    assert read_id(raw) == expected


@given(st.one_of(st.text(st.characters(), max_size=300), st.lists(st.integers()), st.floats()))
def test_describe_is_short_and_can_always_be_stored(raw):
    shown = describe(raw)
    assert len(shown) < 700  # 60 characters, each escaped at the worst
    shown.encode()


def test_describe_of_a_long_text_tells_its_length():
    assert "(1000000 characters)" in describe("x" * 1_000_000)
    assert len(describe("x" * 1_000_000)) < 100
