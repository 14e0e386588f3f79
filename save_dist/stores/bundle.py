"""The exported model: everything that generation, transfer and evaluation need, in one folder.

Weights are safetensors, the rest is JSON; nothing is unpickled. The model hash is the digest of
the files' digests, so it changes with any weight, gene, category or support count, and with
nothing else: where and when a model was trained stands beside, in the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float32
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from save_dist.config.schema import FlowConfig, ReflowConfig, VaeConfig
from save_dist.core.durable import digest, publish_folder, read_json, verify_folder, write_json
from save_dist.core.errors import CheckpointError
from save_dist.models.vae import Vae, VaeShape
from save_dist.models.velocity import Velocity, make_flow_velocity
from save_dist.stores.facts import ModelFacts
from save_dist.stores.latent_means import FILE as LATENT_MEANS
from save_dist.stores.latent_means import LatentMeans
from save_dist.stores.transports import PROFILES, WEIGHTS, Transport, read_transport
from save_dist.vocab.blocks import GeneBlocks
from save_dist.vocab.conditions import ConditionVocabulary
from save_dist.vocab.genes import GeneVocabulary

Module = TypeVar("Module", bound=nn.Module)

FORMAT = 4
"""Version of the folder's layout."""


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of every coordinate of y = [z, log library] in training."""

    mean: Float32[ndarray, " latent"]
    sd: Float32[ndarray, " latent"]


@dataclass(frozen=True)
class ModelBundle:
    """A trained model, in evaluation mode, without gradients."""

    vae: Vae
    velocity: Velocity
    latent_scale: LatentScale
    genes: GeneVocabulary
    conditions: ConditionVocabulary
    blocks: GeneBlocks
    support: Mapping[tuple[int, ...], int]
    """Training cells per combination of condition codes; absent: never trained on."""
    vae_config: VaeConfig
    flow_config: FlowConfig
    about: Mapping[str, Any]
    """Provenance: config hash, data hash, versions, git commit."""
    hash: str
    reflow_config: ReflowConfig | None = None
    """How the velocity was straightened for few-step sampling; None: it is the plain flow."""
    transport: Transport | None = None
    """How cells are carried to combinations that were never trained on."""
    latent_means: LatentMeans | None = None
    """Of the seen combinations, for latent arithmetic; None: the folder holds none."""

    @property
    def transport_columns(self) -> tuple[str, ...]:
        """Columns along which cells can be carried."""
        return () if self.transport is None else tuple(self.transport.config.columns)

    @property
    def facts(self) -> ModelFacts:
        """What planning has to know of the model."""
        return ModelFacts(
            hash=self.hash,
            conditions=self.conditions,
            support=self.support,
            genes=self.genes,
            transport_columns=self.transport_columns,
            n_latent=self.vae_config.latent_dim,
        )


def save_bundle(
    folder: Path,
    *,
    vae: Vae,
    velocity: Velocity,
    latent_scale: LatentScale,
    genes: GeneVocabulary,
    conditions: ConditionVocabulary,
    blocks: GeneBlocks,
    support: Mapping[tuple[int, ...], int],
    vae_config: VaeConfig,
    flow_config: FlowConfig,
    about: Mapping[str, Any],
    reflow_config: ReflowConfig | None = None,
    transport: Transport | None = None,
    latent_means: LatentMeans | None = None,
) -> str:
    """Publish a model folder; one that stands there is replaced.

    Returns:
        the model hash.

    Raises:
        InfrastructureError: if the disk refuses.
    """
    facts = {
        "format": FORMAT,
        "vae": vae_config.model_dump(mode="json"),
        "flow": flow_config.model_dump(mode="json"),
        "reflow": None if reflow_config is None else reflow_config.model_dump(mode="json"),
        "support": [[*codes, n] for codes, n in sorted(support.items())],
        "transport": None if transport is None else transport.facts(),
    }
    beside = {"about": dict(about), "about_digest": digest(dict(about))}
    with publish_folder(folder, beside) as aside:
        _save_weights(vae, aside / "vae.safetensors")
        _save_weights(velocity, aside / "velocity.safetensors")
        scale = {"mean": latent_scale.mean, "sd": latent_scale.sd}
        save_file(
            {name: torch.from_numpy(values.copy()) for name, values in scale.items()},
            aside / "latent_scale.safetensors",
        )
        if transport is not None:
            _save_weights(transport.velocity, aside / WEIGHTS)
            transport.profiles.save(aside / PROFILES)
        if latent_means is not None:
            latent_means.save(aside / LATENT_MEANS)
        write_json(aside / "genes.json", genes.to_json())
        write_json(aside / "conditions.json", conditions.to_json())
        write_json(aside / "blocks.json", blocks.to_json())
        write_json(aside / "model.json", facts)
    return digest(read_json(folder / "manifest.json")["files"])


def load_bundle(folder: Path, device: str = "cpu") -> ModelBundle:
    """Read a model folder, checking every byte against the manifest.

    Raises:
        CheckpointError: if it does not exist, is incomplete, altered, or of another format.
    """
    manifest = verify_folder(folder)
    if digest(manifest.get("about")) != manifest.get("about_digest"):
        raise CheckpointError(f"`about` in {folder}/manifest.json was altered; restore the file")
    try:
        return _read_bundle(folder, manifest, device)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:300]
        raise CheckpointError(
            f"{folder} matches its manifest, but is no model: {type(e).__name__}: {reason}; do "
            "not use it, and ask where it comes from"
        ) from e


def _read_bundle(folder: Path, manifest: Mapping[str, Any], device: str) -> ModelBundle:
    facts = read_json(folder / "model.json")
    if facts["format"] != FORMAT:
        raise CheckpointError(
            f"model {folder} has format {facts['format']}, this version reads {FORMAT}; "
            "export it again with this version"
        )
    genes = GeneVocabulary.from_json(read_json(folder / "genes.json"))
    conditions = ConditionVocabulary.from_json(read_json(folder / "conditions.json"))
    blocks = GeneBlocks.from_json(read_json(folder / "blocks.json"))
    vae_config = VaeConfig.model_validate(facts["vae"])
    flow_config = FlowConfig.model_validate(facts["flow"])
    scale = load_file(folder / "latent_scale.safetensors")
    velocity = make_flow_velocity(vae_config.latent_dim, conditions.sizes, flow_config)
    vae = _empty_vae(genes, conditions, blocks, vae_config)
    return ModelBundle(
        vae=_load_weights(vae, folder / "vae.safetensors", device),
        velocity=_load_weights(velocity, folder / "velocity.safetensors", device),
        latent_scale=LatentScale(scale["mean"].numpy(), scale["sd"].numpy()),
        genes=genes,
        conditions=conditions,
        blocks=blocks,
        support={tuple(codes): n for *codes, n in facts["support"]},
        vae_config=vae_config,
        flow_config=flow_config,
        about=manifest["about"],
        hash=digest(manifest["files"]),
        reflow_config=_reflow_config(facts["reflow"]),
        transport=_load_transport(folder, facts["transport"], vae_config, conditions, device),
        latent_means=LatentMeans.load(folder / LATENT_MEANS)
        if LATENT_MEANS in manifest["files"]
        else None,
    )


def _load_transport(
    folder: Path,
    facts: Mapping[str, Any] | None,
    vae_config: VaeConfig,
    conditions: ConditionVocabulary,
    device: str,
) -> Transport | None:
    if facts is None:
        return None
    empty = read_transport(folder, facts, vae_config.latent_dim, conditions)
    return replace(empty, velocity=_load_weights(empty.velocity, folder / WEIGHTS, device))


def _reflow_config(facts: Mapping[str, Any] | None) -> ReflowConfig | None:
    return None if facts is None else ReflowConfig.model_validate(facts)


def _empty_vae(
    genes: GeneVocabulary, conditions: ConditionVocabulary, blocks: GeneBlocks, config: VaeConfig
) -> Vae:
    """A VAE of the right shape; its scale factors and start values come with the weights."""
    shape = VaeShape(
        members=torch.from_numpy(blocks.members),
        n_genes=len(genes),
        sizes=conditions.sizes,
        columns=conditions.columns,
    )
    placeholder = torch.ones(len(genes))
    return Vae(shape, config, scale=placeholder, fraction=placeholder)


def _save_weights(module: nn.Module, path: Path) -> None:
    weights = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    save_file(weights, path)


def _load_weights(module: Module, path: Path, device: str) -> Module:
    module.load_state_dict(load_file(path))
    return module.to(device).eval().requires_grad_(False)
