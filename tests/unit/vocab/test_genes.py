import json

import numpy as np
import pytest

from save_dist.core.errors import DataError, VocabMismatchError
from save_dist.vocab.genes import GeneVocabulary


def test_positions_follow_the_vocabulary_not_the_data():
    genes = GeneVocabulary(("C", "A"))
    positions = genes.positions_in(["A", "B", "C"])
    assert positions.dtype == np.int64
    assert positions.tolist() == [2, 0]


def test_order_and_ids_are_the_identity():
    genes = GeneVocabulary(("A", "B"))
    assert genes.hash == GeneVocabulary(("A", "B")).hash
    assert genes.hash != GeneVocabulary(("B", "A")).hash
    assert genes.hash != GeneVocabulary(("AB",)).hash
    assert len(genes) == 2


def test_json_round_trip():
    genes = GeneVocabulary(("A", "B"))
    assert GeneVocabulary.from_json(json.loads(json.dumps(genes.to_json()))) == genes


def test_missing_genes_are_counted_and_the_first_named():
    genes = GeneVocabulary(tuple(f"g{i}" for i in range(9)))
    with pytest.raises(
        VocabMismatchError,
        match=r"7 of the 9 vocabulary genes .* the 2 genes given: g1, g2, g3, g4, g5 and 2 more",
    ):
        genes.positions_in(["g0", "g8"])


def test_a_gene_twice_in_the_data_has_no_position():
    with pytest.raises(VocabMismatchError, match=r"more than once in the data: A;"):
        GeneVocabulary(("A", "B")).positions_in(["A", "B", "A"])
    assert GeneVocabulary(("A",)).positions_in(["B", "A", "B"]).tolist() == [1]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        pytest.param((), "is empty", id="none"),
        pytest.param(("A", "B", "A"), "lists A more than once", id="twice"),
    ],
)
def test_refuses_ids_that_cannot_be_positions(ids, text):
    with pytest.raises(DataError, match=text):
        GeneVocabulary(ids)
