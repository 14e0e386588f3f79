import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from benchmarks.quality.scvi_peer import ScviPeer, _Budget
from save_dist.core.errors import DataError

# not pytest.importorskip: the import takes seconds, and not every test here needs it
needs_scvi = pytest.mark.skipif(
    find_spec("scvi") is None, reason="scvi-tools is absent; pip install '.[peers]'"
)

COLUMNS, SIZES = ("condition", "cell_type"), (2, 3)
HELD_OUT = (1, 2)
LIBRARY = {(0, 0): 400, (0, 1): 800, (0, 2): 200, (1, 0): 400, (1, 1): 800}
N_GENES = 40


def profile(combination):
    """Five genes of the condition and five of the type stand out."""
    rates = np.ones(N_GENES)
    rates[5 * combination[0] :][:5] = 8
    rates[20 + 5 * combination[1] :][:5] = 8
    return rates / rates.sum()


@pytest.fixture(scope="module")
def cells():
    """Counts and codes of 120 cells of every combination but the held-out one."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.array(list(LIBRARY)), 120, axis=0)
    means = [rng.lognormal(np.log(LIBRARY[c]), 0.1) * profile(c) for c in map(tuple, codes)]
    return rng.poisson(means).astype(np.uint16), codes


@pytest.fixture(scope="module")
def peer(cells, tmp_path_factory):
    """A short fit, made in a folder of its own that must stay empty."""
    counts, codes = cells
    folder = tmp_path_factory.mktemp("fit")
    before = torch.get_num_threads(), torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        peer = ScviPeer.fit(counts, codes, SIZES, COLUMNS, 0, cpu_seconds=60, max_epochs=40)
    assert not list(folder.iterdir())
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    return peer


def asked(combination, n=200):
    return np.tile(np.array(combination), (n, 1))


def close_to(counts, combination):
    """Correlation of the mean profile with the true one."""
    return np.corrcoef(counts.mean(0), profile(combination))[0, 1]


@needs_scvi
@pytest.mark.slow
def test_cells_from_the_prior(peer):
    for combination, library in LIBRARY.items():
        made = peer.sample(asked(combination), seed=1)
        assert made.shape == (200, N_GENES)
        assert made.dtype == np.uint16
        assert np.median(made.sum(1)) == pytest.approx(library, rel=0.1)
        ranked = sorted(LIBRARY, key=lambda other: close_to(made, other))
        assert ranked[-1] == combination


@needs_scvi
@pytest.mark.slow
def test_a_held_out_combination_borrows_its_library(peer):
    made = peer.sample(asked(HELD_OUT), seed=1)
    assert set(peer._training_rows(asked(HELD_OUT), 0, "any")) <= set(range(240, 600))
    assert close_to(made, HELD_OUT) > close_to(made, (0, 2))


@needs_scvi
@pytest.mark.slow
def test_seeds_decide(peer, cells):
    counts, codes = cells
    for draw in (
        lambda seed: peer.sample(asked((0, 1)), seed),
        lambda seed: peer.sample_posterior(asked((0, 1)), seed),
        lambda seed: peer.transfer(counts[:50], codes[:50], asked((1, 0), 50), seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


@needs_scvi
@pytest.mark.slow
def test_equal_epochs_give_equal_weights(cells):
    counts, codes = cells
    made = [
        ScviPeer.fit(counts, codes, SIZES, COLUMNS, seed, 60, max_epochs=2).sample(codes, 0)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


@needs_scvi
@pytest.mark.slow
def test_transfer_changes_the_condition_and_keeps_the_rest(peer, cells):
    counts, codes = cells
    control = (codes == (0, 2)).all(1)
    n = int(control.sum())
    made = peer.transfer(counts[control], codes[control], asked(HELD_OUT, n), seed=1)
    assert close_to(made, HELD_OUT) > close_to(made, (0, 2))
    assert np.corrcoef(made.sum(1), counts[control].sum(1))[0, 1] > 0.5


@needs_scvi
@pytest.mark.slow
def test_posterior_of_a_combination_without_cells(peer):
    assert close_to(peer.sample_posterior(asked((1, 1)), seed=1), (1, 1)) > 0.95
    with pytest.raises(DataError, match=re.escape("combination [1, 2] has no training cells")):
        peer.sample_posterior(asked(HELD_OUT), seed=1)


@needs_scvi
@pytest.mark.slow
def test_one_column_and_a_last_minibatch_of_one_cell(cells):
    counts, codes = cells[0][:129].copy(), cells[1][:129, 1:]
    counts[0] = 0  # a cell without counts is trained on like any other
    peer = ScviPeer.fit(counts, codes, (3,), ("cell_type",), 0, 60, max_epochs=1)
    assert peer.n_epochs == 1
    assert peer.sample(np.array([[2], [0]]), seed=0).shape == (2, N_GENES)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param([[0, 3]], id="MASK"),
        pytest.param([[-1, 0]], id="negative"),
        pytest.param([[0]], id="a column short"),
    ],
)
def test_codes_that_do_not_fit(codes):
    with pytest.raises(DataError, match=re.escape("do not fit columns of (2, 3) categories")):
        ScviPeer.fit(np.ones((1, 4), np.uint16), np.array(codes), SIZES, COLUMNS, 0, 1)


class Clock:
    """A process clock that the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


class Plan:
    n_epochs_kl_warmup = 400


class Trainer:
    should_stop = False


@pytest.mark.parametrize(
    ("max_epochs", "warm_up", "n_epochs", "spent"),
    [
        pytest.param(None, 5, 9, 19, id="the budget decides"),
        pytest.param(6, 3, 9, 19, id="fewer epochs wanted"),
    ],
)
def test_budget(monkeypatch, max_epochs, warm_up, n_epochs, spent):
    """The first epoch takes 3 s, all others 2 s; 20 s are given."""
    clock, plan, trainer = Clock(), Plan(), Trainer()
    monkeypatch.setattr("benchmarks.quality.scvi_peer.time.process_time", clock)
    budget = _Budget(20, max_epochs)
    clock.now = 1.0
    while not trainer.should_stop:
        clock.now += 2
        budget.after_epoch(trainer, plan)
    assert plan.n_epochs_kl_warmup == warm_up
    assert (budget.n_epochs, budget.spent()) == (n_epochs, spent)
