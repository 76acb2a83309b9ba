"""``compare``: runs, or one ablation's variants, as text and as the files asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.storage import write_text
from lightning_e5.report.tables.comparison import as_csv, as_latex, as_text
from lightning_e5.report.tables.what_differs import differing_table
from lightning_e5.results.ablation import ABLATION, AblationData, is_ablation, overrides_of
from lightning_e5.results.comparison import AblationComparison, Comparison, compare_ablation
from lightning_e5.results.run import RunData
from lightning_e5.results.single_runs import RunsComparison, compare_runs

#: In place of a file's or folder's name: a place of the comparison's own.
BESIDE = ""


def compare(
    what: Sequence[Path | str], *, metrics: Sequence[str] | None = None, csv: str | None = None, html: str | None = None,
    latex: str | None = None, export: str | None = None, say: Callable[[str], None] | None = None,
) -> str:  # fmt: skip
    """The comparison as text for a terminal; the files asked for are written.

    Args:
        what: run directories, of which the first is what the others are compared with; or one ablation (its directory, or its
            YAML) and ``scale=...``, ``runs_dir=...``.
        metrics: full names (``e5/python-docs/ndcg@10``, ``filter/recall``) or their ends (``ndcg@10``); the first run's
            headline, or the ablation's report, by default.
        csv: file that receives the table as CSV; of several runs the file beside it (see `differing_file`) what differs.
        html: file that receives a page of its own.
        latex: file that receives an ablation's table for LaTeX.
        export: folder that receives an ablation's small result files. For each of these ``BESIDE`` stands for a place of the
            comparison's own: in the ablation's directory, or beside the first run's (see `own_place`).
        say: called with a line for each place that was written to.

    Raises:
        UserError: neither runs nor an ablation, a file that is a directory, or as `compare_runs` and `compare_ablation`.
    """
    for option, file in (("--csv", csv), ("--html", html), ("--latex", latex)):
        if file is not None and file != BESIDE and Path(file).is_dir():
            raise UserError(f"{option} {file}: is a directory, not a file")
    written: list[Path] = []

    def place(given: str, ending: str) -> Path:
        written.append(own_place(comparison, Path(what[0]), ending) if given == BESIDE else Path(given))
        return written[-1]

    comparison: Comparison
    if what and is_ablation(Path(what[0])):
        comparison = compare_ablation(_open_ablation(Path(what[0]), [str(argument) for argument in what[1:]]), metrics)
        if latex is not None:
            write_text(place(latex, ".tex"), as_latex(comparison))
        if export is not None:
            from lightning_e5.report.comparison_export import export_comparison  # imports matplotlib

            export_comparison(comparison, place(export, ""))
    else:
        for argument in what:
            _check_run(Path(argument))
        for option, value in (("--latex", latex), ("--export", export)):
            if value is not None:
                raise UserError(f"{option}: is of an ablation, not of single runs")
        comparison = compare_runs([RunData(Path(run)) for run in what], metrics)
    if csv is not None:
        write_text(place(csv, ".csv"), as_csv(comparison))
        if isinstance(comparison, RunsComparison) and len(comparison.names) > 1:
            written.append(differing_file(written[-1]))
            write_text(written[-1], differing_table(comparison, whole=True).csv())
    if html is not None:
        from lightning_e5.report.comparison_page import comparison_page

        write_text(place(html, ".html"), comparison_page(comparison))
    if say is not None:
        for path in written:
            say(f"{path}: written")
    return as_text(comparison)


def own_place(comparison: Comparison, first: Path, ending: str) -> Path:
    """Where a comparison's file lies unless the user names one: ``comparison.html`` in an ablation's directory (the folder
    ``results`` for its small files), ``compare_A_B.html`` beside the first run's directory."""
    if isinstance(comparison, AblationComparison):
        return comparison.data.path / (f"comparison{ending}" if ending else "results")
    names = [Path(name).name for name in comparison.names] if isinstance(comparison, RunsComparison) else []
    named = "_".join(names[:3] + ([f"and_{len(names) - 3}_more"] if len(names) > 3 else []))
    return first.resolve().parent / f"compare_{named}{ending}"


def differing_file(csv: Path) -> Path:
    """Where ``compare`` writes what differs between runs whose table goes to ``csv``: ``table_differs.csv`` beside ``table.csv``."""
    return csv.with_name(f"{csv.stem}_differs{csv.suffix}")


def _open_ablation(path: Path, arguments: Sequence[str]) -> AblationData:
    overrides = overrides_of(arguments)
    if path.is_dir() and overrides:
        raise UserError(f"compare: {next(iter(overrides))}=... goes with an ablation's YAML, not with its directory")
    return AblationData(path, **{"at_scale" if key == "scale" else key: value for key, value in overrides.items()})


def _check_run(path: Path) -> None:
    """UserError for what is neither a run nor an ablation, saying what it is."""
    if is_ablation(path):
        raise UserError(f"compare: {path} is an ablation; it is compared alone, without other runs")
    if "=" in str(path) and not path.exists():
        raise UserError(f"compare: {str(path)!r}: scale=... and runs_dir=... go with one ablation's YAML, not with runs")
    if not path.exists():
        raise UserError(f"{path}: no such run directory, ablation directory or ablation YAML")
    if not path.is_dir():
        raise UserError(f"{path}: is neither a run directory nor an ablation (a file without the key 'ablation')")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: is neither a run directory (has no config.yaml) nor an ablation directory (has no {ABLATION})")
