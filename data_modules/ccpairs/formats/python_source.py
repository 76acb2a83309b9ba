"""The docstrings of a parsed Python file, with the names of what they describe."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def docstrings_of(tree: ast.Module) -> Iterator[tuple[list[str], str]]:
    """(names from the outermost, docstring) in the file's order; what is defined inside a function is left out."""
    stack: list[tuple[list[str], ast.AST]] = [([], tree)]
    while stack:  # not recursive: the depth of other people's code is not ours to bound
        names, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                names = [*names, node.name]
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield names, docstring
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _added_docstring(node.value)
        if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try | ast.With | ast.ExceptHandler):
            children = [*node.body, *getattr(node, "handlers", ()), *getattr(node, "orelse", ())]
            stack.extend((names, child) for child in reversed(children))


def _added_docstring(call: ast.Call) -> Iterator[tuple[list[str], str]]:
    """The docstring of an object written in C: ``add_docstr(torch.abs, "...")``."""
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if function not in {"add_docstr", "add_newdoc"} or len(call.args) < 2:
        return
    strings = [node.value for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Constant)]
    texts = [text for text in strings if isinstance(text, str)]
    if texts:
        docstring = max(texts, key=len)
        first = call.args[0]
        name = first.attr if isinstance(first, ast.Attribute) else "".join(t for t in texts[1:2] if t != docstring)
        yield [name] if name else [], docstring


def name_in_words(module: Sequence[str], names: Sequence[str]) -> str:
    """An object's name in words: (``["sklearn", "cluster"]``, ``["KMeans"]``) gives ``"sklearn K Means"``.

    Of the module only the package is named, and its last part where the object is the module itself.
    """
    path = [*module[:1], *(names or module[1:][-1:])]
    words = [word for name in path for word in _WORDS.findall(name)]
    return " ".join(word for i, word in enumerate(words) if i == 0 or word.lower() != words[i - 1].lower())
