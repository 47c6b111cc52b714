"""Ask and tell without Ray: budgets, resuming, failures, finalists; the score is a plain function."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.places import RunsDir
from orchestrator.search.running.display import StudyDisplay
from orchestrator.search.running.driver import Driver, Proposal
from orchestrator.search.running.growth import Growth
from orchestrator.search.running.runner import Climb, TrialRunner
from orchestrator.search.study.configurations import Configurations, make_sampler
from orchestrator.search.study.ledger import Ledger
from orchestrator.search.study.marks import is_first, mark_first
from orchestrator.search.study.options import loss_rung
from orchestrator.search.study.study import Study
from orchestrator.search.study.trial import Rung, Trial, UsedJob
from orchestrator.search.study.trial_plans import PlansOf, plans_by_point
from workloads.config import DataSpec
from workloads.config.load import validate
from workloads.errors import ConfigError, DamagedFileError
from workloads.places import JobDir

BASE: dict[str, Any] = {
    "name": "b",
    "data": {"kind": "embedded", "image_size": 8, "class_conditional": True},
    "model": {"kind": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "strategy": {"kind": "independent", "num_experts": 2},
    "training": {"images": 64, "batch_size": 32},
    "evaluation": "demo",
}
SPEC = DataSpec(fingerprint="f", channels=1, image_size=8, num_classes=10)


def make_study(**changes: Any) -> Study:
    raw = {
        "name": "s",
        "base": BASE,
        "space": {
            "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
            "strategy.cuts": {"boundaries": {"num_experts": [2, 3], "step": 100}},
        },
        "budget": {"num_configurations": 12},
    }
    return validate(Study, raw | changes)


def identity(study: Study) -> dict[str, Any]:
    return study.identity(Configurations(study).first()[1])


def make_driver(study: Study, folder: Path, **options: Any) -> Driver:
    ledger = Ledger(RunsDir(folder), study.name)
    plans_of: PlansOf = plans_by_point(study, lambda _: SPEC)
    sampler = make_sampler(study, num_known=len(ledger.trials()))
    given = {"max_failures": 0, "predict": lambda _: None} | options
    return Driver(study, ledger, sampler, plans_of, **given)


def score(trial: Trial) -> float:
    """Best at a learning rate of 1e-3 and a first cut at 300."""
    rate, cut = trial.values["training.learning_rate"], trial.values["strategy.cuts"][0]
    return (math.log10(rate) + 3) ** 2 + ((cut - 300) / 300) ** 2


def finish(trial: Trial, rung: str = "full") -> Trial:
    return trial.model_copy(update={"state": "finished", "rungs": (Rung(name=rung, value=score(trial)),)})


def carry_out(driver: Driver, limit: int = 1000) -> list[Trial]:
    done = []
    while len(done) < limit and (trial := driver.ask()) is not None:
        driver.tell(finish(trial))
        done.append(driver.trials[trial.number])
    return done


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_search_goes_on_with_the_same_points_and_none_twice(sampler: str, tmp_path: Path) -> None:
    study = make_study(sampler=sampler)
    first = make_driver(study, tmp_path)
    carry_out(first, 5)
    begun = first.ask()
    assert begun is not None  # and now the machine goes away
    second = make_driver(study, tmp_path)
    rest = carry_out(second)
    assert rest[0].number == begun.number
    assert rest[0].values == begun.values
    assert [trial.number for trial in second.trials.values()] == list(range(12))
    assert len({str(trial.values) for trial in second.trials.values()}) == 12
    assert "12 configurations is used up" in second.ended_by
    assert make_driver(study, tmp_path).ask() is None


def test_a_random_search_does_not_depend_on_being_interrupted(tmp_path: Path) -> None:
    study = make_study()
    whole = [trial.values for trial in carry_out(make_driver(study, tmp_path / "a"))]
    carry_out(make_driver(study, tmp_path / "b"), 4)
    carry_out(make_driver(study, tmp_path / "b"), 3)
    carry_out(make_driver(study, tmp_path / "b"))
    assert [trial.values for trial in Ledger(RunsDir(tmp_path / "b"), "s").trials()] == whole


def test_the_model_finds_what_chance_does_not(tmp_path: Path) -> None:
    """Over seeds, the best of 40 by TPE is nearer the optimum than the best of 40 at random."""

    def best(sampler: str, seed: int) -> float:
        study = make_study(name=f"{sampler}-{seed}", sampler=sampler, seed=seed, budget={"num_configurations": 40})
        return min(score(trial) for trial in carry_out(make_driver(study, tmp_path)))

    tpe, random = (sorted(best(sampler, seed) for seed in range(5)) for sampler in ("tpe", "random"))
    assert tpe[2] < random[2]


def test_two_objectives_give_a_front(tmp_path: Path) -> None:
    space = {
        "model.hidden_size": {"choice": [16, 32, 64, 128]},
        "training.learning_rate": {"log_uniform": [1e-5, 1e-2]},
    }
    for sampler in ("tpe", "nsga2"):
        study = make_study(name=sampler, sampler=sampler, space=space, objectives=["score", "num_parameters"])
        driver = make_driver(study, tmp_path)
        while (trial := driver.ask()) is not None:
            size, rate = trial.values["model.hidden_size"], trial.values["training.learning_rate"]
            rung = Rung(name="full", value=1 / size + (math.log10(rate) + 3) ** 2)
            driver.tell(trial.model_copy(update={"state": "finished", "rungs": (rung,), "num_parameters": size**2}))
        assert len(driver.trials) == 12


def test_the_budget_of_images_counts_shared_jobs_once(tmp_path: Path) -> None:
    """Cuts of one boundary on multiples of 250: 3 configurations with 6 jobs of 64 images; a budget of 4 jobs is 2."""
    space = {"strategy.cuts": {"boundaries": {"num_experts": 2, "step": 250}}}
    study = make_study(space=space, sampler="grid", budget={"images_trained": 4 * 64})
    driver = make_driver(study, tmp_path)
    done = []
    while (trial := driver.ask()) is not None:
        jobs = plans_by_point(study, lambda _: SPEC)(trial.values, trial.number)[0].jobs
        used = [
            UsedJob(
                key=job.key,
                name=job.name,
                interval=job.interval,
                architecture="a",
                label="a",
                images=64,
                num_parameters=1,
                macs=1,
                trained=True,
            )
            for job in jobs
        ]
        driver.tell(trial.model_copy(update={"state": "finished", "jobs": tuple(used)}))
        done.append(trial)
    assert len(done) == 2
    assert "budget" in driver.ended_by or "every configuration" in driver.ended_by


def test_too_many_failures_end_the_search_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    study = make_study()
    driver = make_driver(study, tmp_path, max_failures=1)
    for _ in range(2):
        trial = driver.ask()
        assert trial is not None
        driver.tell(trial.model_copy(update={"state": "failed", "error": "no"}))
    assert driver.ask() is None
    assert "more than 1 configurations failed" in driver.ended_by
    driver._ledger.begin(identity(study))
    again = make_driver(study, tmp_path, max_failures=1)
    assert [asked.number for _ in range(2) if (asked := again.ask())] == [0, 1]


def test_what_is_proposed_comes_first(tmp_path: Path) -> None:
    wanted = {"training.learning_rate": 1e-3, "strategy.cuts": [300]}
    driver = make_driver(make_study(), tmp_path, proposals=[Proposal(wanted, 0.25), Proposal(wanted, 0.25)])
    first, second = driver.ask(), driver.ask()
    assert first is not None
    assert second is not None
    assert (first.origin, first.predicted_loss, first.values) == ("planner", 0.25, wanted)
    assert second.origin == "sampler"


def test_what_is_reported_has_the_loss_it_is_judged_by(tmp_path: Path) -> None:
    """Whoever is stopped at a report keeps what was reported, and the sampler learns from its last rung."""

    class Measured(Climb):
        """Trains nothing; its loss is four times the share that is left."""

        def train(self, share: float) -> None:
            self.share = share

        def measure_loss(self, share: float) -> float:
            self._add(Rung(name=loss_rung(share), value=4 * (1 - share)))
            return 4 * (1 - share)

        def measure_costs(self) -> None: ...

        def score(self, rung: str) -> None: ...

    study = make_study(ladder={"brief": [0.25, 0.5], "held_out": {}, "finalists": 1})
    reported: list[tuple[list[float], float | None]] = []

    def report(trial: Trial, share: float | None, loss: float | None) -> None:
        reported.append(([rung.value for rung in trial.rungs], loss))

    Measured(TrialRunner(study, RunsDir(tmp_path), None), Trial(number=0, values={}), report).all_rungs()
    assert reported == [([3.0], 3.0), ([3.0, 2.0], 2.0), ([3.0, 2.0, 0.0], 0.0)]


def test_a_damaged_mark_of_who_began_a_job_is_named_and_exceeds_no_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = JobDir(tmp_path).first_for
    assert not is_first(tmp_path, "s/1")
    mark_first(tmp_path, "s/1")
    mark_first(tmp_path, "s/2")
    assert [is_first(tmp_path, f"s/{number}") for number in (1, 2)] == [True, False]
    whole, said = mark.read_bytes(), 0
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        mark.write_bytes(content)
        caplog.clear()
        assert is_first(tmp_path, "s/1")
        if is_first(tmp_path, "s/2"):  # not for a space that became another
            assert f"{mark} is damaged; its images count as trained for configuration s/2" in caplog.text
            said += 1
    assert said > 7 * len(whole)
    mark.write_text("s/1")  # as earlier versions wrote it
    assert [is_first(tmp_path, f"s/{number}") for number in (1, 2, 11)] == [True, False, False]


def test_what_a_configuration_warns_of_reaches_the_drivers_terminal_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is carried out in a process whose output nobody sees."""
    study, runs = make_study(), RunsDir(tmp_path)

    def all_rungs(climb: Climb) -> None:
        for text in ("data is odd", "data is odd", f"expert_{climb.trial.number} was restarted"):
            logging.getLogger("workloads.data").warning("%s", text)
        logging.getLogger("somebody.else").warning("not ours")

    monkeypatch.setattr(Climb, "all_rungs", all_rungs)
    Ledger(runs, study.name).begin({"name": study.name})
    with StudyDisplay(study, runs.study(study.name), [], 2):
        for number in (0, 1):
            TrialRunner(study, runs)(Trial(number=number, values={}), lambda *_: None)
    # What a command that ran in this process before has set up would tell them as well.
    said = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines() if "note: configuration" in line]
    assert said == [
        "note: configuration 0: data is odd",
        "note: configuration 0: expert_0 was restarted",
        "note: configuration 1: expert_1 was restarted",
    ]
    Ledger(runs, study.name).begin({"name": study.name})  # the next call
    with StudyDisplay(study, runs.study(study.name), [], 2):
        pass
    assert "note: " not in capsys.readouterr().err


