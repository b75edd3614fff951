"""A limit on one named argument: what it allows, and when it is at least as tight as another."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from .errors import InvalidRequestError
from .json_fields import INTEGER_LIMIT, integer, items, members, quote_safely, text

Scalar = str | bool | int

# No pattern language on purpose: a person can read each operator, and each is fast to evaluate.
OPERATORS: Final = ("eq", "in", "not_in", "min", "max", "prefix", "max_length")
MAX_CONSTRAINTS: Final = 16
MAX_ITEMS: Final = 64
# Characters of a text operand. Far more than fits into a token: it bounds what a page must show.
MAX_TEXT: Final = 1024
# The alphabet of a resource segment: safe in logs, pages and tokens without escaping.
_ARGUMENT: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")


def same(left: object, right: object) -> bool:
    """Equal in type and value. Python's `==` alone takes `true` for 1 (protocol.md section 3)."""
    return type(left) is type(right) and left == right


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """`argument operator value`, e.g. `size max 1048576`; `value` is a tuple for `in`, `not_in`."""

    argument: str
    operator: str
    value: Scalar | tuple[Scalar, ...]

    # Written by hand: the generated one would treat `eq true` and `eq 1` as equal.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return (
            self.argument,
            self.operator,
            *((type(value).__name__, value) for value in self.values),
        )

    @property
    def values(self) -> tuple[Scalar, ...]:
        """The operand as a tuple, whatever the operator."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def allows(self, supplied: object) -> bool:
        """Whether `supplied` satisfies this constraint. Never raises, whatever the value.

        Values of different types are never equal, so `not_in ["a"]` allows 5 and `eq 1` does not
        allow `true`. Strings compare by code point, without normalisation.
        """
        match self.operator:
            case "eq" | "in":
                return any(same(supplied, value) for value in self.values)
            case "not_in":
                # Values that cannot be listed (null, lists, fractions) would always pass: refuse
                # them.
                return isinstance(supplied, Scalar) and not any(
                    same(supplied, value) for value in self.values
                )
            case "min":
                return _at_least(supplied, self.value)
            case "max":
                return _at_least(self.value, supplied)
            case "prefix":
                return (
                    isinstance(supplied, str)
                    and isinstance(self.value, str)
                    and supplied.startswith(self.value)
                )
            case "max_length":
                return (
                    isinstance(supplied, str)
                    and type(self.value) is int
                    and len(supplied) <= self.value
                )
        return False  # an unknown operator allows nothing

    def implies(self, old: "Constraint") -> bool:
        """Does `old` allow everything that this allows?

        Deliberately incomplete: yes only for a tighter use of the same operator, or a finite list
        (`eq`, `in`) whose values all satisfy `old`. A person can check these two by eye, and both
        are transitive.
        """
        if self.argument != old.argument:
            return False
        if self.operator in {"eq", "in"}:
            return all(old.allows(value) for value in self.values)
        return self.operator == old.operator and self._tightens(old)

    def _tightens(self, old: "Constraint") -> bool:
        match self.operator:
            case "not_in":
                # Every value that the old constraint excludes is still excluded.
                return all(any(same(value, kept) for kept in self.values) for value in old.values)
            case "min" | "max" | "prefix":
                # A higher minimum satisfies the old minimum; a longer prefix begins with the old
                # one.
                return old.allows(self.value)
            case "max_length":
                return (
                    type(self.value) is int and type(old.value) is int and self.value <= old.value
                )
        return False

    def merge(self, other: "Constraint") -> "Constraint | None":
        """One constraint that allows what both allow, if neither implies the other.

        `other` has the same argument and operator. None if they allow nothing in common, or if a
        `not_in` had more than MAX_ITEMS values.
        """
        match self.operator:
            case "in":
                values = tuple(value for value in self.values if other.allows(value))
            case "not_in":
                values = self.values + tuple(v for v in other.values if self.allows(v))
            case _:
                # Two different values, two prefixes, or a string and an integer.
                return None
        return replace(self, value=values) if 0 < len(values) <= MAX_ITEMS else None

    def operand_json(self) -> object:
        """The operand as on the wire: a list for `in` and `not_in`, else the scalar."""
        return list(self.value) if isinstance(self.value, tuple) else self.value


def _at_least(high: object, low: object) -> bool:
    """`high >= low` for two integers or two strings; everything else, `true` included, is not
    comparable.
    """
    if type(high) is int and type(low) is int:
        return high >= low
    return isinstance(high, str) and isinstance(low, str) and high >= low


def parse_scalar(obj: object, where: str, *, max_text: int = MAX_TEXT) -> Scalar:
    """A string, boolean or integer of magnitude below 2^53.

    Raises InvalidRequestError naming `where`.
    """
    # Before the integers: in Python a boolean is an int.
    if isinstance(obj, bool):
        return obj
    if isinstance(obj, str):
        return text(obj, where, minimum=0, maximum=max_text)
    if isinstance(obj, int):
        return integer(obj, where, minimum=1 - INTEGER_LIMIT)
    raise InvalidRequestError(f"{where}: must be a string, a boolean or an integer.")


def check_argument(name: object, where: str) -> str:
    """An argument's name: 1 to 64 of `A-Z a-z 0-9 . _ ~ -`.

    Raises InvalidRequestError naming `where`.
    """
    if not isinstance(name, str) or _ARGUMENT.fullmatch(name) is None:
        raise InvalidRequestError(
            f"{where}: the argument name {quote_safely(str(name))} must be 1 to 64 characters from "
            "A-Z a-z 0-9 . _ ~ -"
        )
    return name


def _parse_operand(operator: str, obj: object, where: str) -> Scalar | tuple[Scalar, ...]:
    match operator:
        case "eq":
            return parse_scalar(obj, where)
        case "in" | "not_in":
            return _parse_list(items(obj, where, maximum=MAX_ITEMS), where)
        case "min" | "max":
            if isinstance(obj, bool):
                raise InvalidRequestError(f"{where}: must be an integer or a string.")
            return parse_scalar(obj, where)
        case "prefix":
            return text(obj, where, maximum=MAX_TEXT)
        case _:
            return integer(obj, where, minimum=0)


def _parse_list(entries: Sequence[object], where: str) -> tuple[Scalar, ...]:
    values = tuple(parse_scalar(entry, f"{where}[{index}]") for index, entry in enumerate(entries))
    # `true` and 1 are different values, so compare types too.
    if len({(type(value).__name__, value) for value in values}) != len(values):
        raise InvalidRequestError(f"{where}: names a value twice.")
    return values


def parse_constraints(obj: object, where: str) -> tuple[Constraint, ...]:
    """Read `{"argument": {"operator": operand, …}, …}` into constraints sorted by argument and
    operator.

    Sorted, so that two spellings of one JSON object are equal. At most 16 in all (docs/protocol.md
    section 3). Raises InvalidRequestError naming the member; an unknown operator is refused, since
    skipping it would drop a limit.
    """
    if not isinstance(obj, dict):
        raise InvalidRequestError(f"{where}: must be a JSON object.")
    # A name may have several operators, such as `min` and `max`; each counts towards the 16.
    found: list[Constraint] = []
    for argument, operators in obj.items():
        check_argument(argument, where)
        place = f"{where}.{argument}"
        body = members(operators, place, optional=OPERATORS)
        if not body:
            raise InvalidRequestError(f"{place}: must have an operator.")
        found += (
            Constraint(argument, name, _parse_operand(name, body[name], f"{place}.{name}"))
            for name in body
        )
        if len(found) > MAX_CONSTRAINTS:
            raise InvalidRequestError(f"{where}: must have at most {MAX_CONSTRAINTS} constraints.")
    return tuple(sorted(found, key=lambda each: (each.argument, each.operator)))


def constraints_json(constraints: Sequence[Constraint]) -> dict[str, dict[str, object]]:
    """The wire form of constraints, the inverse of `parse_constraints`."""
    result: dict[str, dict[str, object]] = {}
    for each in constraints:
        result.setdefault(each.argument, {})[each.operator] = each.operand_json()
    return result
