import inspect

import cloudpickle
import pytest
from pydantic import BaseModel, ValidationError

from save_dist.config import schema
from save_dist.config.schema import (
    BlocksJob,
    ComposeConfig,
    ConditionsConfig,
    EmbeddingConfig,
    FlowConfig,
    GenerateJob,
    GuidanceConfig,
    IngestConfig,
    OutputConfig,
    PipelineJob,
    ReflowConfig,
    RunConfig,
    SolverConfig,
    SplitConfig,
    TrainJob,
    TransferConfig,
    TransportConfig,
    VaeConfig,
)

RUN = {"dir": "runs/x"}
CONDITIONS = {"columns": ["condition", "cell_type"]}
CONTROLLED = {**CONDITIONS, "reference": {"condition": "ctrl"}}
INGEST = {"inputs": [{"path": "a.h5ad"}]}
SECTIONS = [
    value
    for value in vars(schema).values()
    if inspect.isclass(value)
    and issubclass(value, BaseModel)
    and value.__module__ == schema.__name__
]


def pipeline(**sections):
    return PipelineJob(
        **{"run": RUN, "conditions": CONDITIONS, "ingest": INGEST, **sections},
    )


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_section_is_frozen_and_closed(section):
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    assert section.__doc__


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig(dir="x").seed = 3


def test_roots_share_their_sections():
    """A key means the same in every job, so single jobs and the pipeline cannot drift apart."""
    whole = PipelineJob.model_fields
    for root in (BlocksJob, TrainJob, GenerateJob):
        for name, field in root.model_fields.items():
            assert field.annotation is whole[name].annotation
            assert field.default == whole[name].default


