import numpy as np
import pytest

from save_dist.core.errors import DataError
from save_dist.evaluation import integration
from save_dist.evaluation.integration import integration_scores


def cells(batch_gap, type_gap=6.0, n=240, n_types=3, n_batches=2):
    """Normal clouds by type, moved by batch."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % n_types
    batches = (np.arange(n) // n_types) % n_batches
    x = rng.normal(size=(n, 5))
    x[:, 0] += type_gap * labels
    x[:, 1] += type_gap * (labels == 1)
    x[:, 2] += batch_gap * batches
    return x, labels, batches


def test_mixed_batches_and_separate_types_score_well():
    x, labels, batches = cells(0.0)
    apart, *_ = cells(8.0)
    good = integration_scores(x, apart, labels, batches)
    assert min(good.nmi, good.ari, good.clisi, good.graph_connectivity) > 0.95
    assert good.ilisi > 0.8 and good.silhouette_batch > 0.9 and good.pcr_comparison > 0.9
    assert good.total == pytest.approx(0.6 * good.biology + 0.4 * good.batch)
    five = (good.nmi + good.ari + good.silhouette_label) / 3
    assert good.paper == pytest.approx(
        0.6 * five + 0.2 * (good.silhouette_batch + good.graph_connectivity)
    )


def test_separate_batches_and_mixed_types_are_seen():
    apart, labels, batches = cells(8.0)
    good, bad = (integration_scores(x, apart, labels, batches) for x in (cells(0.0)[0], apart))
    assert bad.ilisi < 0.05 < good.ilisi
    assert bad.pcr_comparison == 0 and bad.silhouette_batch < good.silhouette_batch - 0.3
    noise = np.random.default_rng(1).normal(size=(len(labels), 5))
    mixed = integration_scores(noise, apart, labels, batches)
    assert mixed.biology < good.biology - 0.3 and mixed.nmi < 0.1


def test_lisi_counts_codes():
    distances = np.tile(np.linspace(0.1, 1.0, 90), (2, 1))
    codes = np.stack([np.zeros(90, dtype=np.int64), np.arange(90) % 3])
    one, three = integration.lisi(distances, codes)
    assert one == pytest.approx(1.0)
    assert 2.8 < three <= 3.0


def test_connectivity_is_the_largest_piece():
    neighbours = np.array([[1], [0], [3], [2], [5], [4]])  # three pairs
    assert integration.graph_connectivity(neighbours, np.array([0, 0, 0, 0, 1, 1])) == 0.75


def test_isolated_labels_are_those_of_fewest_batches():
    x, labels, batches = cells(0.0)
    batches = np.where(labels == 2, 0, batches)
    x[labels == 2] += 40
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert integration.isolated_labels(distances, labels, batches) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda x, a, b: (x, a, 0 * b), "the same batch", id="one batch"),
        pytest.param(lambda x, a, b: (x, 0 * a, b), "the same label", id="one label"),
        pytest.param(lambda x, a, b: (x[:80], a[:80], b[:80]), "80 cells are too few", id="few"),
    ],
)
def test_what_cannot_be_scored(change, message):
    x, labels, batches = change(*cells(0.0))
    with pytest.raises(DataError, match=message):
        integration_scores(x, x, labels, batches)
