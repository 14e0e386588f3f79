"""What each combination is compared with: its cells, and the training cells of its baselines."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from save_dist.core import seeding
from save_dist.evaluation import baselines, catalogue
from save_dist.evaluation.case import Case, Reference
from save_dist.evaluation.combination import CombinationTask
from save_dist.evaluation.expression import ExpressionJob
from save_dist.evaluation.moments import Moments
from save_dist.evaluation.picture import PictureJob
from save_dist.evaluation.space import MIN_CELLS, Space, TrainCells
from save_dist.evaluation.tables import CellTable, Codes, Counts
from save_dist.vocab.conditions import ConditionVocabulary

POOL = 4
"""Cells sent along for drawing, as a multiple of n_max: enough for seeds to differ."""
N_EXPRESSED = 6
"""Combinations whose most changed genes are shown, held-out ones first."""

Rows = Int64[ndarray, " row"]


@dataclass(frozen=True)
class Real:
    """Real cells kept from training: seen combinations first, then held-out ones.

    Args:
        test: cells of seen combinations.
        unseen: cells of held-out ones.
        rows: rows of every combination, those of `unseen` behind those of `test`.
        held_out: combinations that count as held out.
    """

    test: CellTable
    unseen: CellTable
    rows: Mapping[Codes, Rows]
    held_out: frozenset[Codes]

    @classmethod
    def of(cls, test: CellTable, held_out: CellTable) -> "Real":
        """Both tables as one; a combination in `held_out` counts as held out."""
        rows = test.rows_by_combination()
        unseen = held_out.rows_by_combination()
        for codes, behind in unseen.items():
            here = rows.get(codes, np.empty(0, dtype=np.int64))
            rows[codes] = np.concatenate([here, behind + test.n_cells])
        order = sorted(rows, key=lambda codes: (codes in unseen, codes))
        return cls(test, held_out, {codes: rows[codes] for codes in order}, frozenset(unseen))

    def read(self, rows: Rows) -> Counts:
        """Counts of the cells at `rows`, in their order."""
        is_unseen = rows >= self.test.n_cells
        parts = (
            self.test.read(rows[~is_unseen]),
            self.unseen.read(rows[is_unseen] - self.test.n_cells),
        )
        place = np.argsort(np.argsort(is_unseen, kind="stable"), kind="stable")
        counts: ndarray = np.concatenate(parts)[place]
        return counts

    def take(self, rows: Rows) -> CellTable:
        """The cells at `rows`, in memory."""
        codes = np.concatenate([self.test.codes, self.unseen.codes])
        return CellTable(self.read(rows), codes[rows])


@dataclass(frozen=True)
class Rival:
    """Cells of another method, and their rows by combination."""

    cells: CellTable
    rows: Mapping[Codes, Rows]

    @classmethod
    def of(cls, cells: CellTable) -> "Rival":
        """The cells, with their rows looked up."""
        return cls(cells, cells.rows_by_combination())


@dataclass(frozen=True)
class TaskMaker:
    """Makes the tasks, one at a time.

    Args:
        train: training cells.
        known: the same in the space.
        real: test and held-out cells.
        generated: cells of the model.
        space: where cells are compared.
        conditions: what the codes mean.
        gene_names: names of the vocabulary's genes.
        n_max: cells per side at most.
        seed: of the choice of cells that are sent along.
        generated_rows: rows of every generated combination.
        rivals: other methods by name.
    """

    train: CellTable
    known: TrainCells
    real: Real
    generated: CellTable
    space: Space
    conditions: ConditionVocabulary
    gene_names: tuple[str, ...]
    n_max: int
    seed: int
    generated_rows: Mapping[Codes, Rows]
    rivals: Mapping[str, Rival]
    _test_moments: dict[Codes, tuple[Moments, tuple[Moments, Moments]]] = field(
        default_factory=dict, repr=False
    )

    def combinations(self) -> list[Codes]:
        """Combinations with real and generated cells, in order."""
        return [codes for codes in self.real.rows if codes in self.generated_rows]

    def tasks(self) -> Iterator[CombinationTask]:
        """One task per combination, made when asked for."""
        for codes in self.combinations():
            yield CombinationTask(self._case(codes))

    def picture(self, n_cells: int) -> PictureJob:
        """At most `n_cells`, half of them real, with equal numbers per combination."""
        rng = seeding.generator(self.seed, "picture_cells")
        pairs = []
        for codes in self.combinations():
            sides = (self.real.rows[codes], self.generated_rows[codes])
            n = min(len(rows) for rows in sides)
            pairs.append(np.stack([rng.permutation(rows)[:n] for rows in sides]))
        chosen = rng.permutation(np.concatenate(pairs, axis=1), axis=1)[:, : n_cells // 2]
        real, made = self.real.take(chosen[0]), self.generated.take(chosen[1])
        cells = CellTable(
            np.concatenate([real.counts, made.counts]), np.concatenate([real.codes, made.codes])
        )
        held_out = np.array([tuple(row) in self.real.held_out for row in cells.codes.tolist()])
        return PictureJob(cells, np.repeat([False, True], real.n_cells), held_out, self.seed)

    def expressed(self) -> list[tuple[Codes, int, Codes]]:
        """Combinations whose most changed genes are shown: column and control of each.

        The largest ones with a reference, held-out ones first.
        """
        by_size = sorted(
            self.combinations(),
            key=lambda codes: (codes not in self.real.held_out, -len(self.real.rows[codes])),
        )
        columns = baselines.reference_codes(self.conditions)
        pairs = ((codes, column) for codes in by_size for column in columns)
        found = (
            (codes, column, control)
            for codes, column in pairs
            if (control := self._control(codes, column)) is not None and self._is_large(codes)
        )
        return list(itertools.islice(found, N_EXPRESSED))

    def expressions(self) -> Iterator[ExpressionJob]:
        """One job for each of `expressed`, made when asked for."""
        for codes, column, control in self.expressed():
            yield ExpressionJob(
                condition=self.conditions.decode_one(codes),
                column=self.conditions.columns[column],
                is_held_out=codes in self.real.held_out,
                control=self._some(self.real, self.real.rows[control], control),
                real=self._some(self.real, self.real.rows[codes], codes),
                generated=self._some(self.generated, self.generated_rows[codes], codes),
                gene_names=self.gene_names,
            )

    def _is_large(self, codes: Codes) -> bool:
        """Whether real and generated cells are enough for a picture of their distribution."""
        return min(len(self.real.rows[codes]), len(self.generated_rows[codes])) >= MIN_CELLS

    def _case(self, codes: Codes) -> Case:
        held_out = codes in self.real.held_out
        own = self.known.rows.get(codes, np.empty(0, dtype=np.int64))
        test = self._some(self.real, self.real.rows[codes], codes)
        pools, shifts, moved_rate = self._carried_over(codes) if held_out else ({}, {}, None)
        pools |= {
            name: self._some(rival.cells, rival.rows[codes], codes)
            for name, rival in self.rivals.items()
            if codes in rival.rows
        }
        shuffle_pool = test if held_out else self._some(self.train, own, codes)
        return Case(
            condition=self.conditions.decode_one(codes),
            codes=codes,
            identity=self.conditions.identity(codes),
            is_held_out=held_out,
            test=test,
            generated=self._some(self.generated, self.generated_rows[codes], codes),
            shuffle_pool=shuffle_pool if len(shuffle_pool) >= MIN_CELLS else None,
            pools=pools,
            shifts=shifts,
            moved_rate=moved_rate,
            references=tuple(self._references(codes)),
            n_train=len(own),
        )

    def _carried_over(
        self, codes: Codes
    ) -> tuple[
        dict[str, Counts],
        dict[str, Float32[ndarray, " gene"]],
        Float32[ndarray, " vocabulary_gene"] | None,
    ]:
        """Cells, changes and rates of other combinations that stand in for a held-out one."""
        pools: dict[str, Counts] = {}
        shifts: dict[str, Float32[ndarray, " gene"]] = {}
        rate = None
        known = self.known
        control = baselines.control_of(codes, baselines.reference_codes(self.conditions))
        pairs = baselines.contexts(codes, control, known) if control is not None else []
        if control is not None and baselines.is_known(control, known):
            pools[catalogue.CONTROL] = self._some(self.train, known.rows[control], control)
            if pairs:
                shifts[catalogue.ADDITIVE] = baselines.additive_shift(pairs, known)
                shifts[catalogue.SIMILARITY] = baselines.similarity_shift(control, pairs, known)
                rate = baselines.moved_rate(control, pairs, known)
        nearest = baselines.nearest_seen(codes, control, pairs, known)
        if nearest is not None:
            pools[catalogue.NEAREST] = self._some(self.train, known.rows[nearest], nearest)
        return pools, shifts, rate

    def _references(self, codes: Codes) -> Iterator[Reference]:
        """Of every column whose reference has cells enough in test and in training."""
        for column in baselines.reference_codes(self.conditions):
            if (reference := self.reference(codes, column)) is not None:
                yield reference

    def reference_offset(self, codes: Codes, column: int) -> Float64[ndarray, " gene"] | None:
        """Mean profile of real test cells at the reference of a column minus that of training."""
        reference = self.reference(codes, column)
        return None if reference is None else reference.test.mean - reference.train.mean

    def reference(self, codes: Codes, column: int) -> Reference | None:
        """The cells at the reference of a column; None if they are too few, or the same."""
        reference = self._control(codes, column)
        if reference is None:
            return None
        if reference not in self._test_moments:
            rows = self.real.rows[reference]
            cells = self.space.read(self._some(self.real, rows, reference))
            evenly = np.argsort(np.arange(cells.n_cells) % 2, kind="stable")  # donors in each half
            self._test_moments[reference] = cells.moments, cells.take(evenly).halves
        name = self.conditions.columns[column]
        return Reference(name, *self._test_moments[reference], self.known.moments(reference))

    def _control(self, codes: Codes, column: int) -> Codes | None:
        """The same combination at the reference of a column, if it has cells enough."""
        code = baselines.reference_codes(self.conditions)[column]
        control = (*codes[:column], code, *codes[column + 1 :])
        is_known = control != codes and baselines.is_known(control, self.known)
        return control if is_known and len(self.real.rows.get(control, ())) >= MIN_CELLS else None

    def _some(self, cells: CellTable | Real, rows: Rows, codes: Codes) -> Counts:
        """Counts of the rows of a combination, of a random part of them if they are many."""
        most = POOL * self.n_max
        if len(rows) > most:
            identity = self.conditions.identity(codes)
            rng = seeding.generator(self.seed, "evaluation_pool", identity)
            rows = np.sort(rng.permutation(rows)[:most])
        return cells.read(rows)
