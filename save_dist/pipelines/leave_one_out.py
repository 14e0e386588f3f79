"""Leave one out: every value of a column held out in turn, one model each, one table at the end.

`stim` cells of one type are kept from everything that is fitted, a model is trained without them,
and makes them; so for every type. Folds are independent and share the store alone, so they are
worked on side by side (`cluster.n_workers` of them); what is finished is kept.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from save_dist.cluster.runtime import shared_session
from save_dist.cluster.spread import RaySpread
from save_dist.config.schema import PipelineJob
from save_dist.core.durable import write_bytes, write_json
from save_dist.core.errors import ConfigError, DataError
from save_dist.data.source import SomaSource, StoreLocator
from save_dist.evaluation import catalogue, markup
from save_dist.evaluation.report import responders_table
from save_dist.evaluation.scores import Responder
from save_dist.pipelines.context import Context, Summary
from save_dist.pipelines.fold import Fold, work
from save_dist.pipelines.ingest import attached, ingest
from save_dist.tracking.progress import render_table
from save_dist.vocab.conditions import matches

FOLDS = "folds"
TABLE_FILE, RECORDS_FILE = "leave_one_out.txt", "leave_one_out.json"

COLUMNS = {
    "energy s": "energy_s",
    "mean R2": "mean_r2",
    "mean PCC": "mean_pcc",
    "R2 top 100": "change_r2_top",
    "change PCC": "change_pcc",
    "slope": "change_slope_significant",
    "zeros": "zero_difference",
    "AUC genes": "c2st_trees_gene",
}
"""Title -> metric of the table of means; of metrics per column the first column's."""
YARDSTICKS = (catalogue.FLOOR, catalogue.SHUFFLE, catalogue.MARGINAL)
"""Made from the very cells asked for, or from any: they win nothing."""


def leave_one_out(
    config: PipelineJob, context: Context, each: str, condition: Mapping[str, str]
) -> Summary:
    """Run all folds and write the table.

    Args:
        config: what every fold is trained with.
        context: of the whole; folds lie below its folder.
        each: column whose values are held out, one per fold.
        condition: what the held-out cells have in the other columns, e.g. {"condition": "stim"}.

    Raises:
        ConfigError: for columns that are none, or folds made with other settings.
        DataError: if no value has cells enough.
    """
    _check(config, each, condition)
    with shared_session():
        ingest(config, context)
        place = attached(context.paths) or StoreLocator(str(context.paths.store.absolute()))
        values = _values(config, place, each, condition)
        folds = list(_folds(config, context, each, condition, values))
        with context.progress.task("folds", len(folds), "folds") as task:
            records = []
            for record in RaySpread(config.cluster)(work, folds):
                records.append(record)
                task.update(len(records))
    text = "".join(render_table(table) for table in tables(records))
    write_json(context.paths.root / RECORDS_FILE, {"each": each, "folds": records})
    write_bytes(context.paths.root / TABLE_FILE, text.encode())
    for name in (RECORDS_FILE, TABLE_FILE):
        context.journal.artifact(context.paths.root / name)
    averages = {f"mean/{way}/energy_s": value for way, value in means(records, "energy_s").items()}
    context.journal.metrics({k.replace(",", ""): v for k, v in averages.items()}, step=0)
    return {"table": text, "winners": winners(records), "n_folds": len(records)}


def _check(config: PipelineJob, each: str, condition: Mapping[str, str]) -> None:
    columns = config.conditions.columns
    unknown = [name for name in (each, *condition) if name not in columns]
    if unknown or each in condition:
        raise ConfigError(
            f"cannot hold out each {each!r} under {dict(condition)}: name different columns of "
            f"conditions.columns {columns}"
        )


def _values(
    config: PipelineJob, store: StoreLocator, each: str, condition: Mapping[str, str]
) -> list[str]:
    """Values with enough cells under the condition, in order."""
    with SomaSource(store) as source:
        obs = source.obs(config.conditions.columns)
    chosen = ~matches(obs, config.conditions.exclude) & matches(obs, [condition])
    n_cells = obs[each].astype(str)[chosen].value_counts()
    large = sorted(n_cells.index[n_cells >= config.evaluate.min_cells])
    if len(large) < 2:
        raise DataError(
            f"only {large} of column {each!r} have evaluate.min_cells="
            f"{config.evaluate.min_cells} cells with {dict(condition)}; two values are needed"
        )
    return large


