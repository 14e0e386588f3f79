"""scVI (Lopez et al. 2018) from scvi-tools as a peer: fitted to a CPU budget, sampled by condition.

Knows counts and condition codes as NumPy arrays only. scvi-tools is the optional extra `peers`
and is imported by `ScviPeer.fit`, never with this file.

scvi-tools denoises and transfers, but does not generate cells for a condition from noise. That part
is ours, written from the public methods `inference` and `generative` of its module:

    z ~ N(0, I),  library ~ observed libraries of the combination,  x ~ NB(decoder(z, condition))

Settings are the published defaults of scvi-tools 1.4 (one hidden layer of 128, 10 latent
dimensions, dropout 0.1, dispersion per gene, conditions in the decoder alone, observed library
size, Adam at 1e-3, minibatches of 128) but for

- likelihood: negative binomial instead of zero-inflated, as in the models it is compared with;
- training cells: all that are given instead of 90%, since nothing is selected on the rest;
- epochs: as many as the budget allows, instead of 400 (fewer beyond 20,000 cells);
- KL warm-up: over the first `WARM_UP` of those epochs, instead of over 400 epochs. With fewer
  epochs than that the weight would never be 1, and cells from the prior would be meaningless.

They are meant to serve scVI within a budget; `WARM_UP` is a choice, not tuned.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import anndata
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int, Int64, UInt16
from numpy import ndarray

from save_dist.core.errors import ConfigError, DataError
from save_dist.core.seeding import generator, stream_seed

WARM_UP = 0.5
"""Share of the expected epochs over which the weight of the KL term rises to 1."""
TIMED_EPOCH = 2
"""The epoch whose cost stands for the later ones; the first one pays for set-up."""
MINIBATCH = 128
"""Cells per optimiser step, the default of scvi-tools."""
CELLS_AT_ONCE = 2048
"""Cells decoded together: bounds memory; other values give other random numbers."""

Counts = UInt16[ndarray, "cell gene"] | Float32[ndarray, "cell gene"]


class ScviPeer:
    """scVI conditional on every condition column, with what it needs to generate.

    Attributes:
        cpu_seconds: CPU time of the process that training took, set-up included.
        n_epochs: passes over the training cells.
    """

    def __init__(
        self,
        model: Any,  # scvi.model.SCVI
        counts: Counts,
        codes: Int[ndarray, "cell field"],
        sizes: tuple[int, ...],
        budget: "_Budget",
    ) -> None:
        self._module = model.module
        self._counts = counts
        self._codes = codes
        self._sizes = sizes
        self._libraries = counts.sum(1, dtype=np.float32)
        self.cpu_seconds = budget.spent()
        self.n_epochs = budget.n_epochs

    @classmethod
    def fit(
        cls,
        counts: Counts,
        codes: Int[ndarray, "cell field"],
        sizes: tuple[int, ...],
        columns: tuple[str, ...],
        seed: int,
        cpu_seconds: float,
        max_epochs: int | None = None,
    ) -> Self:
        """Train on all given cells, on one thread, until the budget is used up.

        The first column is scVI's `batch_key`, the others its `categorical_covariate_keys`; its
        decoder treats them alike, as one-hot vectors beside `z`. Training ends before the epoch
        that would not fit, so at least one is done. The number of epochs depends on the machine;
        with equal epochs, equal arguments give equal weights.

        Args:
            counts: raw counts of the training cells.
            codes: condition of each cell, one code per column, below its size.
            sizes: categories per column, those without training cells included.
            columns: names of the columns.
            seed: of weights, minibatches and latent noise.
            cpu_seconds: CPU time for training. Not for the import of scvi-tools.
            max_epochs: end here even if time is left. None: the budget alone decides.

        Raises:
            ConfigError: if scvi-tools is not installed.
            DataError: if codes and counts, sizes or columns do not fit together.
        """
        _check_codes(codes, sizes)
        if len(counts) != len(codes) or len(columns) != len(sizes):
            raise DataError(
                f"{len(counts)} cells and {len(columns)} columns, but codes for {len(codes)} cells "
                f"and {len(sizes)} columns; give one row per cell and one size per column"
            )
        scvi, callback = _import_scvi()
        with _alone(seed, "scvi_fit"):
            model = scvi.model.SCVI(
                _registered(scvi, counts, codes, sizes, columns), gene_likelihood="nb"
            )
            budget = _Budget(cpu_seconds, max_epochs)
            model.train(
                max_epochs=-1 if max_epochs is None else max_epochs,
                accelerator="cpu",
                devices=1,
                train_size=1.0,
                shuffle_set_split=False,  # its shuffle has a seed of its own
                batch_size=MINIBATCH,
                # batch normalisation fails on a last minibatch of one cell
                datasplitter_kwargs={"drop_last": 0 < len(counts) % MINIBATCH < 3},
                logger=False,
                enable_progress_bar=False,
                callbacks=[callback(on_train_epoch_end=budget.after_epoch)],
            )
        return cls(model, counts, codes, sizes, budget)

    def sample(self, codes: Int[ndarray, "cell field"], seed: int) -> UInt16[ndarray, "cell gene"]:
        """New cells of the given conditions from the prior, `z ~ N(0, I)`.

        scVI takes the library size as observed and has no law for it, so each cell gets that of a
        random training cell of its combination; without one, of a training cell that shares as
        many columns as any.

        Raises:
            DataError: if a code is not below the size of its column.
        """
        _check_codes(codes, self._sizes)
        rows = self._training_rows(codes, seed, "scvi_library")
        with _alone(seed, "scvi_prior"):
            z = torch.randn(len(codes), self._module.n_latent)
            return self._decode(z, torch.from_numpy(self._libraries[rows]).log()[:, None], codes)

    def sample_posterior(
        self, codes: Int[ndarray, "cell field"], seed: int
    ) -> UInt16[ndarray, "cell gene"]:
        """Cells decoded from the posterior of random training cells of the same combination.

        Resamples the aggregate posterior: stronger than the prior, but each cell is a noisy copy of
        a training cell, so this is no generation, and it says nothing of unseen combinations.

        Raises:
            DataError: if a combination has no training cells, or a code is too large.
        """
        _check_codes(codes, self._sizes)
        rows = self._training_rows(codes, seed, "scvi_posterior")
        unseen = (self._codes[rows] != codes).any(1)
        if unseen.any():
            raise DataError(
                f"combination {codes[unseen][0].tolist()} has no training cells whose posterior "
                "could be sampled; use sample or transfer"
            )
        return self.transfer(self._counts[rows], codes, codes, seed)

    def transfer(
        self,
        counts: Counts,
        codes: Int[ndarray, "cell field"],
        target_codes: Int[ndarray, "cell field"],
        seed: int,
    ) -> UInt16[ndarray, "cell gene"]:
        """Given cells under another condition: encoded with theirs, decoded with the target's.

        The idea of `transform_batch` in scvi-tools, for all columns, with drawn counts instead of
        means. Each cell keeps its latent and its library size.

        Raises:
            DataError: if a code is not below the size of its column.
        """
        _check_codes(codes, self._sizes)
        _check_codes(target_codes, self._sizes)
        with _alone(seed, "scvi_transfer"), torch.inference_mode():
            encoded = [
                self._module.inference(
                    x=torch.from_numpy(counts[part].astype(np.float32)), **_inputs(codes[part])
                )
                for part in _parts(len(counts))
            ]
            z = torch.cat([part["z"] for part in encoded])
            library = torch.cat([part["library"] for part in encoded])
            return self._decode(z, library, target_codes)

    def _training_rows(
        self, codes: Int[ndarray, "cell field"], seed: int, purpose: str
    ) -> Int64[ndarray, " cell"]:
        """For each asked-for cell a random training cell that shares as many columns as any."""
        rows = np.empty(len(codes), dtype=np.int64)
        for combination in np.unique(codes, axis=0):
            n_shared = (self._codes == combination).sum(1)
            alike = np.flatnonzero(n_shared == n_shared.max())
            wanted = (codes == combination).all(1)
            random = generator(seed, purpose, *combination.tolist())
            rows[wanted] = random.choice(alike, int(wanted.sum()))
        return rows

    def _decode(
        self,
        z: Float32[torch.Tensor, "cell latent"],
        library: Float32[torch.Tensor, "cell 1"],
        codes: Int[ndarray, "cell field"],
    ) -> UInt16[ndarray, "cell gene"]:
        """Counts drawn from the law that scVI's decoder gives; `library` is a logarithm."""
        counts = np.empty((len(z), self._module.n_input), dtype=np.uint16)
        with torch.inference_mode():
            for part in _parts(len(z)):
                px = self._module.generative(
                    z=z[part], library=library[part], **_inputs(codes[part])
                )
                counts[part] = px["px"].sample().clamp(max=np.iinfo(np.uint16).max).numpy()
        return counts


