from __future__ import annotations

from neuroweaver.trainer.domain.config import DEFAULTS, unfit, with_defaults
from neuroweaver.v1 import trainer_pb2 as pb


def test_unset_fields_take_the_documented_defaults_and_set_ones_stay() -> None:
    config = with_defaults(pb.TrainingConfig(lora_r=4, learning_rate=0.5), context_length=0)

    assert config.lora_r == 4
    assert config.learning_rate == 0.5
    assert config.lora_alpha == DEFAULTS.lora_alpha
    assert config.enable_rlaif is True
    assert config.algorithm == pb.ALGORITHM_PPO


def test_a_zero_that_the_caller_gave_is_not_a_missing_value() -> None:
    config = with_defaults(
        pb.TrainingConfig(lora_dropout=0.0, enable_rlaif=False, target_kl=0.0), context_length=0
    )

    assert (config.lora_dropout, config.enable_rlaif, config.target_kl) == (0.0, False, 0.0)


def test_the_default_sequence_length_fits_the_base_model() -> None:
    assert with_defaults(pb.TrainingConfig(), context_length=512).max_seq_length == 512
    assert with_defaults(pb.TrainingConfig(), context_length=8192).max_seq_length == 2048


def test_a_sequence_beyond_the_context_is_named() -> None:
    config = with_defaults(pb.TrainingConfig(max_seq_length=4096, max_new_tokens=4096), context_length=2048)

    assert [field for field, _ in unfit(config, context_length=2048)] == [
        "config.max_seq_length",
        "config.max_new_tokens",
    ]
