"""YAML files and `--set` pairs -> a validated root, and back to a dump with a hash.

`python -m save_dist.config.load VERB FILE --set a.b=c` prints the resolved configuration.
"""

import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from save_dist.config import schema
from save_dist.core.durable import digest
from save_dist.core.errors import ConfigError, listed
from save_dist.core.paths import PACKAGE_PREFIX, in_package
from save_dist.core.redaction import redact

Job = TypeVar("Job", bound=schema.JobConfig)
AnySection = TypeVar("AnySection", bound=schema.Section)

JOBS: dict[str, type[schema.JobConfig]] = {
    "ingest": schema.IngestJob,
    "blocks": schema.BlocksJob,
    "train": schema.TrainJob,
    "generate": schema.GenerateJob,
    "transfer": schema.TransferJob,
    "evaluate": schema.EvaluateJob,
    "pipeline": schema.PipelineJob,
    "sweep": schema.SweepJob,
}
TICK = "schedule-tick"
SUBMITTED: dict[str, type[schema.JobConfig]] = {**JOBS, TICK: schema.GenerateJob}
"""What may run on a cluster, and the schema of its configuration."""
EXTENDS = "extends"
MOST_CHARACTERS = 4 * 2**20
MOST_VALUES = 200_000
"""Values of one file, aliases written out: a few lines of aliases can stand for billions."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # SafeLoader refuses it with its place
            if key in seen:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"key {key!r} stands twice in the mapping at line {line} of "
                    f"{node.start_mark.name}; keep one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_text(text: str, name: str) -> Any:
    """Plain values of a YAML text that may come from a stranger.

    Args:
        text: YAML; tags that make objects are refused.
        name: where it comes from, for messages.

    Raises:
        ConfigError: if it is no YAML, gives a key twice, or is large once its aliases are
            written out.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"{name} has {len(text)} characters, at most {MOST_CHARACTERS} are read; put long "
            "lists into files that the configuration names"
        )
    loader = _StrictLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (n_nodes := _expanded_size(node, {})) > MOST_VALUES:
            raise ConfigError(
                f"{name} stands for {n_nodes:.3g} values once its aliases (*name) are written "
                f"out, at most {MOST_VALUES} are read; write the values without aliases"
            )
        return loader.construct_document(node)
    except RecursionError as e:
        raise ConfigError(f"{name} is nested too deeply; write it flat") from e
    except yaml.YAMLError as e:
        reason = " ".join(str(e).split())
        raise ConfigError(f"{name} cannot be read as YAML: {reason}") from e
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values a node stands for; what an alias repeats counts every time."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = MOST_VALUES + 1  # of a node that holds itself
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in children)
    return sizes[id(node)]


def load(root: type[Job], path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read, merge and validate one job's configuration.

    Args:
        root: schema of the job.
        path: YAML file, or `package:NAME/PATH`, e.g. package:save_dist/presets/demo/pipeline.yaml;
            its `extends: [FILE, ...]` are read first, relative to it.
        overrides: `dotted.key=value` pairs, values in YAML.

    Raises:
        ConfigError: listing every wrong key or value with its dotted path.
    """
    values = read_yaml(path)
    for pair in overrides:
        values = merge(values, parse_override(pair))
    return parse(root, values, str(path))


def parse(root: type[AnySection], values: Mapping[str, Any], name: str) -> AnySection:
    """A validated section from plain values.

    Args:
        root: schema of the section.
        values: settings by name.
        name: where they come from, for messages.

    Raises:
        ConfigError: listing every wrong key or value with its dotted path.
    """
    try:
        return root.model_validate(values)
    except ValidationError as e:
        raise ConfigError(f"{name} is not a valid {root.__name__}:\n{_explain(e, root)}") from e


def read_yaml(path: Path, _readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One YAML mapping with its `extends` merged in, later files winning.

    A file that is extended lies relative to its reader, or in a package: `package:NAME/FILE`.

    Raises:
        ConfigError: if a file is absent, no mapping, or extends itself.
    """
    path = in_package(str(path)) or path
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist (working folder: {Path.cwd()})")
    if path.resolve() in _readers:
        raise ConfigError(f"{path} extends itself, through {listed(_readers)}; break the circle")
    own = _read_mapping(path)
    names = own.pop(EXTENDS, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: {EXTENDS} is {names!r}, expected a list of files: [FILE, ...]")
    values: dict[str, Any] = {}
    for name in names:
        other = Path(name) if name.startswith(PACKAGE_PREFIX) else path.parent / name
        values = merge(values, read_yaml(other, (*_readers, path.resolve())))
    return merge(values, own)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        own = read_text(path.read_text(encoding="utf-8"), str(path))
    except (UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"{path} cannot be read as YAML: {e}") from e
    if own is None:
        return {}
    if not isinstance(own, dict):
        raise ConfigError(f"{path} holds a {type(own).__name__}, expected a mapping of sections")
    return {str(key): value for key, value in own.items()}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; anything else in `over` replaces what stands in `base`.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def parse_override(pair: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping.

    >>> parse_override("vae.optim.lr=1e-3")
    {'vae': {'optim': {'lr': '1e-3'}}}
    """
    key, sign, text = pair.partition("=")
    names = key.split(".")
    if not sign or not all(names):
        raise ConfigError(f"--set {pair!r} is not of the form section.key=value")
    value: Any = read_text(text, f"the value of --set {redact(pair)[:80]!r}")
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def resolved(config: BaseModel) -> dict[str, Any]:
    """Every setting, defaults included, as JSON-able values."""
    return config.model_dump(mode="json")


def config_hash(config: BaseModel) -> str:
    """sha256 of the resolved settings: equal hash, equal behaviour."""
    return digest(resolved(config))


def dump_yaml(config: BaseModel) -> str:
    """The resolved settings as YAML that `load` reads back."""
    return yaml.safe_dump(resolved(config), sort_keys=False)


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(root, item["loc"][:-1]))
            lines.append(f"  {where}: unknown key; known here: {known}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: required and missing")
        else:
            text = item["msg"].removeprefix("Value error, ")
            value = item["input"]
            got = "" if isinstance(value, Mapping) else f" (got {redact(str(value))[:80]!r})"
            lines.append(f"  {where}: {text}{got}")
    return "\n".join(lines)


def _known_keys(root: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `place`; positions in a list stand for the section of its items."""
    model = root
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_in(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section of an annotation such as `list[Section]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in inner if section), None)


def _main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in JOBS:
        raise ConfigError(f"usage: VERB FILE [--set a.b=c ...], VERB one of {listed(JOBS)}")
    verb, path, *rest = arguments
    config = load(JOBS[verb], Path(path), [word for word in rest if word != "--set"])
    sys.stdout.write(f"{dump_yaml(config)}# sha256 {config_hash(config)}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
