"""An ablation YAML: one experiment with one thing changed at a time; read and checked here, planned in ``plan.py``."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node, check_name, read_yaml
from lightning_e5.errors import UserError, suggestion

#: Keys of an ablation and what they mean.
KEYS = {
    "ablation": "its name, the file's stem",
    "question": "what it answers, in one sentence",
    "description": "more about it",
    "held_constant": "what all variants share, as phrases",
    "seeds": "one run per variant and seed",
    "baseline": "the variant that the others are compared with",
    "also_compare": "pairs [variant, another one] whose difference stands in the tables too",
    "scale": "the default scale",
    "report": "full names of metrics; the first is the headline",
    "paper": "the paper's own figures: source, note, figures (column -> variant -> value), beside (metric -> the column that it answers)",
    "variants": "name -> {description, over}",
    "scales": "name -> {base, over, variants, report, seeds, paper, skip}",
}
_NEEDED = ("ablation", "question", "seeds", "baseline", "scale", "report", "variants", "scales")
_VARIANT_KEYS = ("description", "over")
_SCALE_KEYS = ("base", "description", "over", "variants", "report", "seeds", "paper", "skip")
_PAPER_KEYS = ("source", "note", "figures", "beside")
#: Top-level keys of an experiment that the runs of an ablation get from it.
SET_HERE = ("name", "seed")


@dataclass(frozen=True, slots=True)
class Ablation:
    """An ablation at one scale.

    overrides: variant -> what is merged onto ``base``, in order. skipped: variants without a run at this scale -> why.
    """

    file: Path
    name: str
    scale: str
    question: str
    held_constant: list[str]
    baseline: str
    report: list[str]
    seeds: list[int]
    paper: Node | None
    descriptions: dict[str, str]
    base: Path
    overrides: dict[str, list[Node]]
    skipped: dict[str, str] = field(default_factory=dict)
    also_compare: list[tuple[str, str]] = field(default_factory=list)


def is_ablation(path: Path) -> bool:
    """Whether the YAML is an ablation's and not an experiment's."""
    return "ablation" in read_yaml(path)


def scale_names(path: Path) -> list[str]:
    """The scales of an ablation YAML."""
    return list(_mapping(read_yaml(path).get("scales"), f"{path}: scales"))


def load_ablation(path: Path, scale: str | None = None) -> Ablation:
    """Read and check an ablation YAML at one scale, its default one where ``scale`` is None.

    Raises:
        UserError: what is wrong in it; the sentence names the file and the key.
    """
    tree = read_yaml(path)
    if "ablation" not in tree and ("stages" in tree or "extends" in tree):
        raise UserError(f"{path}: is one experiment's YAML and not an ablation's; use: python -m lightning_e5 run {shlex.quote(str(path))}")
    _known(tree, KEYS, str(path))
    for key in _NEEDED:
        if key not in tree:
            raise UserError(f"{path}: needs the key {key!r}: {KEYS[key]}")
    name = check_name(tree["ablation"], f"{path}: ablation")
    if name != path.stem:
        raise UserError(f"{path}: ablation: {name!r} is not the file's stem {path.stem!r}")
    _text(tree["question"], f"{path}: question")
    descriptions, variants = _variants(path, tree)
    scales = _mapping(tree["scales"], f"{path}: scales")
    if tree["scale"] not in scales:
        raise UserError(f"{path}: scale: no scale {tree['scale']!r}{suggestion(tree['scale'], scales)}")
    chosen = tree["scale"] if scale is None else scale
    if chosen not in scales:
        raise UserError(f"{path}: no scale {chosen!r}{suggestion(chosen, scales)}")
    key = f"{path}: scales.{check_name(chosen, f'{path}: scales')}"
    node = _mapping(scales[chosen], key)
    _known(node, _SCALE_KEYS, key)
    skipped = _skipped(node.get("skip"), variants, f"{key}.skip")
    if not isinstance(tree["baseline"], str) or tree["baseline"] not in variants:
        raise UserError(f"{path}: baseline: no variant {tree['baseline']!r}{suggestion(tree['baseline'], variants)}")
    if tree["baseline"] in skipped:
        raise UserError(f"{key}.skip: {tree['baseline']!r} is the baseline, which the others are compared with")
    return Ablation(
        file=path,
        name=name,
        scale=chosen,
        question=tree["question"],
        held_constant=_texts(tree.get("held_constant") or [], f"{path}: held_constant"),
        baseline=tree["baseline"],
        report=_report(node["report"], f"{key}.report") if "report" in node else _report(tree["report"], f"{path}: report"),
        seeds=_seeds(node["seeds"], f"{key}.seeds") if "seeds" in node else _seeds(tree["seeds"], f"{path}: seeds"),
        paper=_paper(node.get("paper", tree.get("paper")), variants, _reported(tree, scales), f"{path}: paper"),
        descriptions={v: d for v, d in descriptions.items() if v not in skipped},
        base=_base(path, node.get("base"), key),
        overrides={v: merged for v, merged in _overrides(variants, node, key).items() if v not in skipped},
        skipped=skipped,
        also_compare=[two for two in _also_compare(tree, variants, f"{path}: also_compare") if not skipped.keys() & {*two}],
    )


def _variants(path: Path, tree: Node) -> tuple[dict[str, str], dict[str, Node]]:
    """Descriptions and overrides by variant."""
    nodes = _mapping(tree["variants"], f"{path}: variants")
    for name, node in nodes.items():
        key = f"{path}: variants.{check_name(name, f'{path}: variants')}"
        _known(_mapping(node, key), _VARIANT_KEYS, key)
        _text(node.get("description"), f"{key}.description")
        _over(node, key)
    folded = {name.casefold(): name for name in nodes}
    if len(folded) < len(nodes):
        twin = next(name for name in nodes if folded[name.casefold()] != name)
        raise UserError(f"{path}: variants: {twin!r} and {folded[twin.casefold()]!r} differ in case alone")
    return {n: v["description"] for n, v in nodes.items()}, {n: _over(v, f"{path}: variants.{n}") for n, v in nodes.items()}


def _overrides(variants: Mapping[str, Node], scale: Node, key: str) -> dict[str, list[Node]]:
    of_scale = _mapping(scale.get("variants") or {}, f"{key}.variants", empty=True)
    for name, node in of_scale.items():
        if name not in variants:
            raise UserError(f"{key}.variants: no variant {name!r}{suggestion(name, variants)}")
        _known(_mapping(node, f"{key}.variants.{name}"), ("over",), f"{key}.variants.{name}")
    common = _over(scale, key)
    return {n: [common, over, _over(of_scale.get(n, {}), f"{key}.variants.{n}")] for n, over in variants.items()}


def _over(node: Node, key: str) -> Node:
    over = _mapping(node.get("over") or {}, f"{key}.over", empty=True)
    for name in SET_HERE:
        if name in over:
            raise UserError(f"{key}.over: {name}: an ablation's runs get their {name} from it")
    return over


def _also_compare(tree: Node, variants: Iterable[str], key: str) -> list[tuple[str, str]]:
    """Pairs of variants, each two once, and none with the baseline, which every variant is compared with anyway."""
    pairs = tree.get("also_compare") or []
    if not isinstance(pairs, list) or any(not isinstance(two, list) or len(two) != 2 for two in pairs):
        raise UserError(f"{key}: {pairs!r} is not a list of pairs of variants, such as [[a, b], [b, c]]")
    for number, two in enumerate(pairs):
        for name in two:
            if not isinstance(name, str) or name not in variants:
                raise UserError(f"{key}: no variant {name!r}{suggestion(name, variants)}")
        if two[0] == two[1] or tree["baseline"] in two or {*two} in [{*other} for other in pairs[:number]]:
            raise UserError(f"{key}: {two}: the rule is two different variants, no two of them twice, and not the baseline, which all are compared with")
    return [(first, second) for first, second in pairs]


def _skipped(value: Any, variants: Iterable[str], key: str) -> dict[str, str]:
    """Skipped variants and why; without a reason where only names are listed."""
    names = {name: "no reason given" for name in value} if isinstance(value, list) else _mapping(value or {}, key, empty=True)
    for name in names:
        if name not in variants:
            raise UserError(f"{key}: no variant {name!r}{suggestion(name, variants)}")
    return {name: str(reason) for name, reason in names.items()}


def _base(path: Path, value: Any, key: str) -> Path:
    base = path.parent / _text(value, f"{key}.base")
    if not base.is_file():
        near = difflib.get_close_matches(base.name, [p.name for p in base.parent.glob("*.yaml")], n=1)
        raise UserError(f"{key}.base: {base}: no such file" + (f"; did you mean {near[0]!r}?" if near else ""))
    return base


def _reported(tree: Node, scales: Node) -> set[str]:
    """The metrics that the ablation reports at any of its scales."""
    reports = [tree["report"], *(node.get("report") for node in scales.values() if isinstance(node, dict))]
    return {metric for report in reports if isinstance(report, list) for metric in report if isinstance(metric, str)}


def _paper(value: Any, variants: Iterable[str], reported: Iterable[str], key: str) -> Node | None:
    if value is None:
        return None
    paper = _mapping(value, key)
    _known(paper, _PAPER_KEYS, key)
    figures = _mapping(paper.get("figures") or {}, f"{key}.figures", empty=True)
    for title, column in figures.items():
        for name, figure in _mapping(column, f"{key}.figures.{title}").items():
            if name not in variants:
                raise UserError(f"{key}.figures.{title}: no variant {name!r}{suggestion(name, variants)}")
            if isinstance(figure, bool) or not isinstance(figure, int | float):
                raise UserError(f"{key}.figures.{title}.{name}: {figure!r} is not a number")
    for metric, title in _mapping(paper.get("beside") or {}, f"{key}.beside", empty=True).items():
        if not isinstance(title, str) or title not in figures:
            raise UserError(f"{key}.beside.{metric}: no column {title!r} in figures{suggestion(title, figures)}")
        if metric not in reported:
            raise UserError(f"{key}.beside: no scale reports the metric {metric!r}{suggestion(metric, reported)}")
    return paper


def _seeds(value: Any, key: str) -> list[int]:
    if not isinstance(value, list) or not value or any(isinstance(s, bool) or not isinstance(s, int) for s in value):
        raise UserError(f"{key}: {value!r} is not a list of whole numbers, such as [1, 2, 3]")
    if len(set(value)) < len(value):
        raise UserError(f"{key}: {next(s for s in value if value.count(s) > 1)} is there twice")
    return value


def _report(value: Any, key: str) -> list[str]:
    names = _texts(value, key)
    if not names:
        raise UserError(f"{key}: is empty; name a metric of metrics.json, such as e5-pt/python-docs/ndcg@10")
    return names


def _texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or any(not isinstance(text, str) or not text for text in value):
        raise UserError(f"{key}: {value!r} is not a list of texts")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key}: {value!r} is not a text")
    return value


def _mapping(value: Any, key: str, *, empty: bool = False) -> Node:
    if not isinstance(value, dict) or not (value or empty) or any(not isinstance(k, str) for k in value):
        raise UserError(f"{key}: {value!r} is not a mapping of names" + ("" if empty else " (and there must be one)"))
    return value


def _known(node: Node, keys: Iterable[str], where: str) -> None:
    for key in node:
        if key not in keys:
            raise UserError(f"{where}: unknown key {key!r}{suggestion(key, keys)}")