def test_finalists_are_the_best_of_the_rung_before(tmp_path: Path) -> None:
    study = make_study(ladder={"quick": {"num_samples": 100}, "finalists": 3})
    driver = make_driver(study, tmp_path)
    while (trial := driver.ask()) is not None:
        driver.tell(finish(trial, "quick"))
    expected = sorted(driver.trials.values(), key=score)[:3]
    assert [trial.number for trial in driver.finalists()] == [trial.number for trial in expected]
    top = driver.finalists()[0]
    driver.update(top.model_copy(update={"rungs": (*top.rungs, Rung(name="full", value=1.0))}))
    assert [trial.number for trial in driver.finalists()] == [trial.number for trial in expected[1:]]


def test_a_damaged_record_is_set_aside_and_its_point_drawn_again(tmp_path: Path) -> None:
    study = make_study()
    carry_out(make_driver(study, tmp_path))
    ledger = Ledger(RunsDir(tmp_path), "s")
    lost = ledger.trials()[3]
    file = ledger.dir.trial_file(3)
    file.write_text(file.read_text()[:40])
    driver = make_driver(study, tmp_path)
    assert carry_out(driver)[0].values == lost.values
    assert len(driver.trials) == 12


def test_a_study_without_its_description_is_refused(tmp_path: Path) -> None:
    carry_out(make_driver(make_study(), tmp_path))
    ledger = Ledger(RunsDir(tmp_path), "s")
    ledger.begin(identity(make_study()))
    file = ledger.dir.description_file
    file.write_text(file.read_text().replace('"name": "s"', '"name": "t"'))
    with pytest.raises(DamagedFileError, match=r"study\.json is damaged: it was changed .* name=s-2"):
        ledger.require_same(identity(make_study()))
    file.unlink()
    with pytest.raises(ConfigError, match=r"study\.json is missing, and configurations are there; .* name=s-2"):
        ledger.require_same(identity(make_study()))


