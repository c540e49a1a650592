"""Caption metrics of a stage's `evaluate`: as after training, and weights that are kept by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from evaluated_runs import WHOLE, drawn_scenes, evaluate_override, evaluations, losses, split_override

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.run import RunConfig
from prismcap.evaluate.live import LiveEvaluation
from prismcap.evaluate.run import evaluate_run
from prismcap.scripts.evaluating import measure_of
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
WORDS = "held_out.length.words"


@pytest.fixture(autouse=True, scope="module")
def tiny_runs() -> Iterator[None]:
    with drawn_scenes():
        yield


def with_metrics(*names: str, others: Sequence[dict[str, str]] = ()) -> str:
    return split_override(4, metrics=[*({"name": name} for name in names), *others])


def test_metrics_are_those_of_the_evaluation_after_training_and_change_no_step(make_config: Make) -> None:
    plan = evaluate_override("instruct", every_steps=7, num_items=4, metrics=["length"])
    run_dir = run_training(make_config(with_metrics("length", "bleu"), plan, WHOLE), measure_of=measure_of)
    (record,) = evaluations(run_dir)
    names = {name.split(".")[1] for name in record["figures"]}
    assert "length" in names and "bleu" not in names, "evaluation.metrics has both, the stage asks for one"
    after = evaluate_run(run_dir)["held_out"]
    figures = {name.removeprefix("held_out."): value for name, value in record["figures"].items()}
    assert figures["length.words"]["mean"] > 0
    for name, value in figures.items():
        assert {key: after[name][key] for key in value} == value, name
    plain = run_training(make_config(WHOLE, "name=plain"))
    assert losses(plain) == losses(run_dir)


def test_the_best_weights_by_a_metric(make_config: Make) -> None:
    plan = evaluate_override("instruct", best=WORDS, higher_is_better=False, metrics=["length"])
    run_dir = run_training(make_config(with_metrics("length"), plan), measure_of=measure_of)
    records = evaluations(run_dir)
    values = [record["figures"][WORDS]["mean"] for record in records]
    assert [record["best"] for record in records] == [
        all(value < earlier for earlier in values[:position]) for position, value in enumerate(values)
    ]


def test_a_metric_or_figure_that_the_run_does_not_measure_is_named(make_config: Make) -> None:
    plan = evaluate_override("instruct", metrics=["lenght"])
    with pytest.raises(ConfigError, match=r"no metric 'lenght' in evaluation\.metrics.*'length'"):
        make_config(with_metrics("length"), plan)
    wrong = evaluate_override("instruct", metrics=["length"], best="held_out.length.word")
    with pytest.raises(ConfigError, match=r"evaluate\.best: .*Did you mean 'held_out\.length\.words'"):
        LiveEvaluation.of(make_config(with_metrics("length"), wrong), "instruct")
    unmeasured = evaluate_override("instruct", best=WORDS)
    with pytest.raises(ConfigError, match=r"the items make no figure 'held_out\.length\.words'"):
        LiveEvaluation.of(make_config(with_metrics("length"), unmeasured), "instruct")


def test_a_metric_that_lacks_something_says_so_before_the_first_step(make_config: Make) -> None:
    broken = {"name": "counted_metrics.needy", "broken": "no program"}
    config = make_config(with_metrics(others=[broken]), evaluate_override("instruct", metrics=["needy"]))
    with pytest.raises(DataError, match="the program is not there"):
        LiveEvaluation.of(config, "instruct")
