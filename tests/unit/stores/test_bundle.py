import json
import shutil

import numpy as np
import pytest
import torch
from tiny_model import (
    CONDITIONS,
    SUPPORT,
    load_tiny_model,
    save_tiny_model,
    tiny_effects,
    tiny_transport,
)

from save_dist.config.schema import ReflowConfig
from save_dist.core.errors import CheckpointError
from save_dist.stores.bundle import FORMAT, load_bundle

FILES = [
    "blocks.json",
    "conditions.json",
    "genes.json",
    "latent_scale.safetensors",
    "manifest.json",
    "model.json",
    "vae.safetensors",
    "velocity.safetensors",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "model"
    return folder, save_tiny_model(folder)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "model")


def test_everything_comes_back(saved):
    folder, model_hash = saved
    bundle = load_bundle(folder)
    assert bundle.hash == model_hash
    assert bundle.conditions == CONDITIONS
    assert bundle.support == SUPPORT
    assert bundle.genes.ids[:2] == ("gene0", "gene1")
    assert bundle.vae_config.latent_dim == 4
    assert bundle.flow_config.depth == 1
    assert bundle.about == {"config_hash": "c0ffee", "git_commit": "abc"}
    np.testing.assert_allclose(bundle.latent_scale.mean[-1], np.log(200))
    assert bundle.blocks.members.shape == (3, 5)


def test_the_model_only_computes(saved):
    bundle = load_bundle(saved[0])
    for module in (bundle.vae, bundle.velocity):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_two_loads_compute_the_same(saved):
    x, t, codes = torch.ones(2, 5), torch.zeros(2), torch.tensor([[0, 1], [2, 0]])
    first, second = (load_bundle(saved[0]).velocity(x, t, codes) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_the_hash_is_of_the_model_alone(saved, tmp_path):
    assert save_tiny_model(tmp_path / "elsewhere") == saved[1]
    assert save_tiny_model(tmp_path / "other", seed=7) != saved[1]
    assert save_tiny_model(tmp_path / "genes", n_genes=13) != saved[1]


def test_saving_again_replaces(tmp_path):
    first = load_tiny_model(tmp_path / "model")
    second = load_tiny_model(tmp_path / "model", seed=7)
    assert first.hash != second.hash
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_the_folder_holds_what_is_listed(saved):
    assert sorted(p.name for p in saved[0].iterdir()) == FILES


@pytest.fixture(scope="module")
def with_transport(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "carrying"
    return folder, save_tiny_model(folder, transport=True)


def test_a_transport_comes_back(with_transport, saved):
    bundle = load_bundle(with_transport[0])
    expected = tiny_transport(12)
    transport = bundle.transport
    assert bundle.hash == with_transport[1] != saved[1]
    assert bundle.transport_columns == ("condition",)
    assert transport.config == expected.config
    assert transport.temperatures == {"condition": 0.4}
    assert transport.pairs == expected.pairs and len(transport.pairs) == 2
    assert transport.profiles.codes == expected.profiles.codes
    for name in ("n_cells", "mean_log", "mean_count"):
        np.testing.assert_array_equal(
            getattr(transport.profiles, name), getattr(expected.profiles, name)
        )
    x, told = torch.ones(1, 5), torch.tensor([transport.told(1, 1)])
    want = expected.velocity(x, torch.zeros(1), told)
    assert torch.equal(transport.velocity(x, torch.zeros(1), told), want)
    assert not any(p.requires_grad for p in transport.velocity.parameters())


def test_a_reflow_is_recorded_and_part_of_the_model(tmp_path, saved):
    config = ReflowConfig(n_times=2)
    bundle = load_tiny_model(tmp_path / "model", reflow_config=config)
    assert bundle.reflow_config == config
    assert bundle.hash != saved[1] and load_bundle(saved[0]).reflow_config is None


def test_a_model_without_transport_says_so(saved):
    bundle = load_bundle(saved[0])
    assert bundle.transport is None and bundle.transport_columns == ()


@pytest.mark.parametrize("name", ["transport.safetensors", "profiles.safetensors"])
def test_an_altered_transport_is_refused(with_transport, tmp_path, name):
    copy = shutil.copytree(with_transport[0], tmp_path / "model")
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_bundle(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_one_changed_byte_is_refused(copy, name, place):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    named = "manifest" if name == "manifest.json" else name.replace(".", r"\.")
    with pytest.raises(CheckpointError, match=named):
        load_bundle(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_bundle(copy)


def test_altered_provenance_is_refused(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["about"]["git_commit"] = "def"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"`about` in .*manifest\.json was altered"):
        load_bundle(copy)


def test_an_absent_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent does not exist"):
        load_bundle(tmp_path / "absent")


def test_another_format_is_refused(saved, monkeypatch):
    monkeypatch.setattr("save_dist.stores.bundle.FORMAT", FORMAT + 1)
    expected = f"format {FORMAT}, this version reads {FORMAT + 1}; export it again"
    with pytest.raises(CheckpointError, match=expected):
        load_bundle(saved[0])


def test_an_additive_mean_comes_back_and_is_part_of_the_model(tmp_path, saved):
    bundle = load_tiny_model(tmp_path / "model", centre="additive")
    codes = torch.tensor([[0, 1], [2, 0], [3, 2]])
    m = bundle.velocity.centre(codes)
    torch.testing.assert_close(m, tiny_effects()[codes + torch.tensor([0, 4])].sum(1))
    assert m[:2].all() and not m[2].any()
    assert bundle.flow_config.centre == "additive" and bundle.hash != saved[1]
    assert load_bundle(saved[0]).velocity.centre is None
    other = save_tiny_model(tmp_path / "other", centre="additive", effects=2 * tiny_effects())
    assert other != bundle.hash
