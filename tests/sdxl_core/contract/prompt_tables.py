"""Prompt tables of every kind that readers give, right and wrong cells mixed."""

import pyarrow as pa
from hypothesis import strategies as st

TEXTS = st.sampled_from(["a cat", "", "two\nlines", "日本語", "a\0b", "x" * 100_001])
NUMBERS_AS_TEXT = st.sampled_from(
    ["20", "0.5", "20.0", "-1", "", "nan", "1e1", "512", "true", "2000"]
)
INTEGERS = st.sampled_from([0, 1, 2, 20, 64, 512, 1023, 1024, 4096, 5000, -1, 2**62])
FLOATS = st.sampled_from(
    [0.0, 0.25, 1.0, 7.5, 20.0, 512.0, 101.0, -0.5, float("nan"), float("inf")]
)
SAMPLERS = st.sampled_from(["euler", "heun", "k_euler", "Euler", "", "3", "8", "dpmpp_2m"])
IDS = st.sampled_from(["a", "b", "0", "1", "2", "", "a\nb", "x" * 201])
STATUSES = st.sampled_from(["ok", "failed", "invalid_steps", "out_of_memory"])

CELLS_BY_TYPE = {
    pa.int64(): INTEGERS,
    pa.float64(): FLOATS,
    pa.bool_(): st.booleans(),
    pa.string(): NUMBERS_AS_TEXT,
}
# Types that no column of ours has: every cell is refused, in the row, by name.
STRANGE_TYPES = [
    (pa.list_(pa.string()), ["a cat"]),
    (pa.binary(), b"\xff\xfe"),
    (pa.timestamp("ms"), 0),
    (pa.decimal128(5, 2), 20),
]
NUMERIC_COLUMNS = (
    "seed", "height", "width", "steps", "step", "cfg", "guidance_rescale", "refiner", "handoff",
    "strength", "aesthetic_score", "crop_top", "original_height", "original_width",
    "negative_original_height", "negative_original_width", "negative_target_height",
    "negative_target_width", "negative_crop_top",
)  # fmt: skip
TEXT_COLUMNS = {
    "prompt_2": TEXTS,
    "negative_prompt": TEXTS,
    "sampler": SAMPLERS,
    "id": IDS,
    "status": STATUSES,
    "reason": STATUSES,
    "_unreadable": st.just("line 3: not JSON"),
}


@st.composite
def prompt_tables(draw, max_rows: int = 6) -> pa.Table:
    """A table with a prompt column and some of the others."""
    num_rows = draw(st.integers(0, max_rows))
    columns = {"prompt": _column(draw, pa.string(), TEXTS, num_rows)}
    for name in draw(st.sets(st.sampled_from(sorted(TEXT_COLUMNS)), max_size=4)):
        columns[name] = _column(draw, pa.string(), TEXT_COLUMNS[name], num_rows)
    for name in draw(st.sets(st.sampled_from(NUMERIC_COLUMNS), max_size=6)):
        arrow_type = draw(st.sampled_from(list(CELLS_BY_TYPE)))
        columns[name] = _column(draw, arrow_type, CELLS_BY_TYPE[arrow_type], num_rows)
    if draw(st.integers(0, 9)) == 0:
        arrow_type, cell = draw(st.sampled_from(STRANGE_TYPES))
        columns["guidance_scale"] = _column(draw, arrow_type, st.just(cell), num_rows)
        columns.pop("cfg", None)
    if "step" in columns:
        columns.pop("steps", None)
    table = pa.table(columns)
    return pa.concat_tables([table.slice(0, 2), table.slice(2)]) if draw(st.booleans()) else table


@st.composite
def conditioning_tables(draw) -> pa.Table:
    """Tables whose every cell is right by itself: what can be wrong is which cells are null."""
    num_rows = draw(st.integers(1, 4))
    columns = {"prompt": _column(draw, pa.string(), st.just("a cat"), num_rows)}
    prefixes = draw(st.sampled_from([("",), ("negative_",)]))
    for prefix in prefixes:
        for name in (
            "original_height",
            "original_width",
            "target_height",
            "target_width",
            "crop_top",
        ):
            if draw(st.integers(0, 5)):
                columns[prefix + name] = _column(draw, pa.int64(), st.just(64), num_rows)
    return pa.table(columns)


@st.composite
def good_tables(draw) -> pa.Table:
    """Tables whose every row is valid, in the columns that decide how much work a row is."""
    num_rows = draw(st.integers(1, 6))
    cells = {
        "prompt": (pa.string(), st.sampled_from(["a cat", "", "日本語"])),
        "height": (pa.string(), st.sampled_from(["64", "512", ""])),
        "steps": (pa.float64(), st.integers(1, 40).map(float)),
        "cfg": (pa.float32(), st.sampled_from([0.0, 1.0, 7.5])),
        "sampler": (pa.string(), st.sampled_from(["euler", "heun", "5", ""])),
        "refiner": (pa.string(), st.sampled_from(["True", "0", ""])),
        "handoff": (pa.float64(), st.floats(0.01, 1.0)),
        "strength": (pa.float64(), st.floats(0.01, 1.0)),
    }
    names = ["prompt", *sorted(draw(st.sets(st.sampled_from(sorted(cells)), min_size=4)))]
    columns = {}
    for name in dict.fromkeys(names):
        arrow_type, values = cells[name]
        nullable = values if name == "prompt" else st.one_of(st.none(), values)
        columns[name] = pa.array(
            draw(st.lists(nullable, min_size=num_rows, max_size=num_rows)), arrow_type
        )
    return pa.table(columns)


def _column(draw, arrow_type: pa.DataType, cells: st.SearchStrategy, num_rows: int) -> pa.Array:
    maybe_null = st.one_of(st.none(), cells, cells, cells)
    values = draw(st.lists(maybe_null, min_size=num_rows, max_size=num_rows))
    array = pa.array(values, arrow_type)
    return array.dictionary_encode() if arrow_type == pa.string() and draw(st.booleans()) else array
