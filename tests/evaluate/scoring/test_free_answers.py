from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcap.configs.errors import DataError
from prismcap.evaluate.scoring.numbers import free_rules, parse_numbers, score_free


def right(reply: str, answer: str, **rules: str) -> bool:
    return score_free(reply, answer, free_rules(rules, answer, "7")).right


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("14", [14]),
        ("1,234,567 people", [1234567]),
        ("1,5", [1.5]),
        ("3/4", [0.75]),
        ("\\frac{3}{4}", [0.75]),
        ("2 1/2 cups", [2.5]),
        ("2½", [2.5]),
        ("½", [0.5]),
        ("-3.5 °C", [-3.5]),
        ("−7", [-7]),
        ("$1.45", [1.45]),
        ("1.2e3", [1200]),
        ("3 × 10^{2}", [300]),
        ("between 2007 and 2008", [2007, 2008]),
        ("2007-2008", [2007, 2008]),
        ("three", [3]),
        ("Twenty-one", [21]),
        ("one of the two boxes", [2]),
        ("H2O and the 1st of May", []),
        ("Step 2: add 5", [5]),
        ("5 cm²", [5]),
        ("1/0", []),
        ("none", []),
        ("9.5, then", [9.5]),
    ],
)
def test_numbers_as_they_are_written(text: str, values: list[float]) -> None:
    assert [number.value for number in parse_numbers(text)] == pytest.approx(values)


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators_change_nothing(value: int) -> None:
    assert [number.value for number in parse_numbers(f"{value:,}")] == [value]


@given(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), st.integers(0, 3))
def test_a_float_is_compared_as_the_original_compares_it(value: float, precision: int) -> None:
    """MathVista: the string of round(float(extracted), precision) against the string of the right answer."""
    answer = str(round(value, precision)) if precision else f"{round(value, 0):.1f}"
    reference = str(round(float(f"{value:.3f}"), precision)) == answer
    assert right(f"{value:.3f}", answer, answer_type="float", precision=f"{precision}.0") == reference


@pytest.mark.parametrize(
    ("reply", "answer", "rules", "expected"),
    [
        ("The number missing in the sequence is 14.", "14", {"answer_type": "integer"}, True),
        ("14.0", "14", {"answer_type": "integer"}, True),
        ("14.7", "14", {"answer_type": "integer"}, False),
        ("Fourteen", "14", {"answer_type": "integer"}, True),
        ("3 + 4 = 7. The answer is 7.", "7", {"answer_type": "integer"}, True),
        ("3 + 4 = 7. The answer is 7.", "3", {"answer_type": "integer"}, False),
        ("\\boxed{1,200}", "1200", {"answer_type": "integer"}, True),
        ("Therefore the total is 3 + 4 = 7", "7", {"answer_type": "integer"}, True),
        ("First I see 3 and then 4.", "4", {"answer_type": "integer"}, False),
        ("<think>It is 5.</think>6", "5", {"answer_type": "integer"}, False),
        ("0.649", "0.6", {"answer_type": "float", "precision": "1.0"}, True),
        ("0.651", "0.6", {"answer_type": "float", "precision": "1.0"}, False),
        ("60%", "0.6", {"answer_type": "float", "precision": "1"}, True),
        ("60%", "0.6", {"answer_type": "float", "precision": "1", "unit": "percent"}, False),
        ("60%", "60", {"answer_type": "integer"}, True),
        ("She needs $1.45 in all.", "1.45", {"answer_type": "float", "precision": "2.0", "unit": "$"}, True),
        ("The peak lies between 2007 and 2008.", "[2007, 2008]", {"answer_type": "list"}, True),
        ("[2007,2008]", "[2007, 2008]", {"answer_type": "list"}, True),
        ("[2008, 2007]", "[2007, 2008]", {"answer_type": "list"}, False),
        ("[2007]", "[2007, 2008]", {"answer_type": "list"}, False),
        ("The sign says STOP.", "stop", {"answer_type": "text"}, True),
        ("Stop", "stop", {"answer_type": "text"}, True),
        ("The Stop", "stop", {"answer_type": "text"}, True),
        ("It does not say stop.", "stop", {"answer_type": "text"}, False),
        ("The answer is 1,500", "1500", {"answer_type": "text"}, True),
        ("It is stop or go.", "stop", {"answer_type": "text"}, False),
        ("nonstop", "stop", {"answer_type": "text"}, False),
        ("7", "7", {}, True),
        ("7.25", "7.3", {"precision": "nan", "answer_type": ""}, False),
        ("7.28", "7.3", {"precision": "nan"}, True),
    ],
)
def test_free_answers(reply: str, answer: str, rules: dict[str, str], expected: bool) -> None:
    assert right(reply, answer, **rules) is expected


def test_two_numbers_without_a_conclusion_are_unmatched() -> None:
    rules = free_rules({"answer_type": "integer"}, "4", "7")
    assert score_free("I see 3 and also 4.", "4", rules).how == "unmatched"
    assert score_free("The answer is 3 or 4.", "4", rules).extracted is None
    assert score_free("", "4", rules).how == "unmatched"


@pytest.mark.parametrize(
    ("rules", "answer", "message"),
    [
        ({"answer_type": "complex"}, "1", "question 7: answer_type 'complex'"),
        ({"precision": "two"}, "1.5", "question 7: precision 'two'"),
        ({"answer_type": "integer"}, "many", "question 7: answer 'many' is no number"),
    ],
)
def test_rules_that_cannot_be_are_named(rules: dict[str, str], answer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        free_rules(rules, answer, "7")