class _Budget:
    """Ends training before the epoch that would not fit, and sets the length of the warm-up."""

    def __init__(self, cpu_seconds: float, max_epochs: int | None) -> None:
        self.cpu_seconds = cpu_seconds
        self.max_epochs = max_epochs
        self.n_epochs = 0
        self.started = self.latest = time.process_time()

    def after_epoch(self, trainer: Any, plan: Any) -> None:  # lightning Trainer, scvi TrainingPlan
        """Called by lightning at the end of every epoch."""
        now = time.process_time()
        epoch_s, self.latest = now - self.latest, now
        self.n_epochs += 1
        left = self.cpu_seconds - self.spent()
        if self.n_epochs == TIMED_EPOCH:
            expected = self.n_epochs + left / epoch_s
            if self.max_epochs is not None:
                expected = min(expected, self.max_epochs)
            plan.n_epochs_kl_warmup = max(1, round(WARM_UP * expected))
        trainer.should_stop = epoch_s > left

    def spent(self) -> float:
        """CPU seconds from the start of training to the end of the latest epoch."""
        return self.latest - self.started


def _registered(
    scvi: Any,
    counts: Counts,
    codes: Int[ndarray, "cell field"],
    sizes: tuple[int, ...],
    columns: tuple[str, ...],
) -> anndata.AnnData:
    """The cells as scVI wants them; its category codes are ours, also where no cell is."""
    obs = pd.DataFrame(
        {
            column: pd.Categorical.from_codes(codes[:, field], range(sizes[field]))
            for field, column in enumerate(columns)
        },
        index=np.arange(len(codes)).astype(str),
    )
    cells = anndata.AnnData(counts.astype(np.float32), obs)
    scvi.model.SCVI.setup_anndata(
        cells, batch_key=columns[0], categorical_covariate_keys=list(columns[1:]) or None
    )
    return cells