def test_settings_travel_to_workers():
    config = pipeline()
    assert cloudpickle.loads(cloudpickle.dumps(config)) == config
    assert PipelineJob.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("section", "values", "text"),
    [
        pytest.param(RunConfig, {"dir": "x", "seed": -1}, "greater than or equal to 0", id="seed"),
        pytest.param(SplitConfig, {"test": 1.2}, "less than or equal to 1", id="share"),
        pytest.param(
            SplitConfig,
            {"test": 0.6, "validation": 0.4},
            r"split.test=0.6 and split.validation=0.4 leave no cells",
            id="split",
        ),
        pytest.param(VaeConfig, {"kl_weight": float("inf")}, "finite number", id="infinite"),
        pytest.param(VaeConfig, {"kl_weight": float("nan")}, "finite number", id="undefined"),
        pytest.param(
            VaeConfig,
            {"latent_dim": 12},
            r"vae.latent_dim=12 is not a multiple",
            id="latent tokens",
        ),
        pytest.param(
            VaeConfig,
            {"n_heads": 5},
            r"vae.width=64 is not a multiple of vae.n_heads=5",
            id="vae heads",
        ),
        pytest.param(
            VaeConfig,
            {"latent_mask": [0.4, 0.2]},
            r"vae.latent_mask=\[0.4, 0.2\] is reversed",
            id="latent mask",
        ),
        pytest.param(
            FlowConfig,
            {"backbone": "attention", "n_heads": 5},
            r"flow.width=128 is not a multiple of flow.n_heads=5",
            id="flow heads",
        ),
        pytest.param(
            TransportConfig,
            {"backbone": "attention", "n_heads": 5},
            r"transport.width=128 is not a multiple of transport.n_heads=5",
            id="transport heads",
        ),
        pytest.param(
            TransportConfig,
            {"columns": ["a", "a"]},
            r"transport.columns \['a', 'a'\] names a column twice",
            id="transport column twice",
        ),
        pytest.param(ComposeConfig, {"blend": 1.5}, "less than or equal to 1", id="blend"),
        pytest.param(
            GuidanceConfig,
            {"interval": [0.9, 0.1]},
            r"guidance.interval=\[0.9, 0.1\]",
            id="interval",
        ),
        pytest.param(SolverConfig, {"method": "heun3"}, "'euler', 'midpoint'", id="solver"),
        pytest.param(
            EmbeddingConfig,
            {"source": "file"},
            "path goes with source: file",
            id="file without path",
        ),
        pytest.param(
            EmbeddingConfig,
            {"path": "x.csv"},
            "path goes with source: file or source: text",
            id="path without file",
        ),
        pytest.param(
            EmbeddingConfig,
            {"source": "text", "path": "x.tsv"},
            "embedding.model, the sentence encoder, goes with source: text",
            id="text without model",
        ),
        pytest.param(
            EmbeddingConfig,
            {"source": "file", "path": "x.csv", "model": "m"},
            "goes with source: text",
            id="model without text",
        ),
        pytest.param(
            EmbeddingConfig,
            {"source": "text", "model": "m"},
            "path goes with source: file or source: text",
            id="text without table",
        ),
        pytest.param(
            OutputConfig,
            {"cells_per_part": 1000, "cells_per_chunk": 128},
            r"cells_per_part=1000 is not a multiple of output.cells_per_chunk=128; try 16384",
            id="part of broken chunks",
        ),
        pytest.param(
            OutputConfig,
            {"cells_per_part": 1000},
            r"cells_per_part=1000 is not a multiple of 128; try 16384, or set output.cells_per_ch",
            id="part of broken chunks of no set size",
        ),
        pytest.param(TransferConfig, {"target": {}}, "target={} changes nothing", id="no target"),
        pytest.param(IngestConfig, {"inputs": []}, "at least 1 item", id="no input"),
        pytest.param(
            IngestConfig,
            {"inputs": [{"path": "a"}, {"path": "a"}]},
            "lists a path twice",
            id="input twice",
        ),
        pytest.param(ConditionsConfig, {"columns": []}, "at least 1 item", id="no column"),
        pytest.param(
            ConditionsConfig,
            {"columns": ["a", "b", "a"]},
            "names a column twice",
            id="column twice",
        ),
        pytest.param(
            ConditionsConfig,
            {"columns": ["a"], "held_out": [{"b": "1"}], "exclude": [{"c": "1"}]},
            r"b, c stand in reference, held_out or exclude but not in conditions.columns \['a'\]",
            id="foreign columns",
        ),
        pytest.param(
            ConditionsConfig,
            {"columns": ["a"], "exclude": [{}]},
            "an empty combination in held_out or exclude would match every cell",
            id="empty pattern",
        ),
    ],
)
def test_refused(section, values, text):
    with pytest.raises(ValidationError, match=text):
        section(**values)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: VaeConfig(backbone="mlp", n_heads=5), id="heads of an mlp"),
        pytest.param(lambda: FlowConfig(backbone="mlp", n_heads=5), id="heads of an mlp flow"),
        pytest.param(lambda: VaeConfig(latent_mask=(0.3, 0.3)), id="one share"),
        pytest.param(lambda: SplitConfig(test=0, validation=0), id="all for training"),
        pytest.param(lambda: EmbeddingConfig(source="file", path="x.csv"), id="file"),
        pytest.param(
            lambda: EmbeddingConfig(source="text", path="x.tsv", model="package:a/b"), id="text"
        ),
    ],
)
def test_accepted(make):
    assert make()


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        pytest.param(
            {"cluster": {"n_workers": 3}},
            r"n_lanes=4 is not a multiple of cluster.n_workers=3; use n_lanes: 12",
            id="lanes over ranks",
        ),
        pytest.param(
            {"cluster": {"n_workers": 4, "min_workers": 2}},
            r"n_lanes=4 does not divide over every number .* from cluster.min_workers=2 to 4; "
            r"use n_lanes: 12",
            id="lanes over elastic ranks",
        ),
        pytest.param(
            {"cluster": {"n_workers": 2, "min_workers": 4}},
            r"cluster.min_workers=4 is above cluster.n_workers=2",
            id="elastic ranks reversed",
        ),
        pytest.param(
            {"vae": {"optim": {"cells_per_step": 250}}},
            r"vae.optim.cells_per_step=250 is not a multiple of n_lanes .* = 4; try 248",
            id="cells over lanes",
        ),
        pytest.param(
            {"flow": {"optim": {"cells_per_step": 1, "n_accumulation": 2}}},
            r"flow.optim.cells_per_step=1 is not .* = 8; try 8",
            id="cells over accumulation",
        ),
        pytest.param(
            {
                "training": {"stages": ["transport"]},
                "transport": {"columns": ["condition"], "optim": {"cells_per_step": 6}},
                "conditions": CONTROLLED,
            },
            r"transport.optim.cells_per_step=6 is not a multiple of n_lanes .* = 4; try 8",
            id="pairs over lanes",
        ),
        pytest.param(
            {
                "training": {"stages": ["flow", "reflow"]},
                "reflow": {"optim": {"cells_per_step": 6}},
            },
            r"reflow.optim.cells_per_step=6 is not a multiple of n_lanes .* = 4; try 8",
            id="paths over lanes",
        ),
        pytest.param(
            {"training": {"stages": ["vae", "flow", "transport"]}},
            r"training.stages names transport, but transport.columns is empty",
            id="transport of nothing",
        ),
    ],
)
def test_cells_divide_over_lanes_and_ranks(sections, text):
    own = {name: values for name, values in sections.items() if name != "conditions"}
    for root in (lambda: TrainJob(run=RUN, **own), lambda: pipeline(**sections)):
        with pytest.raises(ValidationError, match=text):
            root()


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        (
            ["vae", "reflow", "flow"],
            r"\[vae, reflow, flow\] is out of .*; write \[vae, flow, reflow",
        ),
        (["transport", "flow"], r"out of order .*; write \[flow, transport\]"),
        (["vae", "vae"], r"names a stage twice; write \[vae\]"),
        (["vae", "reflow"], r"\[vae, reflow\] names reflow without flow.*name flow before it"),
        (["distil"], r"'vae', 'flow', 'reflow' or 'transport'"),
    ],
    ids=str,
)
def test_stages_follow_each_other(stages, text):
    with pytest.raises(ValidationError, match=text):
        TrainJob(run=RUN, training={"stages": stages})


