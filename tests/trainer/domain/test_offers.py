from __future__ import annotations

from pkgutil import resolve_name

import pytest

from neuroweaver.trainer.data.specialization import Criterion
from neuroweaver.trainer.domain.offers import ALGORITHMS, JUDGES
from neuroweaver.trainer.worker.judging.judge import JudgeItem
from neuroweaver.trainer.worker.policy.ppo_trainer import PPOTrainer
from neuroweaver.trainer.worker.process.monitor import SILENT

RUBRIC = [Criterion("quality", "The answer is right.", 1.0)]


@pytest.mark.parametrize("name", JUDGES)
def test_a_built_in_judge_is_found_and_scores(name):
    judge = resolve_name(JUDGES[name])()
    assert judge.name == name
    assert len(judge.score([JudgeItem("When is the oil due?", "Every year.")], RUBRIC, SILENT)) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_is_found_and_trains_as_ppo_does(algorithm):
    assert issubclass(resolve_name(ALGORITHMS[algorithm]), PPOTrainer)
