"""Genes whose response is known: how high they stand among the predicted changes.

A combination has a row for every gene asked for, so that a reader sees at once whether, say, the
interferon genes lead the predicted response of every type in which they lead the real one.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from save_dist.evaluation import baselines, catalogue
from save_dist.evaluation.combination import CombinationResult
from save_dist.evaluation.scores import Responder
from save_dist.evaluation.tables import Codes
from save_dist.evaluation.tasks import TaskMaker


def rank_responders(
    results: Mapping[Codes, CombinationResult], maker: TaskMaker, asked: Sequence[str]
) -> Iterator[Responder]:
    """Real and predicted change of the genes asked for, in every combination with a reference.

    Changes are taken as everywhere (`change.py`): real ones against real test cells of the
    reference, predicted ones against its training cells. Genes that are not compared are left out.
    """
    compared = [maker.gene_names[i] for i in maker.space.genes.tolist()]
    places = {gene: compared.index(gene) for gene in asked if gene in compared}
    for codes, result in sorted(results.items()):
        for column in baselines.reference_codes(maker.conditions) if places else ():
            reference = maker.reference(codes, column)
            if reference is None or result.n_used == 0:
                continue
            real = result.real.mean - reference.test.mean
            predicted = result.generated.mean - reference.train.mean
            real_rank, predicted_rank = map(ranks_of_change, (real, predicted))
            for gene, i in places.items():
                yield Responder(
                    condition=maker.conditions.decode_one(codes),
                    column=reference.column,
                    group=catalogue.HELD_OUT if codes in maker.real.held_out else catalogue.SEEN,
                    gene=gene,
                    real_change=float(real[i]),
                    predicted_change=float(predicted[i]),
                    real_rank=int(real_rank[i]),
                    predicted_rank=int(predicted_rank[i]),
                )


def ranks_of_change(change: Float64[ndarray, " gene"]) -> Int64[ndarray, " gene"]:
    """Rank of every gene, 1 for the largest change in either direction."""
    order = np.argsort(-np.abs(change), kind="stable")
    out = np.empty(change.size, dtype=np.int64)
    out[order] = np.arange(1, change.size + 1)
    return out
