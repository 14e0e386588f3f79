"""A small world of cells whose truth is known: three types, two conditions, gene modules."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from save_dist.config.schema import EvaluateConfig
from save_dist.evaluation import classify
from save_dist.evaluation.protocol import CellTable, evaluate
from save_dist.vocab.conditions import ConditionVocabulary

TYPES = ("B", "NK", "T")
N_GENES = 60
GENE_NAMES = tuple(f"GENE{i}" for i in range(N_GENES))
COMBINATIONS = tuple((c, t) for c in range(2) for t in range(3))
HELD_OUT = (1, 2)
CONFIG = EvaluateConfig(
    n_max=80,
    min_cells=40,
    seeds=[0, 1],
    n_components=8,
    n_bootstrap=100,
    umap_cells=20,
    responders=["GENE24", "GENE32", "GENE1", "ABSENT"],
)


@dataclass
class World:
    """Draws counts of any combination from the true distribution."""

    types: np.ndarray = field(init=False)
    effect: np.ndarray = field(init=False)
    loadings: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(7)
        self.types = rng.normal(0.8, 1.0, (3, N_GENES))
        self.effect = np.where(np.arange(N_GENES) % 4 == 0, rng.normal(0, 1.2, N_GENES), 0)
        self.loadings = rng.normal(0, 0.5, (3, N_GENES))

    def counts(self, codes, n, rng, strength=1.0, inverse_dispersion=5.0, modules=1.0):
        log = self.types[codes[1]] + strength * codes[0] * self.effect
        log = log + modules * rng.normal(size=(n, 3)) @ self.loadings
        mean = np.exp(log) * rng.lognormal(0, 0.3, (n, 1))
        drawn = rng.poisson(rng.gamma(inverse_dispersion, mean / inverse_dispersion))
        return np.minimum(drawn, 60_000).astype(np.uint16)

    def table(self, combinations, n, seed, **how):
        rng = np.random.default_rng(seed)
        counts = [self.counts(codes, n, rng, **how) for codes in combinations]
        codes = np.repeat(np.array(combinations, dtype=np.int16), n, axis=0)
        return CellTable(np.concatenate(counts), codes)


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def conditions():
    return ConditionVocabulary(
        columns=("condition", "cell_type"),
        categories=(("ctrl", "stim"), TYPES),
        reference={"condition": "ctrl"},
        held_out=({"condition": "stim", "cell_type": "T"},),
    )


@pytest.fixture(scope="session")
def real(world):
    """Training, test and held-out cells."""
    seen = [c for c in COMBINATIONS if c != HELD_OUT]
    return {
        "train": world.table(seen, 160, seed=1),
        "test": world.table(seen, 80, seed=2),
        "held_out": world.table([HELD_OUT], 80, seed=3),
    }


@pytest.fixture(scope="session")
def score(real, conditions):
    """Scores of generated cells against the cells of the world."""

    def run(generated, with_classifiers=False, **other):
        tables = {**real, **other}
        with pytest.MonkeyPatch.context() as patch:  # classifiers take nine tenths of the time
            patch.setattr(classify, "N_FOLDS", 2)
            patch.setitem(classify._TREES, "max_iter", 8)
            if not with_classifiers:
                patch.setattr(classify, "MIN_CELLS", 10**9)
            return evaluate(
                **tables, generated=generated, conditions=conditions, gene_names=GENE_NAMES,
                config=CONFIG,
            )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def perfect(world, score):
    """Scores of fresh draws from the truth."""
    return score(world.table(COMBINATIONS, 100, seed=4), with_classifiers=True)
