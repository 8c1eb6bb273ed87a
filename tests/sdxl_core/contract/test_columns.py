import pyarrow as pa
import pytest

from sdxl_core.contract.columns import check_column, find_column, read_rows
from sdxl_core.contract.prompt_fields import PROMPT_FIELDS

FIELDS = {field.name: field for field in PROMPT_FIELDS}


def test_check_column_puts_the_default_where_cells_are_null_or_empty():
    table = pa.table({"steps": ["20", None, "", "0"]})
    checked = check_column(FIELDS["steps"], table, 30)
    assert checked.values_N(int)[:3].tolist() == [20, 30, 30]
    assert checked.refused_N.tolist() == [False, False, False, True]


def test_check_column_of_a_table_without_it_is_all_default():
    checked = check_column(FIELDS["strength"], pa.table({"prompt": ["a", "b"]}), None)
    assert checked.missing_N.tolist() == [True, True]
    assert not checked.refused_N.any()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([20, 30], pa.int8()),
        pa.array([20, 30], pa.uint64()),
        pa.array([20, 30], pa.float32()),
        pa.array(["20", "30"], pa.large_string()),
        pa.array(["20", "30"], pa.string_view()),
        pa.chunked_array([["20"], ["30"]]).dictionary_encode(),
        pa.chunked_array([[20], [], [30]]),
    ],
    ids=lambda array: str(array.type),
)
def test_check_column_reads_every_arrow_type_that_holds_numbers(array):
    checked = check_column(FIELDS["steps"], pa.table({"steps": array}), 1)
    assert checked.values_N(int).tolist() == [20, 30]


def test_check_column_of_nulls_alone_is_all_default():
    checked = check_column(FIELDS["steps"], pa.table({"steps": pa.nulls(2)}), 30)
    assert checked.values_N(int).tolist() == [30, 30]


def test_find_column_reads_an_alias():
    assert find_column(pa.table({"cfg": [7.0]}), "guidance_scale").to_pylist() == [7.0]
    assert find_column(pa.table({"cfg": [7.0]}), "steps") is None


def test_read_rows_of_a_table_without_rows_is_nothing():
    assert list(read_rows(pa.table({"prompt": pa.array([], pa.string())}))) == []
