"""Generated cells against real ones, by the protocol of the evaluation, in this process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fits import Cells

from save_dist.config.schema import EvaluateConfig
from save_dist.evaluation.protocol import Scores, evaluate
from save_dist.evaluation.tables import CellTable

CONFIG = EvaluateConfig(n_max=500, min_cells=50, seeds=[0, 1, 2], n_workers=1, umap_cells=20)


def score(cells: Cells, generated: CellTable, config: EvaluateConfig = CONFIG) -> Scores:
    """Scores of the combinations that were generated."""
    return evaluate(
        train=cells.train,
        test=cells.test,
        held_out=cells.held_out,
        generated=generated,
        conditions=cells.vocabulary.conditions,
        gene_names=cells.vocabulary.genes.ids,
        config=config,
    )


def table(counts: Any, codes: Sequence[tuple[int, ...]], n_cells: int) -> CellTable:
    """Cells of several combinations, `n_cells` of each, one combination after the other."""
    rows = np.repeat(np.array(codes, dtype=np.int16), n_cells, axis=0)
    return CellTable(np.ascontiguousarray(counts), rows)