def test_another_description_is_refused_with_what_changed(tmp_path: Path) -> None:
    ledger = Ledger(RunsDir(tmp_path), "s")
    ledger.begin(identity(make_study()))
    ledger.require_same(identity(make_study(budget={"num_configurations": 99}, sampler="tpe", max_concurrent=7)))
    other = make_study(space={"training.learning_rate": {"log_uniform": [1e-5, 1e-3]}}, base=BASE)
    with pytest.raises(ConfigError, match=r"space\.training\.learning_rate\.log_uniform was .* name=s-2") as raised:
        ledger.require_same(identity(other))
    assert "\n" not in str(raised.value)
    protocol = make_study(base=BASE | {"evaluation": {"name": "demo", "num_samples": 7}})
    with pytest.raises(ConfigError, match=r"evaluation\.num_samples was 1000 and is 7"):
        ledger.require_same(identity(protocol))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(RunsDir(tmp_path), "s")
    other = Ledger(RunsDir(tmp_path), "s")
    with ledger.locked(), pytest.raises(ConfigError, match=r"study s is being run by process \d+"), other.locked():
        pass
    with other.locked():
        pass


def remix_trial(number: int, num_experts: int, num_bases: int, state: str = "finished") -> Trial:
    values = {"strategy.num_experts": num_experts, "strategy.num_bases": num_bases}
    return Trial.model_validate({"number": number, "values": values, "state": state, "runs": [f"run-{number}"]})


