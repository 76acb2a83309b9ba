"""Jupyter notebooks to blocks: their Markdown cells, and their code as code."""

from __future__ import annotations

from data_modules.own.formats.blocks import Block, Document
from data_modules.own.formats.markdown import read_markdown
from lightning_e5.files.rows import parse_json


def read_notebook(text: str) -> Document:
    """The blocks of a notebook; ValueError with the reason for a file that is none."""
    content = parse_json(text)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list):
        raise ValueError("no notebook: it has no list 'cells' (nbformat 4)")
    blocks: list[Block] = []
    for cell in cells:
        source = cell.get("source", "") if isinstance(cell, dict) else ""
        source = "".join(str(line) for line in source) if isinstance(source, list) else str(source)
        if not source.strip():
            continue
        if cell.get("cell_type") == "markdown":
            blocks += read_markdown(source).blocks
        elif cell.get("cell_type") == "code":
            blocks.append(Block("code", source.strip("\n")))
    return Document(blocks)
