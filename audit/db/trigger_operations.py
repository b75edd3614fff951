"""Triggers that enforce invariants, as migration operations for PostgreSQL and SQLite.

A violation raises an integrity error on both. A migration that makes SQLite rebuild a table drops
its triggers: repeat the operation after it.
"""

from collections.abc import Iterable, Mapping, Sequence

from django.apps.registry import Apps
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import RunPython

# All PostgreSQL triggers use one function; its argument is the error message. Django treats 23001
# (restrict_violation) as an integrity error, like RAISE(ABORT) on SQLite.
_REFUSE = """
CREATE OR REPLACE FUNCTION agentauth_refuse() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $refuse$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '23001', MESSAGE = TG_ARGV[0];
END
$refuse$
"""


# One function for `keep_ended`; its arguments are the target table and the column's name in both
# tables. The schema is named, or a temporary table of the same name would get the value instead.
_KEEP = """
CREATE OR REPLACE FUNCTION agentauth_keep() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $keep$
BEGIN
    EXECUTE 'INSERT INTO public.' || quote_ident(TG_ARGV[0]) || ' (' || quote_ident(TG_ARGV[1])
        || ') VALUES ($1) ON CONFLICT DO NOTHING' USING to_jsonb(OLD) ->> TG_ARGV[1];
    RETURN NULL;
END
$keep$
"""