def test_a_remix_grows_from_the_largest_that_fits(tmp_path: Path) -> None:
    base = BASE | {"strategy": {"kind": "remix", "num_experts": 4, "num_bases": 2}}
    space = {"strategy.num_experts": {"choice": [2, 4, 6, 8]}, "strategy.num_bases": {"int": [1, 4]}}
    study = make_study(base=base, space=space, warm_growth=0.5)
    growth = Growth(study, RunsDir(tmp_path))
    known: Sequence[Trial] = [
        remix_trial(0, 2, 1),
        remix_trial(1, 4, 2),
        remix_trial(2, 6, 2),  # its cuts are not among those of eight
        remix_trial(3, 8, 4, "failed"),
        remix_trial(4, 4, 4),  # has more bases than three
    ]
    grown = growth.grow(remix_trial(9, 8, 3, "running"), list(known))
    assert grown.grown_from == 1
    assert grown.values_with_growth["initial_weights"] == str(tmp_path / "run-1")
    assert grown.values_with_growth["training.images"] == 32
    assert growth.grow(remix_trial(9, 2, 1, "running"), list(known)).grown_from is None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"budget": {}}, "budget: missing"),
    "unknown budget": ({"budget": {"num_configuration": 3}}, "did you mean 'num_configurations'?"),
    "protocol in the space": ({"space": {"evaluation.seed": {"int": [0, 9]}}}, "compares under one protocol"),
    "early stop without loss": ({"early_stop": {"kind": "asha"}}, "give ladder.held_out"),
    "brief without loss": ({"ladder": {"brief": [0.5]}}, "give ladder.held_out"),
    "brief falls": ({"ladder": {"brief": [0.5, 0.25], "held_out": {}}}, "ladder.brief must rise"),
    "finalists of nothing": ({"ladder": {"finalists": 2}}, "chosen by a cheaper score"),
    "one objective": ({"sampler": "nsga2"}, "several objectives"),
    "no score": ({"objectives": ["macs"]}, "it must hold score"),
    "growth with seeds": ({"warm_growth": 0.5, "seeds": [0, 1]}, "takes a single seed"),
}


@pytest.mark.parametrize(("changes", "expected"), BAD.values(), ids=BAD.keys())
def test_mistakes_are_one_sentence(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_study(**changes)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
