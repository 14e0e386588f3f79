"""All stages of training on one rank: VAE, latents, flow, reflow, transport; on every rank."""

import logging
from pathlib import Path

import numpy as np
import torch

from save_dist.config.schema import (
    OptimConfig,
)
from save_dist.core.durable import digest
from save_dist.core.errors import CheckpointError
from save_dist.data.cache import ensure_cache
from save_dist.data.partition import StreamPlan
from save_dist.data.source import SomaSource
from save_dist.data.splits import TRAIN, CellIndex
from save_dist.data.stream import CellStream
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import Velocity, make_flow_velocity
from save_dist.stores.bundle import LatentScale
from save_dist.stores.checkpoint import Checkpoint, CheckpointStore
from save_dist.stores.latent_means import LatentMeans
from save_dist.stores.latents import LatentStore
from save_dist.stores.transports import make_transport_velocity, pair_codes
from save_dist.stores.vocabulary import RunVocabulary, load_vocabulary
from save_dist.training.additive import additive_effects
from save_dist.training.latents import LatentStream, encode_cells, latent_scale
from save_dist.training.loop import ALONE, FitInput, Reporter, Supervisor, fit
from save_dist.training.plan import TrainPlan, make_balance, make_stream_plan
from save_dist.training.ranks import Ranks, barrier
from save_dist.training.reflow import ReflowStage
from save_dist.training.standing import is_finished, standing_of
from save_dist.training.steps import Draws, FlowStage, VaeStage
from save_dist.training.transport import PairSampler, TransportStage, TransportStream
from save_dist.training.validation import FlowValidation, VaeValidation
from save_dist.vocab.transports import Pair, check_pairs, control_pairs, reference_codes

logger = logging.getLogger(__name__)


def run_stages(
    plan: TrainPlan,
    ranks: Ranks,
    reporter: Reporter,
    device: torch.device,
    supervisor: Supervisor = ALONE,
) -> None:
    """Train what `plan.training.stages` names; finished stages return at once.

    Raises:
        CheckpointError: if checkpoints of another configuration stand in the way.
        DivergedError: on a non-finite loss.
        StoppedError: if the supervisor asked for an end; what was trained is saved.
    """
    vocabulary = load_vocabulary(plan.paths.vocab)
    if "vae" in plan.training.stages:
        train_vae(plan, vocabulary, ranks, reporter, device, supervisor)
    if set(plan.training.stages) <= {"vae"}:
        return
    store = encode(plan, vocabulary, ranks, device)
    if "flow" in plan.training.stages:
        train_flow(plan, vocabulary, store, ranks, reporter, device, supervisor)
    if "reflow" in plan.training.stages:
        train_reflow(plan, vocabulary, store, ranks, reporter, device, supervisor)
    if "transport" in plan.training.stages:
        train_transport(plan, vocabulary, store, ranks, reporter, device, supervisor)


def train_vae(
    plan: TrainPlan,
    vocabulary: RunVocabulary,
    ranks: Ranks,
    reporter: Reporter,
    device: torch.device,
    supervisor: Supervisor = ALONE,
) -> None:
    """SOMA store -> VAE checkpoints."""
    index = vocabulary.index.where(TRAIN)
    stream_plan = make_stream_plan(plan, plan.vae.optim, index.n_cells)
    stage = VaeStage(make_vae(plan, vocabulary).to(device), plan.vae, _draws(plan, stream_plan))
    with CellStream(
        vocabulary.store,
        index,
        vocabulary.gene_positions,
        stream_plan,
        rank=ranks.rank,
        world_size=ranks.world_size,
        cache=local_cache(plan, vocabulary, index),
        balance=make_balance(plan, index),
    ) as stream:
        inputs = FitInput(
            stage,
            stream.batches,
            _cells_per_rank(plan.vae.optim, ranks),
            VaeValidation(vocabulary, plan, device).losses if ranks.is_first else None,
        )
        _fit(plan, inputs, plan.vae.optim, ranks, reporter, supervisor)


def local_cache(plan: TrainPlan, vocabulary: RunVocabulary, index: CellIndex) -> Path | None:
    """Packed copy of the cells on this node; None if it is switched off or would be too large."""
    stream = plan.training.stream
    if not stream.cache_bytes:
        return None
    folder = stream.cache_dir or plan.paths.scratch / "cells"
    with SomaSource(vocabulary.store) as source:
        return ensure_cache(source, index, vocabulary.gene_positions, folder, stream.cache_bytes)


def encode(
    plan: TrainPlan, vocabulary: RunVocabulary, ranks: Ranks, device: torch.device
) -> LatentStore:
    """Trained VAE -> q(z|x) of every training cell, written by all ranks together."""
    index = vocabulary.index.where(TRAIN)
    about, path = latents_about(plan), plan.paths.latents
    if ranks.is_first:
        LatentStore.create(path, index.n_cells, plan.vae.latent_dim, about)
    barrier(ranks)
    store = LatentStore.attach(path, expect=digest(about))
    if store.missing():
        vae = load_vae(plan, vocabulary).to(device)
        encode_cells(vae, vocabulary.store, index, vocabulary.gene_positions, store, ranks)
    barrier(ranks)
    return LatentStore.open(path, expect=digest(about))


