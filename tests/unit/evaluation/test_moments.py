import numpy as np

from save_dist.evaluation.moments import moments


def test_moments_of_known_values():
    found = moments(np.array([[0, 2], [4, 2]], dtype=np.float32))
    np.testing.assert_allclose(found.mean, [2, 2])
    np.testing.assert_allclose(found.variance, [8, 0])
    np.testing.assert_allclose(found.noise, [4, 0])
    assert found.n_cells == 2
