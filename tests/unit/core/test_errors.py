import pickle

import pytest

from save_dist.core import errors
from save_dist.core.errors import SaveDistError, listed


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.VocabMismatchError, 3),
        (errors.CheckpointError, 3),
        (errors.AtlasError, 3),
        (errors.DivergedError, 3),
        (errors.PartialError, 4),
        (errors.InfrastructureError, 5),
        (errors.SaveDistError, 5),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_error_names_the_exit_code_of_its_job(kind, code):
    assert issubclass(kind, SaveDistError)
    assert kind("x").exit_code == code


def test_bad_settings_and_data_are_value_errors_too():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DataError, ValueError)
    assert not issubclass(errors.CheckpointError, ValueError)


def test_errors_travel_between_processes():
    again = pickle.loads(pickle.dumps(errors.AtlasError("part 3 is torn")))
    assert type(again) is errors.AtlasError
    assert str(again) == "part 3 is torn"


@pytest.mark.parametrize(
    ("values", "n_shown", "text"),
    [
        pytest.param([], 2, "", id="none"),
        pytest.param(["a", "b"], 2, "a, b", id="all"),
        pytest.param(["a", "b", "c", "d"], 2, "a, b and 2 more", id="some"),
        pytest.param(range(1, 4), 2, "1, 2 and 1 more", id="numbers"),
        pytest.param(iter("xyz"), 5, "x, y, z", id="iterator"),
    ],
)
def test_listed(values, n_shown, text):
    assert listed(values, n_shown) == text