def latents_about(plan: TrainPlan) -> dict[str, str]:
    """Identity of the latents: the encoder that made them."""
    return {"vae": plan.hash_of("vae")}


def train_flow(
    plan: TrainPlan,
    vocabulary: RunVocabulary,
    store: LatentStore,
    ranks: Ranks,
    reporter: Reporter,
    device: torch.device,
    supervisor: Supervisor = ALONE,
) -> None:
    """Latents -> flow checkpoints."""
    index = vocabulary.index.where(TRAIN)
    stream_plan = make_stream_plan(plan, plan.flow.optim, index.n_cells)
    module, scale = make_velocity(plan, vocabulary), latent_scale(store)
    if module.centre is not None:
        effects = additive_effects(store, index.codes, module.sizes, scale)
        module.centre.set_effects(torch.from_numpy(effects))
    stage = FlowStage(module.to(device), plan.flow, scale, _draws(plan, stream_plan))
    stream = LatentStream(store, index, stream_plan, ranks, make_balance(plan, index))
    validation = None
    if ranks.is_first:
        vae = load_vae(plan, vocabulary).to(device)
        validation = FlowValidation(vae, vocabulary, plan, scale).losses
    cells_per_rank = _cells_per_rank(plan.flow.optim, ranks)
    inputs = FitInput(stage, stream.batches, cells_per_rank, validation)
    _fit(plan, inputs, plan.flow.optim, ranks, reporter, supervisor)


def train_reflow(
    plan: TrainPlan,
    vocabulary: RunVocabulary,
    store: LatentStore,
    ranks: Ranks,
    reporter: Reporter,
    device: torch.device,
    supervisor: Supervisor = ALONE,
) -> None:
    """Trained flow -> reflow checkpoints; of the latents' minibatches, the conditions alone."""
    index, config = vocabulary.index.where(TRAIN), plan.reflow
    stream_plan = make_stream_plan(plan, config.optim, index.n_cells)
    teacher, module = (load_velocity(plan, vocabulary, "flow").to(device) for _ in range(2))
    draws = _draws(plan, stream_plan)
    stage = ReflowStage(module.train(), teacher, config, plan.flow.mask, draws)
    stream = LatentStream(store, index, stream_plan, ranks)
    cells_per_rank = _cells_per_rank(config.optim, ranks)
    inputs = FitInput(stage, stream.batches, cells_per_rank, None)
    _fit(plan, inputs, config.optim, ranks, reporter, supervisor)


def train_transport(
    plan: TrainPlan,
    vocabulary: RunVocabulary,
    store: LatentStore,
    ranks: Ranks,
    reporter: Reporter,
    device: torch.device,
    supervisor: Supervisor = ALONE,
) -> None:
    """Latents of control and other cells -> transport checkpoints."""
    index, config = vocabulary.index.where(TRAIN), plan.transport
    stream_plan = make_stream_plan(plan, config.optim, index.n_cells)
    pairs = transport_pairs(plan, vocabulary)
    sampler = PairSampler(
        np.asarray(index.codes),
        pairs,
        cells_per_lane=stream_plan.cells_per_lane,
        cells_per_group=config.cells_per_group,
        seed=plan.seed,
    )
    stream = TransportStream(
        store,
        np.asarray(index.joinids),
        sampler,
        pair_codes(vocabulary.conditions, config.columns, pairs),
        stream_plan.lanes_of(ranks.rank, ranks.world_size),
    )
    module = make_transport(plan, vocabulary).to(device)
    stage = TransportStage(module, config, latent_scale(store), _draws(plan, stream_plan))
    cells_per_rank = _cells_per_rank(config.optim, ranks)
    inputs = FitInput(stage, stream.batches, cells_per_rank, None)
    _fit(plan, inputs, config.optim, ranks, reporter, supervisor)


def transport_pairs(plan: TrainPlan, vocabulary: RunVocabulary) -> tuple[Pair, ...]:
    """Combinations the transport learns from; held-out ones have no training cells.

    Raises:
        ConfigError: for an unknown column or one without a reference.
        DataError: if a column has nothing to learn from.
    """
    references = reference_codes(vocabulary.conditions, plan.transport.columns)
    pairs = control_pairs(vocabulary.index.support(), references)
    check_pairs(vocabulary.conditions, pairs, references)
    return pairs


