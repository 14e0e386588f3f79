"""Expression cell by cell of the genes that change most: control, real and generated cells.

What Figs 4 and 13 of the SAVE paper show as violins.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from save_dist.evaluation import catalogue
from save_dist.evaluation.change import Sides, most_significant
from save_dist.evaluation.combination import Shared
from save_dist.evaluation.scores import TopGenes
from save_dist.evaluation.tables import Counts

N_GENES = 5
"""Genes shown per combination."""
N_CELLS = 300
"""Cells per side at most."""


@dataclass(frozen=True)
class ExpressionJob:
    """Find the genes of largest real change of one combination, and keep their values.

    Args:
        condition: value per column.
        column: the column in which the control differs.
        is_held_out: whether training never saw the combination.
        control: real test cells at the reference of the column.
        real: real cells of the combination.
        generated: cells of the model.
        gene_names: names of the vocabulary's genes.
    """

    condition: Mapping[str, str]
    column: str
    is_held_out: bool
    control: Counts
    real: Counts
    generated: Counts
    gene_names: tuple[str, ...]

    def run(self, shared: Shared) -> TopGenes:
        """Real cells alone say which genes these are."""
        space = shared.space
        control, real, generated = map(space.read, (self.control, self.real, self.generated))
        top = most_significant(Sides(real.moments, control.moments), N_GENES)
        sides = {
            catalogue.CONTROL: control,
            catalogue.REAL: real,
            catalogue.GENERATED: generated,
        }
        values = {}
        for name, cells in sides.items():
            assert cells.log is not None, "made from counts"
            values[name] = np.ascontiguousarray(cells.log[:N_CELLS, top])
        genes = tuple(self.gene_names[i] for i in space.genes[top].tolist())
        return TopGenes(self.condition, self.column, self.is_held_out, genes, values)
