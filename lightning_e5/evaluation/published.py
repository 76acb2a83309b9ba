"""Published figures beside one's own: checked names, one number per metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning_e5.errors import UserError, suggestion
from lightning_e5.result_row import ResultRow

#: model -> ``set/metric`` -> figure.
Published = Mapping[str, Mapping[str, float]]


def published_of(published: Published, row: ResultRow) -> dict[str, float]:
    """Metric -> published figure, of the row's metrics."""
    figures = published.get(row.model, {})
    return {metric: float(figures[key]) for metric in row.metrics if (key := f"{row.collection}/{metric}") in figures}


def check_published(published: Published, models: Mapping[str, object], rows: Iterable[ResultRow]) -> None:
    """UserError for a published figure of a model or of a ``set/metric`` that the evaluation does not give."""
    measured = [(row.model, f"{row.collection}/{metric}") for row in rows for metric in row.metrics]
    for model, figures in published.items():
        if model not in models:
            raise UserError(f"evaluate.published: {model!r} is not one of the models{suggestion(model, models)}")
        own = [key for name, key in measured if name == model]
        for key, figure in figures.items():
            if key not in own:
                raise UserError(f"evaluate.published.{model}: {key!r} was not measured{suggestion(key, own)}")
            if isinstance(figure, bool) or not isinstance(figure, int | float):
                raise UserError(f"evaluate.published.{model}: {figure!r} of {key!r} is not a number")
