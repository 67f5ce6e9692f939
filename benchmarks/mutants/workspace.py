"""The copy of the project that mutmut works in: the same code, written so that it is mutated.

mutmut leaves two things as they are that matter here, and changes one that does not:

- It skips decorated functions: each test of a kit, each property. In the copy a decorated function
  passes on to one without decorators, which holds the code.
- It changes texts for people: rules, reasons, prompts, units. No decision hangs on them, so in the
  copy their lines say `# pragma: no mutate`. A text is a string with a space and more in it,
  whatever is inside its braces, and what is put together from such strings; the unit of a
  measurement and a table that is printed are such too. Other strings stay: outcomes, names of
  numbers, JSON keys, routes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MUTATED = ("gates", "kits")
COPIED = ("src", "tests", "configs", "suites")
PLAIN = "undecorated_"
"""What the name of the function that holds a decorated one's code begins with."""
OPENS = "(  # text"
_KEEPS = "# pragma: no mutate"
_MUTATED_ANYWAY = {"staticmethod", "classmethod"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def make(folder: Path, configuration: str) -> None:
    """Write the copy, or bring it up to date; files that are the same keep their time.

    `configuration` is added to `pyproject.toml`.
    """
    _update(folder / "pyproject.toml", (ROOT / "pyproject.toml").read_text() + configuration)
    mutated = [ROOT / "src" / "servematrix" / part for part in MUTATED]
    for name in COPIED:
        for path in (ROOT / name).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            content: str | bytes = path.read_bytes()
            if path.parent in mutated and path.suffix == ".py":
                content = without_texts(undecorated(path.read_text()))
            _update(folder / path.relative_to(ROOT), content)


def _update(target: Path, content: str | bytes) -> None:
    content = content.encode() if isinstance(content, str) else content
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def undecorated(source: str) -> str:
    """Give each decorated function's code to a function without decorators that it calls.

    Raises `ValueError` for parameters that cannot be passed on by name.
    """
    while found := next(_decorated(ast.parse(source)), None):
        function, in_class = found
        lines = source.splitlines(keepends=True)
        first, body = function.decorator_list[0].lineno - 1, function.body[0].lineno - 1
        header, end = "".join(lines[function.lineno - 1 : body]), function.end_lineno or 0
        text = "".join(lines[body : function.body[0].end_lineno]) if _documented(function) else ""
        wrapper = "".join(lines[first:body]) + text
        indent = " " * function.body[0].col_offset
        call = f"{indent}{_call(function, in_class)}\n"
        plain = header.replace(f"def {function.name}(", f"def {PLAIN}{function.name}(", 1)
        code = "".join(lines[body:end])
        source = "".join([*lines[:first], plain, code, "\n", wrapper, call, *lines[end:]])
    return source


def _decorated(tree: ast.AST, in_class: bool = False) -> Iterator[tuple[Function, bool]]:
    """Find the decorated functions that hold their own code, and whether they are methods."""
    siblings = {child.name for child in ast.iter_child_nodes(tree) if isinstance(child, Function)}
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, Function) and child.decorator_list:
            names = {one.id for one in child.decorator_list if isinstance(one, ast.Name)}
            if not names & _MUTATED_ANYWAY and PLAIN + child.name not in siblings:
                yield child, in_class
        yield from _decorated(child, isinstance(child, ast.ClassDef))


def _documented(function: Function) -> bool:
    return ast.get_docstring(function) is not None


def _call(function: Function, in_class: bool) -> str:
    given = function.args
    if given.vararg or given.kwarg or given.posonlyargs:
        raise ValueError(f"{function.name}: only plain parameters can be passed on")
    names = [one.arg for one in given.args]
    target = f"{names.pop(0)}." if in_class else ""
    passed = ", ".join([*names, *(f"{one.arg}={one.arg}" for one in given.kwonlyargs)])
    nothing = isinstance(function.returns, ast.Constant) and function.returns.value is None
    return f"{'' if nothing else 'return '}{target}{PLAIN}{function.name}({passed})"


def without_texts(source: str) -> str:
    """Put each text on lines of its own that mutmut is told to leave alone."""
    lines = source.encode().splitlines(keepends=True)  # columns of `ast` count bytes
    texts = sorted(_texts(ast.parse(source)), key=lambda one: (one.lineno, one.col_offset))
    for node in reversed(texts):
        start, end = node.lineno - 1, (node.end_lineno or 0) - 1
        block = lines[start : end + 1]
        block[-1], after = block[-1][: node.end_col_offset], block[-1][node.end_col_offset :]
        block[0], before = block[0][node.col_offset :], block[0][: node.col_offset]
        kept = [line.rstrip(b"\n") + f"  {_KEEPS}\n".encode() for line in block]
        lines[start : end + 1] = [before + f"{OPENS}\n".encode(), *kept, b")" + after]
    return b"".join(lines).decode()


def _texts(node: ast.AST) -> Iterator[ast.expr]:
    """Find the outermost texts below a node; docstrings are none of them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.expr) and (_is_text(child) or _is_unit(child, node)):
            yield child
        else:
            yield from _texts(child)


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str(text)):
            return " " in text and not text.isspace()
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            return _is_text(ast.Constant(text)) or any(_is_text(part) for part in parts)
        case ast.FormattedValue(value=value):
            return _is_text(value)
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add(), right=other):
            return _is_text(one) or _is_text(other)
        case ast.Call(func=ast.Attribute(value=value, attr="join")):
            return _is_text(value)
        case ast.Call(
            func=ast.Name(id="Table" | "Console" | "console") | ast.Attribute(attr="add_row")
        ):
            return True
    return False


def _is_unit(node: ast.expr, parent: ast.AST) -> bool:
    """Whether it is the last argument of `measure(name, value, unit)`."""
    match parent:
        case ast.Call(func=ast.Attribute(attr="measure"), args=[_, _, unit]):
            return node is unit
    return False
