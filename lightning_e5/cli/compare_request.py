"""``compare``: several runs side by side, or one ablation's variants; which of the two, the arguments say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.storage import write_text
from lightning_e5.results.ablation import ABLATION, AblationData, is_ablation, overrides_of


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """What ``compare`` was asked for.

    ``what``: run directories; or one ablation (its directory or YAML) and ``scale=...``, ``runs_dir=...``. ``metric``: full
    names or their ends. ``csv``, ``html``, ``latex``: files that are written; ``export``: a folder (the last two of an
    ablation only).
    """

    what: Sequence[str]
    metric: Sequence[str] | None = None
    csv: str | None = None
    html: str | None = None
    latex: str | None = None
    export: str | None = None


def run_compare(request: CompareRequest) -> str:
    """The comparison as text for a terminal; the files asked for are written.

    Raises:
        UserError: neither runs nor an ablation, or as `compare` and `compare_ablation`.
    """
    first, *rest = request.what
    for option, file in (("--csv", request.csv), ("--html", request.html), ("--latex", request.latex)):
        if file is not None and Path(file).is_dir():
            raise UserError(f"{option} {file}: is a directory, not a file")
    if is_ablation(Path(first)):
        return _compare_ablation(request, overrides_of(rest))
    for argument in request.what:
        _check_run(Path(argument))
    for option, value in (("--latex", request.latex), ("--export", request.export)):
        if value is not None:
            raise UserError(f"{option}: is of an ablation, not of single runs")
    from lightning_e5.report.compare import compare

    return compare([Path(run) for run in request.what], metrics=request.metric, csv=request.csv, html=request.html)


def _compare_ablation(request: CompareRequest, overrides: dict[str, str]) -> str:
    from lightning_e5.report.tables.comparison import as_csv, as_latex, as_text
    from lightning_e5.results.comparison import compare_ablation

    path = Path(request.what[0])
    if path.is_dir() and overrides:
        raise UserError(f"compare: {next(iter(overrides))}=... goes with an ablation's YAML, not with its directory")
    given = {"at_scale" if key == "scale" else key: value for key, value in overrides.items()}
    comparison = compare_ablation(AblationData(path, **given), request.metric)
    writers: list[tuple[str | None, Callable[[], str]]] = [
        (request.csv, lambda: as_csv(comparison)),
        (request.latex, lambda: as_latex(comparison)),
        (request.html, lambda: _page(comparison)),
    ]
    for file, write in writers:
        if file is not None:
            write_text(Path(file), write())
    if request.export is not None:
        from lightning_e5.report.comparison_export import export_comparison

        export_comparison(comparison, Path(request.export))
    return as_text(comparison)


def _page(comparison: object) -> str:
    from lightning_e5.report.comparison_page import comparison_page

    return comparison_page(comparison)  # type: ignore[arg-type]


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