def test_a_reflow_may_be_added_to_a_finished_flow():
    assert TrainJob(run=RUN, training={"stages": ["flow", "reflow"]})
    assert ReflowConfig().optim.n_steps == 1000


def test_a_teacher_takes_fixed_steps():
    with pytest.raises(ValidationError, match="'euler', 'midpoint', 'heun' or 'rk4'"):
        ReflowConfig(teacher={"method": "dopri5"})


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"vae": {"encoder_columns": ["donor"]}}, "vae.encoder_columns"),
        ({"vae": {"decoder_columns": ["donor"]}}, "vae.decoder_columns"),
        ({"transport": {"columns": ["donor"]}}, "transport.columns"),
        ({"grid": {"columns": {"donor": "all"}}}, "grid.columns"),
        ({"grid": {"include": [{"donor": "1"}]}}, "grid.include"),
        ({"grid": {"exclude": [{"donor": "1"}]}}, "grid.exclude"),
        ({"grid": {"guidance": {"columns": {"donor": 1.5}}}}, "grid.guidance.columns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pipeline_checks_names_before_anything_runs(sections, setting):
    with pytest.raises(ValidationError, match=f"{setting} names donor, which conditions.columns"):
        pipeline(**sections)
    columns = {"columns": ["condition", "cell_type", "donor"], "reference": {"donor": "1"}}
    assert pipeline(**sections, conditions=columns)


def test_a_transport_column_needs_a_reference():
    sections = {"transport": {"columns": ["condition"]}}
    with pytest.raises(ValidationError, match=r"names condition, which has no reference value"):
        pipeline(**sections)


def test_composing_in_a_pipeline_needs_the_transport_stage():
    sections = {
        "grid": {"unseen": "compose"},
        "transport": {"columns": ["condition"]},
        "conditions": CONTROLLED,
    }
    with pytest.raises(ValidationError, match=r"grid.unseen=compose needs a transport; set train"):
        pipeline(**sections)
    assert pipeline(**sections, training={"stages": ["vae", "flow", "transport"]})
