"""Cells that models are compared on, and the combinations kept from them.

Simulated sets, whose truth is known, are made on the spot. The real ones are files in a data folder
(`SAVE_DIST_DATA`, by default `shared/data` beside the checkout); those that are absent are skipped.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from save_dist.data.simulate import SimulationConfig, simulate

DATA = Path(os.environ.get("SAVE_DIST_DATA", Path(__file__).parents[3] / "shared" / "data"))
GENE_TEXT = Path(__file__).parents[2] / "runs" / "quality" / "gene_text.npz"
"""Vectors of gene descriptions (arrays `genes` and `vectors`), made with the extra `text`."""
Condition = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """Real or simulated cells with condition columns.

    Args:
        name: of the set.
        columns: condition columns.
        reference: control value per column that has one.
        held_out: combinations to keep from training, one set of them per variant of the problem.
        read: gives the cells.
        file: where they come from; None for simulated ones.
        n_genes: genes of the models.
        simulation: of a simulated set.
    """

    name: str
    columns: tuple[str, ...]
    reference: Condition
    held_out: dict[str, list[Condition]]
    read: Callable[[], anndata.AnnData]
    file: Path | None = None
    n_genes: int = 1000
    simulation: SimulationConfig | None = None

    @property
    def is_here(self) -> bool:
        """Whether the cells can be had."""
        return self.file is None or self.file.is_file()


def simulated(name: str, interaction: float) -> Problem:
    """8 types x 3 conditions; three sets of held-out combinations."""
    simulation = SimulationConfig(
        n_cells=10_000, n_genes=1000, n_types=8, n_conditions=3, interaction=interaction
    )
    held_out = {
        f"set-{i}": [_pair(f"type-{a}", "stim-1"), _pair(f"type-{b}", "stim-2")]
        for i, (a, b) in enumerate([(0, 3), (2, 6), (5, 7)])
    }
    return Problem(
        name,
        ("condition", "cell_type"),
        {"condition": "ctrl"},
        held_out,
        lambda: simulate(simulation),
        simulation=simulation,
    )


def _pair(cell_type: str, condition: str) -> Condition:
    return {"condition": condition, "cell_type": cell_type}


KANG_TYPES = {
    "CD14": "CD14+ Monocytes",
    "B": "B cells",
    "NK": "NK cells",
    "CD4T": "CD4 T cells",
    "DC": "Dendritic cells",
    "CD8T": "CD8 T cells",
    "FCGR3A": "FCGR3A+ Monocytes",
    "Mk": "Megakaryocytes",
}
KANG_CHOICE_DONORS = ("1256", "1244", "1016", "107")
"""Donors whose cells settings were compared on; the other four saw no choice."""


def _read(name: str, keep: Callable[[Any], Any] | None = None) -> Callable[[], anndata.AnnData]:
    def read() -> anndata.AnnData:
        cells = anndata.read_h5ad(DATA / f"{name}.h5ad")
        return cells if keep is None else cells[np.asarray(keep(cells.obs))].copy()

    return read


def _singlets(obs: Any) -> Any:
    return obs["singlet"].to_numpy().astype(bool)


def _choice_donors(obs: Any) -> Any:
    return _singlets(obs) & obs["donor"].astype(str).isin(KANG_CHOICE_DONORS).to_numpy()


def _kang(name: str, keep: Callable[[Any], Any], types: tuple[str, ...]) -> Problem:
    return Problem(
        name,
        ("condition", "cell_type"),
        {"condition": "ctrl"},
        {short: [_pair(KANG_TYPES[short], "stim")] for short in types},
        _read("kang_ifnb", keep),
        DATA / "kang_ifnb.h5ad",
    )


def problems() -> dict[str, Problem]:
    """All of them, by name."""
    found = [
        simulated("simulated-none", 0.0),
        simulated("simulated-weak", 0.4),
        simulated("simulated-strong", 1.0),
        _kang("kang", _singlets, tuple(KANG_TYPES)),
        _kang("kang-choice", _choice_donors, ("B", "NK", "DC", "CD8T", "CD14")),
        Problem(
            "kang-donors",
            ("condition", "cell_type", "donor"),
            {"condition": "ctrl"},
            {"1015": [{"condition": "stim", "donor": "1015"}]},
            _read("kang_ifnb", _singlets),
            DATA / "kang_ifnb.h5ad",
        ),
        Problem("pbmc3k", ("cell_type",), {}, {}, _read("pbmc3k"), DATA / "pbmc3k.h5ad"),
        Problem(
            "pbmc-atlas",
            ("condition", "cell_type", "study"),
            {"condition": "ctrl"},
            {},
            _read("pbmc_atlas_24k"),
            DATA / "pbmc_atlas_24k.h5ad",
        ),
        Problem(
            "onek1k",
            ("cell_type", "sex"),
            {},
            {},
            _read("onek1k_40donors"),
            DATA / "onek1k_40donors.h5ad",
        ),
    ]
    return {problem.name: problem for problem in found}
