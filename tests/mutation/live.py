"""Puts a change into loaded modules: new code for functions, or a new value for a name."""

import ast
import gc
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

from tests.mutation.changes import Change

# (file, qualified name, first line of the code) → functions.
Functions = dict[tuple[str, str, int], list[FunctionType]]


def functions_of(modules: Iterable[str]) -> Functions:
    """Every live function whose code is in one of these files."""
    files = {str(Path(each).resolve()) for each in modules}
    found: Functions = defaultdict(list)
    gc.unfreeze()
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename in files:
            found[_key(each.__code__)].append(each)
    gc.freeze()
    return found


def put_in(module: str, change: Change, live: Functions) -> bool:
    """Put the change in, if it is in a function or in a value of the module; else return False."""
    path = Path(module).resolve()
    source = path.read_text()
    before, after = (
        compile(text, path, "exec", dont_inherit=True)
        for text in (ast.unparse(ast.parse(source)), change.source)
    )
    place = compile(source, path, "exec", dont_inherit=True)
    done = False
    for key, code in _changed(place, before, after):
        for each in live.get(key, []):
            if each.__code__.co_freevars != code.co_freevars:
                return False
            each.__code__ = code
            done = True
    return done or _put_value(module, change)


def _key(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _changed(
    place: CodeType, before: CodeType, after: CodeType
) -> Iterator[tuple[tuple[str, str, int], CodeType]]:
    if before == after:
        return
    if place.co_flags & inspect.CO_OPTIMIZED:
        yield _key(place), after
    inner = [
        [each for each in code.co_consts if isinstance(each, CodeType)]
        for code in (place, before, after)
    ]
    if len({len(each) for each in inner}) == 1:
        for three in zip(*inner, strict=True):
            yield from _changed(*three)


def _put_value(module: str, change: Change) -> bool:
    """Set the names that the changed statement assigns, also in modules that imported them.

    Returns False if the old value was already used for something else at import.
    """
    name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    old, new = (ast.parse(text).body for text in (Path(module).read_text(), change.source))
    [changed] = [
        now for was, now in zip(old, new, strict=True) if ast.unparse(was) != ast.unparse(now)
    ]
    targets, value = _assigned(changed)
    read = {
        each.id
        for each in _at_import(ast.Module(old, []))
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)
    }
    if value is None or read & set(targets):
        return False
    space = vars(sys.modules[name])
    made = eval(compile(ast.Expression(value), name, "eval"), dict(space))  # noqa: S307  # our own source
    for target, became in zip(targets, made if len(targets) > 1 else [made], strict=True):
        present = space[target]
        # None: a name that must not be imported.
        for other in filter(None, list(sys.modules.values())):
            if vars(other).get(target) is present:
                setattr(other, target, became)
    return True


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: all but the bodies of functions."""
    for name, field in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for each in field if isinstance(field, list) else [field]:
            if isinstance(each, ast.AST):
                yield each
                yield from _at_import(each)


def _assigned(statement: ast.stmt) -> tuple[list[str], ast.expr | None]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [name], value
        case ast.Assign(targets=[ast.Tuple(elts=elements)], value=value):
            return [each.id for each in elements if isinstance(each, ast.Name)], value
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            return [name], value
    return [], None