def make_vae(plan: TrainPlan, vocabulary: RunVocabulary) -> Vae:
    """A fresh VAE; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return Vae(
            VaeShape(
                members=torch.from_numpy(vocabulary.blocks.members),
                n_genes=len(vocabulary.genes),
                sizes=vocabulary.conditions.sizes,
                columns=vocabulary.conditions.columns,
            ),
            plan.vae,
            scale=torch.from_numpy(vocabulary.scale),
            fraction=torch.from_numpy(vocabulary.fraction),
        )


def make_velocity(plan: TrainPlan, vocabulary: RunVocabulary) -> Velocity:
    """A fresh velocity network; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 1)
        return make_flow_velocity(plan.vae.latent_dim, vocabulary.conditions.sizes, plan.flow)


def make_transport(plan: TrainPlan, vocabulary: RunVocabulary) -> Velocity:
    """A fresh transport network; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 2)
        return make_transport_velocity(plan.vae.latent_dim, vocabulary.conditions, plan.transport)


def load_vae(plan: TrainPlan, vocabulary: RunVocabulary) -> Vae:
    """The averaged weights of the finished VAE stage, in evaluation mode."""
    vae = make_vae(plan, vocabulary)
    vae.load_state_dict(averaged_weights(finished(plan, "vae")))
    return vae.eval()


def load_velocity(plan: TrainPlan, vocabulary: RunVocabulary, stage: str) -> Velocity:
    """The averaged weights of the finished stage flow or reflow, in evaluation mode."""
    velocity = make_velocity(plan, vocabulary)
    velocity.load_state_dict(averaged_weights(finished(plan, stage)))
    return velocity.eval()


def load_transport(plan: TrainPlan, vocabulary: RunVocabulary) -> Velocity:
    """The averaged weights of the finished transport stage, in evaluation mode."""
    velocity = make_transport(plan, vocabulary)
    velocity.load_state_dict(averaged_weights(finished(plan, "transport")))
    return velocity.eval()


def finished_scale(plan: TrainPlan) -> LatentScale:
    """Standardisation of the finished run's latents."""
    return latent_scale(LatentStore.open(plan.paths.latents, expect=digest(latents_about(plan))))


def latent_means(plan: TrainPlan, vocabulary: RunVocabulary) -> LatentMeans:
    """Mean latent of every seen combination of the finished run."""
    store = LatentStore.open(plan.paths.latents, expect=digest(latents_about(plan)), verify=False)
    return LatentMeans.of(store.mean, vocabulary.index.where(TRAIN).codes.astype(np.int64))


def read_checkpoints(plan: TrainPlan, stage: str) -> CheckpointStore:
    """The stage's checkpoints, for reading; those of another configuration are refused."""
    keep = plan.training.checkpoint.keep
    return CheckpointStore(plan.paths.checkpoints(stage), keep, expect=plan.hash_of(stage))


def finished(plan: TrainPlan, stage: str) -> Checkpoint:
    """The weights of a stage that must have run: its last ones, or its best if those are wanted.

    Raises:
        CheckpointError: if it has not finished, or the checkpoint is not whole.
    """
    with read_checkpoints(plan, stage) as checkpoints:
        last = checkpoints.newest()
        if last is None or not is_finished(last.step, last.about, _n_steps(plan, stage)):
            raise CheckpointError(
                f"{plan.paths.checkpoints(stage)} has no checkpoint of the finished stage {stage}; "
                "run `save-dist train` with this run.dir first"
            )
        best = standing_of(last.about)
        if plan.training.stopping.export == "last" or best.best_loss is None:
            return last
        return last if best.best_step == last.step else checkpoints.load(best.best_step)


def steps_left(plan: TrainPlan, stage: str) -> int:
    """Optimiser steps that the stage still needs after its newest whole checkpoint."""
    with read_checkpoints(plan, stage) as checkpoints:
        found = checkpoints.newest()
    n_steps = _n_steps(plan, stage)
    if found is None:
        return n_steps
    return 0 if is_finished(found.step, found.about, n_steps) else n_steps - found.step


def averaged_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The EMA weights of a checkpoint under the module's own names."""
    prefix = "average.module."
    return {
        k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)
    }


def _fit(
    plan: TrainPlan,
    inputs: FitInput,  # type: ignore[type-arg]  # any stage's minibatch
    optim: OptimConfig,
    ranks: Ranks,
    reporter: Reporter,
    supervisor: Supervisor,
) -> None:
    name = inputs.stage.name
    folder, keep = plan.paths.checkpoints(name), plan.training.checkpoint.keep
    expect = plan.hash_of(name)
    # the one rank that writes also clears what a killed run left half-written
    make = CheckpointStore.open if ranks.is_first else CheckpointStore
    with make(folder, keep, expect=expect) as checkpoints:
        about = {"config_hash": expect, "stage": name}
        fit(inputs, optim, plan.training, checkpoints, reporter, ranks, about, supervisor)


def _draws(plan: TrainPlan, stream_plan: StreamPlan) -> Draws:
    return Draws(plan.seed, stream_plan.cells_per_lane)


def _cells_per_rank(optim: OptimConfig, ranks: Ranks) -> int:
    return optim.cells_per_step // ranks.world_size


def _n_steps(plan: TrainPlan, stage: str) -> int:
    return plan.section(stage).optim.n_steps
