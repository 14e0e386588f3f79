"""Which latent mixes batches and keeps cell types? scIB on real cells, beside PCA, Harmony, scVI.

    OMP_NUM_THREADS=1 python benchmarks/quality/integration.py [--cells 3000] [--seed 0]

Cells of the 24k PBMC atlas, batch: study, labels: cell_type. SAVE is told study and donor, and no
label; its latent is what the encoder makes of a cell. All representations are made from, and scored
on, the same cells and genes. Harmony is that of harmony-pytorch (BSD); harmonypy is under the GPL.
Methods that are not installed are named and left out.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fits import fit
from methods import DEFAULT
from problems import Problem, problems

from save_dist.config.load import merge
from save_dist.data.transforms import log_normalise
from save_dist.evaluation.integration import integration_scores
from save_dist.pipelines.provenance import git_commit

ROOT = Path(__file__).parents[2] / "runs" / "quality" / "fits"
RECORD = Path(__file__).parents[1] / "results" / "integration.json"
N_COMPONENTS = 30
BATCH, LABEL = "study", "cell_type"
SETTINGS = merge(
    dict(DEFAULT),
    {
        "vae": {"optim": {"n_steps": 1500}, "mask": {"p": 0.0}, "latent_dim": 32},
        "flow": {"optim": {"n_steps": 1}},  # not used
        "split": {"test": 0.01, "validation": 0.01},
    },
)


@dataclass(frozen=True)
class Task:
    """Cells, their components, and what is asked of them."""

    problem: Problem
    adata: Any
    pca: Any
    seed: int


def main() -> None:
    """Score every representation and leave a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    source = problems()["pbmc-atlas"]
    if not source.is_here:
        sys.stdout.write(f"skipped, {source.file} is absent\n")
        return
    task = _task(source, chosen.cells, chosen.seed)
    codes = [
        np.unique(task.adata.obs[c].astype(str), return_inverse=True)[1] for c in (LABEL, BATCH)
    ]
    rows = {}
    for name, make in _methods():
        start = time.process_time()
        latent = make(task)
        seconds = time.process_time() - start
        rows[name] = integration_scores(latent, task.pca, *codes, seed=task.seed).row()
        rows[name]["cpu_s"] = seconds
        sys.stdout.write(f"{name}: {json.dumps({k: round(v, 3) for k, v in rows[name].items()})}\n")
        sys.stdout.flush()
    facts = {"n_cells": chosen.cells, "seed": chosen.seed, "batch": BATCH, "commit": git_commit()}
    RECORD.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def _task(source: Problem, n_cells: int, seed: int) -> Task:
    """Some of the cells, and their uncorrected components."""
    everything = source.read()
    rows = np.sort(np.random.default_rng(seed).permutation(everything.n_obs)[:n_cells])
    adata = everything[rows].copy()
    log = log_normalise(np.asarray(adata.X.todense(), dtype=np.float32))
    centred = log - log.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    problem = replace(
        source,
        name=f"{source.name}-{n_cells}-{seed}",
        columns=(BATCH, "donor"),
        reference={},
        read=lambda: adata,
        n_genes=adata.n_vars,
    )
    return Task(problem, adata, (u * s)[:, :N_COMPONENTS], seed)


def _methods() -> Iterator[tuple[str, Callable[[Task], Any]]]:
    yield "uncorrected PCA", lambda task: task.pca
    for name, package, make in (("Harmony", "harmony", _harmony), ("scVI", "scvi", _scvi)):
        if importlib.util.find_spec(package) is None:
            sys.stdout.write(f"{name}: skipped, install the extra `peers`\n")
        else:
            yield name, make
    yield "SAVE", _save


def _harmony(task: Task) -> Any:
    from harmony import harmonize

    return harmonize(task.pca, task.adata.obs, batch_key=[BATCH, "donor"], random_state=task.seed)


def _scvi(task: Task) -> Any:
    import scvi

    scvi.settings.seed = task.seed
    adata = task.adata.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key=BATCH, categorical_covariate_keys=["donor"])
    model = scvi.model.SCVI(adata, n_latent=32)
    model.train(max_epochs=40, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model.get_latent_representation()


def _save(task: Task) -> Any:
    return fit(task.problem, "", SETTINGS, task.seed, ROOT).model.encode(task.adata)


if __name__ == "__main__":
    main()
