"""What every rank says about itself, and what rank 0 says for all."""

import pytest

from save_dist.cluster.train import JournalReporter
from save_dist.config.schema import (
    FlowConfig,
    ReflowConfig,
    TrainingConfig,
    TransportConfig,
    VaeConfig,
)
from save_dist.tracking.tracker import open_journal, read_records
from save_dist.training.plan import TrainPlan
from save_dist.training.ranks import Ranks


@pytest.fixture
def plan(tmp_path):
    return TrainPlan(
        tmp_path,
        seed=0,
        training=TrainingConfig(),
        vae=VaeConfig(),
        flow=FlowConfig(),
        reflow=ReflowConfig(),
        transport=TransportConfig(),
        vocabulary_hash="v",
    )


def test_every_rank_has_a_journal_and_rank_0_that_of_the_run(plan):
    journal = open_journal(plan.paths.metrics)
    journal.start()
    again = open_journal(plan.paths.metrics)
    for rank in range(2):
        reporter = JournalReporter.of(plan, Ranks(rank, 2), again)
        reporter.metrics("vae", {"train/loss": float(rank)}, 10)
    found = {
        path.name: [(r.run, r.step, r.attempt, r.values) for r in read_records(path, run="vae")]
        for path in (plan.paths.metrics, *(plan.paths.rank_metrics(rank) for rank in range(2)))
    }
    of_0, of_1 = (("vae", 10, 1, {"train/loss": loss}) for loss in (0.0, 1.0))
    assert found == {"metrics.jsonl": [of_0], "0.jsonl": [of_0], "1.jsonl": [of_1]}


def test_a_line_that_a_kill_tore_does_not_swallow_the_next(plan):
    reporter = JournalReporter.of(plan, Ranks(1, 2), open_journal(plan.paths.metrics))
    reporter.metrics("vae", {"train/loss": 1.0}, 10)
    place = plan.paths.rank_metrics(1)
    place.write_bytes(place.read_bytes()[:-20])
    reporter = JournalReporter.of(plan, Ranks(1, 2), open_journal(plan.paths.metrics))
    reporter.metrics("vae", {"train/loss": 2.0}, 10)
    assert [r.values["train/loss"] for r in read_records(place)] == [2.0]