class _Triggers(RunPython):
    """Runs the statements for the database in use; undoing it drops the triggers in `names`."""

    def __init__(
        self, table: str, *, names: Sequence[str], postgresql: Sequence[str], sqlite: Sequence[str]
    ) -> None:
        def create(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
            # When repeated after a table rebuild, PostgreSQL still has the triggers: replace them.
            drop(apps, editor)
            statements = (
                [_REFUSE, *postgresql] if editor.connection.vendor == "postgresql" else sqlite
            )
            for statement in statements:
                editor.execute(statement)

        def drop(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
            on = f' ON "{table}"' if editor.connection.vendor == "postgresql" else ""
            for name in names:
                editor.execute(f'DROP TRIGGER IF EXISTS "{name}"{on}')

        super().__init__(create, drop)
        self.table = table


def append_only(
    table: str, *, unique: Sequence[str | tuple[str, ...]] = ("id",), deletable: bool = False
) -> RunPython:
    """Refuse UPDATE, DELETE and (PostgreSQL) TRUNCATE of `table`; `deletable` allows DELETE.

    TRUNCATE of one of its partitions is not refused: only the owner may do that.

    `unique` names the unique columns, with a tuple for several together. SQLite's INSERT OR REPLACE
    deletes a conflicting row without firing its delete trigger, so on SQLite a conflicting insert
    is refused.
    """
    sentence = f"append-only: rows of {table} never change"
    events = "UPDATE" if deletable else "UPDATE OR DELETE"
    refuse = f"EXECUTE FUNCTION agentauth_refuse('{sentence}')"
    postgresql = [
        f'CREATE TRIGGER "{table}_kept" BEFORE {events} ON "{table}" FOR EACH ROW {refuse}',
        (
            f'CREATE TRIGGER "{table}_not_emptied" BEFORE TRUNCATE ON "{table}" FOR EACH '
            f"STATEMENT {refuse}"
        ),
    ]
    collides = " OR ".join(
        " AND ".join(
            f'"{column}" = NEW."{column}"' for column in ((key,) if isinstance(key, str) else key)
        )
        for key in unique
    )
    # Table and column names come from migrations only.
    replaced = f'WHEN EXISTS (SELECT 1 FROM "{table}" WHERE {collides})'  # noqa: S608 — as said
    sqlite = [
        _sqlite(f"{table}_kept", f'BEFORE UPDATE ON "{table}"', "", sentence),
        _sqlite(f"{table}_not_replaced", f'BEFORE INSERT ON "{table}"', replaced, sentence),
    ]
    if not deletable:
        sqlite.append(_sqlite(f"{table}_not_emptied", f'BEFORE DELETE ON "{table}"', "", sentence))
    # `_not_emptied` refuses TRUNCATE on PostgreSQL, DELETE on SQLite.
    names = [f"{table}_kept", f"{table}_not_emptied", f"{table}_not_replaced"]
    return _Triggers(table, names=names, postgresql=postgresql, sqlite=sqlite)


def state_machine(
    table: str, column: str, *, transitions: Mapping[str, Iterable[str]], initial: Iterable[str]
) -> RunPython:
    """Refuse an insert outside the states `initial`, and a change of `column` not in `transitions`.

    `transitions` maps each state to the states that may follow it; a state without an entry is
    final. Writing the same state again is allowed.
    """
    steps = " OR ".join(
        f'(OLD."{column}" = {_text(old)} AND NEW."{column}" IN ({_texts(new)}))'
        for old, new in ((old, list(new)) for old, new in transitions.items())
        if new
    )
    wrong_step = f'OLD."{column}" <> NEW."{column}" AND NOT ({steps or "1 = 0"})'
    wrong_start = f'NEW."{column}" NOT IN ({_texts(initial)})'
    guards = [
        (f"{table}_{column}_step", f'BEFORE UPDATE OF "{column}" ON "{table}"', wrong_step),
        (f"{table}_{column}_birth", f'BEFORE INSERT ON "{table}"', wrong_start),
    ]
    sentence = f"state: {table}.{column} cannot go there from here"
    return _Triggers(
        table,
        names=[name for name, _, _ in guards],
        postgresql=[
            f'CREATE TRIGGER "{name}" {event} FOR EACH ROW WHEN ({condition}) '
            f"EXECUTE FUNCTION agentauth_refuse('{sentence}')"
            for name, event, condition in guards
        ],
        sqlite=[
            _sqlite(name, event, f"WHEN {condition}", sentence) for name, event, condition in guards
        ],
    )


def keep_ended(table: str, column: str, *, into: str) -> RunPython:
    """Insert the old value of `column` into that column of `into` when it changes or is deleted.

    For seals: one that was replaced or removed must never count again. `column` must be text. Skips
    null, and does not notice SQLite's INSERT OR REPLACE. The role that writes to `table` needs
    INSERT on `into`.
    """
    name = f"{table}_{column}_ended"
    execute = f"EXECUTE FUNCTION agentauth_keep('{into}', '{column}')"
    change, gone = f'AFTER UPDATE OF "{column}" ON "{table}"', f'AFTER DELETE ON "{table}"'
    was = f'OLD."{column}" IS NOT NULL'
    differs = f'OLD."{column}" IS DISTINCT FROM NEW."{column}"'
    # Table and column names come from migrations only.
    keep = (
        f'INSERT INTO "{into}" ("{column}") SELECT OLD."{column}" '  # noqa: S608 — as said
        f'WHERE NOT EXISTS (SELECT 1 FROM "{into}" WHERE "{column}" = OLD."{column}")'
    )
    names = [f"{name}_change", f"{name}_delete"]
    postgresql = [
        _KEEP,
        f'CREATE TRIGGER "{names[0]}" {change} FOR EACH ROW WHEN ({was} AND {differs}) {execute}',
        f'CREATE TRIGGER "{names[1]}" {gone} FOR EACH ROW WHEN ({was}) {execute}',
    ]
    differs = f'OLD."{column}" IS NOT NEW."{column}"'
    sqlite = [
        f'CREATE TRIGGER "{names[0]}" {change} WHEN {was} AND {differs} BEGIN {keep}; END',
        f'CREATE TRIGGER "{names[1]}" {gone} WHEN {was} BEGIN {keep}; END',
    ]
    return _Triggers(table, names=names, postgresql=postgresql, sqlite=sqlite)


def _sqlite(name: str, event: str, condition: str, sentence: str) -> str:
    return (
        f"CREATE TRIGGER \"{name}\" {event} {condition} BEGIN SELECT RAISE(ABORT, '{sentence}'); "
        "END"
    )


def _text(value: str) -> str:
    if not value.replace("_", "").isalnum():
        # States are identifiers from our code; anything else is a mistake in a migration.
        raise ValueError(f"not a state: {value!r}")
    return f"'{value}'"


def _texts(values: Iterable[str]) -> str:
    return ", ".join(_text(value) for value in values)
