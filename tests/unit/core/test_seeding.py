import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from save_dist.core.seeding import (
    cell_keys,
    counter_uniform,
    generator,
    normals,
    purpose_tag,
    stream_seed,
    uniforms,
)

MANY = np.arange(100_000)


def draws(*arguments):
    return generator(*arguments).integers(0, 2**63, size=4).tolist()


def test_equal_arguments_give_equal_streams():
    assert draws(7, "noise", 3) == draws(7, "noise", 3)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param((7, "noise", 3), (8, "noise", 3), id="seed"),
        pytest.param((7, "noise", 3), (7, "order", 3), id="purpose"),
        pytest.param((7, "noise", 3), (7, "noise", 4), id="id"),
        pytest.param((7, "noise"), (7, "noise", 0), id="one more id of zero"),
        pytest.param((7, "noise", 3), (7, "noise", 3, 0), id="two ids"),
        pytest.param((7, "noise", 5, 1), (7, "noise", 5 + 2**32), id="32-bit words"),
        pytest.param((7, "noise", 12, 3), (7, "noise", 1, 23), id="digits"),
        pytest.param((2**32, "noise"), (0, "noise"), id="large seed"),
    ],
)
def test_different_arguments_give_different_streams(a, b):
    assert draws(*a) != draws(*b)


def test_values_are_pinned():
    """Another value means that runs and atlases of before can no longer be repeated."""
    assert stream_seed(7, "noise", 3) == 3734157092723359338
    assert purpose_tag("noise") == 16528360768020218679
    keys = cell_keys(1, "noise", 2**63, np.array([0, 5]))
    assert keys.tolist() == [16750877717886066290, 3521305412501997075]
    np.testing.assert_allclose(
        uniforms(keys[:1], 2), [[0.3629278498781454, 0.4817188440143142]], rtol=1e-15
    )
    np.testing.assert_allclose(
        normals(keys[:1], 2), [[-0.9433448910713196, 0.10883533209562302]], rtol=1e-6
    )


def test_stream_seed_fits_a_signed_64_bit_integer():
    seeds = [stream_seed(0, "torch", i) for i in range(200)]
    assert len(set(seeds)) == 200
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    assert max(seeds) > 2**60


def test_other_processes_agree():
    code = (
        "from save_dist.core.seeding import stream_seed, purpose_tag\n"
        "print(stream_seed(7, 'noise', 3), purpose_tag('noise'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(stream_seed(7, "noise", 3)), str(purpose_tag("noise"))]


def test_a_cell_has_the_same_key_whoever_asks():
    keys = cell_keys(3, "noise", 99, np.arange(100))
    np.testing.assert_array_equal(cell_keys(3, "noise", 99, np.arange(40, 60)), keys[40:60])
    np.testing.assert_array_equal(cell_keys(3, "noise", 99, np.array([7, 3])), keys[[7, 3]])
    assert keys.dtype == np.uint64


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((4, "noise", 99), id="seed"),
        pytest.param((3, "counts", 99), id="purpose"),
        pytest.param((3, "noise", 98), id="condition"),
    ],
)
def test_no_key_is_shared(other):
    a, b = cell_keys(3, "noise", 99, MANY), cell_keys(*other, MANY)
    assert np.unique(np.concatenate([a, b])).size == 2 * MANY.size


def test_condition_identities_may_be_any_64_bit_number():
    top = cell_keys(0, "noise", 2**64 - 1, MANY[:3])
    assert np.unique(np.concatenate([top, cell_keys(0, "noise", 0, MANY[:3])])).size == 6


def test_numbers_belong_to_the_key_alone():
    keys = cell_keys(0, "noise", 1, np.arange(50))
    for law in (normals, uniforms):
        np.testing.assert_array_equal(law(keys[20:30], 6), law(keys, 6)[20:30])
        np.testing.assert_array_equal(law(keys, 6)[:, :4], law(keys, 4))


def test_uniforms_are_the_counter_stream():
    keys = cell_keys(0, "noise", 1, np.arange(3))
    expected = [[counter_uniform(key, np.uint64(j)) for j in range(5)] for key in keys]
    np.testing.assert_array_equal(uniforms(keys, 5), expected)


@pytest.mark.parametrize("n", [1, 2, 5], ids=["one", "pair", "odd"])
def test_normals_are_standard_normal_and_uncorrelated(n):
    x = normals(cell_keys(5, "noise", 7, MANY), n)
    assert x.dtype == np.float32
    assert scipy.stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.column_stack([x[:-1], x[1:]]).T)
    assert np.abs(correlation - np.eye(2 * n)).max() < 0.02


def test_uniforms_are_uniform_over_cells_and_counters():
    u = uniforms(cell_keys(5, "noise", 7, MANY), 3)
    assert 0 <= u.min() <= u.max() < 1
    for column in u.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3
    assert (
        scipy.stats.kstest(uniforms(np.array([9], dtype=np.uint64), 50_000)[0], "uniform")[1] > 1e-3
    )


def test_no_cells_and_no_numbers():
    none = np.zeros(0, dtype=np.int64)
    assert normals(cell_keys(0, "noise", 1, none), 3).shape == (0, 3)
    assert uniforms(cell_keys(0, "noise", 1, MANY[:2]), 0).shape == (2, 0)
