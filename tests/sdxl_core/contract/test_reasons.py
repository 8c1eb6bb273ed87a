"""The closed list of reasons for which a row can fail."""

from sdxl_core.contract.reasons import Reason


def test_every_reason_has_one_line_of_explanation() -> None:
    for reason in Reason:
        assert reason.explanation
        assert "\n" not in reason.explanation
    assert len({reason.explanation for reason in Reason}) == len(Reason)


def test_reason_is_the_word_that_a_table_holds() -> None:
    assert Reason("out_of_memory") is Reason.OUT_OF_MEMORY
    assert f"{Reason.OUT_OF_MEMORY}" == "out_of_memory"