def _inputs(codes: Int[ndarray, "cell field"]) -> dict[str, torch.Tensor | None]:
    """Codes as the methods of scVI's module take them."""
    tensor = torch.from_numpy(codes.astype(np.int64))
    return {"batch_index": tensor[:, :1], "cat_covs": tensor[:, 1:] if codes.shape[1] > 1 else None}


def _parts(n_cells: int) -> list[slice]:
    """Slices of bounded length over all cells."""
    return [slice(i, i + CELLS_AT_ONCE) for i in range(0, n_cells, CELLS_AT_ONCE)]


def _check_codes(codes: Int[ndarray, "cell field"], sizes: tuple[int, ...]) -> None:
    """Refuse codes that scVI has no one-hot vector for, MASK included."""
    if codes.shape[1] != len(sizes) or np.any(codes < 0) or np.any(codes >= np.array(sizes)):
        raise DataError(
            f"condition codes of shape {codes.shape} with maxima {codes.max(0, initial=-1)} do not "
            f"fit columns of {sizes} categories; give every column, with codes from 0"
        )


@contextmanager
def _alone(seed: int, purpose: str) -> Iterator[None]:
    """One thread, its own random numbers, no chatter; the process is as before afterwards."""
    n_threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, n_threads)
        for name in ("lightning.pytorch", "scvi"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.enter_context(warnings.catch_warnings())
        # lightning 2.6 on torch 2.13, until lightning follows
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)
        # expected where a combination is rare; scvi-tools trains on it all the same
        warnings.filterwarnings("ignore", "Category .* has fewer than 3 cells", UserWarning)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.set_num_threads(1)
        torch.manual_seed(stream_seed(seed, purpose))
        yield


def _import_scvi() -> tuple[Any, Any]:
    """scvi-tools, and lightning's callback made of functions."""
    try:
        import scvi
        from lightning.pytorch.callbacks import LambdaCallback
    except ImportError as e:
        raise ConfigError(
            "scvi-tools is not installed; pip install -c constraints.txt '.[peers]'"
        ) from e
    return scvi, LambdaCallback