def _folds(
    config: PipelineJob,
    context: Context,
    each: str,
    condition: Mapping[str, str],
    values: Sequence[str],
) -> Iterator[Fold]:
    """The same configuration, with another combination held out and a folder of its own.

    The store is shared: a fold uses it where it is, as it does a store of others.
    """
    source = config.source
    settings = config.model_dump(mode="json")
    if source is None:
        settings |= {"ingest": None, "source": {"uri": str(context.paths.store.absolute())}}
    for i, value in enumerate(values):
        held_out = {**condition, each: value}
        name = re.sub(r"[^A-Za-z0-9]+", "-", value).strip("-")
        fold_settings = {
            **settings,
            "run": {**settings["run"], "dir": str(context.paths.root / FOLDS / f"{i}-{name}")},
            "conditions": {**settings["conditions"], "held_out": [held_out]},
            "cluster": {**settings["cluster"], "n_workers": 1, "min_workers": None},
            "evaluate": {**settings["evaluate"], "n_workers": 1},
        }
        journal = context.journal.child(f"held-out {value}")
        yield Fold(value, held_out, PipelineJob.model_validate(fold_settings), journal)


def means(records: Sequence[Summary], metric: str) -> dict[str, float]:
    """Mean over the folds that are large enough, of every way and baseline that all of them have.

    Of a metric per column the first column's.
    """
    chosen = [r for r in records if r["is_averaged"]] or list(records)
    found = [{name: _figure(v, metric) for name, v in _candidates(r).items()} for r in chosen]
    return {
        name: float(np.mean([row[name] for row in found]))
        for name in found[0]
        if all(np.isfinite(row.get(name, np.nan)) for row in found)
    }


def winners(records: Sequence[Summary]) -> dict[str, str]:
    """Per fold, who has the smallest energy score; yardsticks do not compete."""
    return {record["name"]: _winner(record) for record in records}


def tables(records: Sequence[Summary]) -> Iterator[Table]:
    """Energy scores by fold, means of all else, and the genes of known response."""
    by_fold = Table(
        title="Energy s by what was held out; * is nearest",
        caption="0: as close as other real cells, 1: no better than ignoring the condition",
    )
    by_fold.add_column("", no_wrap=True)
    for record in records:
        by_fold.add_column(f"{record['name']} ({record['n_test']})", justify="right")
    by_fold.add_column("mean", justify="right")
    overall, best = means(records, "energy_s"), winners(records)
    names = list(dict.fromkeys(name for r in records for name in _candidates(r)))
    for name in names:
        cells = [_cell(record, name, best) for record in records]
        by_fold.add_row(name, *cells, markup.number(overall.get(name)))
    yield by_fold

    averages = Table(title="Means over what was held out")
    averages.add_column("", no_wrap=True)
    for title in COLUMNS:
        averages.add_column(title, justify="right")
    found = {title: means(records, metric) for title, metric in COLUMNS.items()}
    for name in names:
        averages.add_row(name, *(markup.number(row.get(name)) for row in found.values()))
    yield averages

    responders = [Responder(**r) for record in records for r in record["responders"]]
    held_out = [r for r in responders if r.group == catalogue.HELD_OUT]
    if held_out:
        yield responders_table(held_out)


def _cell(record: Summary, name: str, best: Mapping[str, str]) -> str:
    values = _candidates(record).get(name)
    if values is None or not np.isfinite(_figure(values, "energy_s")):
        return "-"
    star = "*" if best[record["name"]] == name else ""
    return f"{star}{markup.number(_figure(values, 'energy_s'))}"


def _winner(record: Summary) -> str:
    yardsticks = {catalogue.CANDIDATES[key][0].lower() for key in YARDSTICKS}
    rivals = {
        name: _figure(values, "energy_s")
        for name, values in _candidates(record).items()
        if name not in yardsticks
    }
    known = {name: value for name, value in rivals.items() if np.isfinite(value)}
    return min(known, key=lambda name: known[name]) if known else "-"


def _candidates(record: Summary) -> dict[str, Mapping[str, float]]:
    """Ways of the model, then baselines by their titles."""
    baselines: Mapping[str, Any] = record["baselines"]
    titled = {
        title.lower(): baselines[key]
        for key, (title, _) in catalogue.CANDIDATES.items()
        if key in baselines
    }
    return {**record["ways"], **titled}


def _figure(values: Mapping[str, float], metric: str) -> float:
    found = sorted(name for name in values if name.split(":")[0] == metric)
    return float(values[found[0]]) if found else float("nan")
