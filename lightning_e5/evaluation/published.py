"""Published figures beside one's own: checked names, one number per row."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_e5.errors import UserError, suggestion

Published = Mapping[str, Mapping[str, float]]


def published_of(published: Published, model: str, name: str) -> dict[str, float]:
    """Metric -> published figure of one model on one set."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): float(v) for key, v in published.get(model, {}).items() if key.startswith(prefix)}


def check_published(published: Published, models: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    """UserError for a published figure of a model or of a ``set/metric`` that the evaluation does not give."""
    for model, figures in published.items():
        if model not in models:
            raise UserError(f"evaluate.published: {model!r} is not one of the models{suggestion(model, models)}")
        own = [key.removeprefix(f"{model}/") for key in metrics if key.startswith(f"{model}/")]
        for key, figure in figures.items():
            if key not in own:
                raise UserError(f"evaluate.published.{model}: {key!r} was not measured{suggestion(key, own)}")
            if isinstance(figure, bool) or not isinstance(figure, int | float):
                raise UserError(f"evaluate.published.{model}: {figure!r} of {key!r} is not a number")
