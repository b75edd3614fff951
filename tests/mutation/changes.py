"""The changes to try: each removes or inverts one check."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_OTHER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One changed module: `source` is all of it, `what` describes old and new at `line`.

    `lines` are those of the enclosing statement, without its body if it has one; `body` are the
    lines of that body. `at_import` says that it is outside any function body.
    """

    line: int
    what: str
    source: str
    lines: range
    body: range
    at_import: bool


def changes(source: str) -> list[Change]:
    """Each change of a module: comparisons, `and`/`or`, `not`, numbers, checking calls."""
    tree = ast.parse(source)
    lines: dict[ast.AST, tuple[range, range]] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.stmt):
            lines |= dict.fromkeys(ast.walk(statement), _head(statement))
    called = {id(each) for function in ast.walk(tree) for each in _body(function)}
    made = []
    for node in list(ast.walk(tree)):
        for turn in list(_variants(node)):
            before = ast.unparse(node)
            old = turn.put(turn.new)
            text = f"`{_short(before)}` → `{_short(ast.unparse(node))}`"
            line, at_import = getattr(node, "lineno", 0), id(node) not in called
            made.append(Change(line, text, ast.unparse(tree), *lines[node], at_import))
            turn.put(old)
    return made


def _body(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function that run when it is called."""
    if isinstance(node, ast.Lambda):
        yield from ast.walk(node.body)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for statement in node.body:
            yield from ast.walk(statement)


def _head(statement: ast.stmt) -> tuple[range, range]:
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    begins = max(body[0].lineno, first + 1) if body else last + 1
    return range(first, begins), range(begins, last + 1)


def _short(text: str) -> str:
    first, *more = text.replace("|", "\\|").splitlines()
    return first + (" …" if more else "")


def _variants(node: ast.AST) -> Iterator["_Turn"]:
    match node:
        case ast.Compare(ops=operators):
            for at, operator in enumerate(operators):
                yield _Turn(operators, at, _OTHER[type(operator)]())
        case ast.BoolOp(op=operator):
            yield _Turn(node, "op", ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _Turn(node, "operand", ast.UnaryOp(ast.Not(), operand))
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield _Turn(node, "value", value + 1)
        case ast.If(body=[ast.Raise(), *_]):
            yield _Turn(node, "test", ast.Constant(value=False))
        case ast.Expr(value=ast.Call()):
            yield _Turn(node, "value", ast.Constant(value=None))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A change to make: `new` at position `at` of a node or a list of nodes."""

    where: ast.AST | list[ast.cmpop]
    at: str | int
    new: object

    def put(self, value: object) -> object:
        """Put another value there. Returns the previous one."""
        if isinstance(self.where, list):
            before = self.where[int(self.at)]
            self.where.__setitem__(self.at, value)  # type: ignore[call-overload]  # a place in a list
            return before
        before = getattr(self.where, str(self.at))
        setattr(self.where, str(self.at), value)
        return before
