"""What the tests of the PostgreSQL destination share: a configuration that ends there, and looks at what came of it."""
from chute import wait_until

OWN = ("_chute", "_chute_loads", "_chute_tables")


def configure(chute, database, dest=None, flows=None, url=None, top=None, **flow):
    """One directory, DATABASE as `dwh`, one flow with the options FLOW, or FLOWS."""
    dwh = {"type": "postgres", "url": url or database.socket_url, **(dest or {})}
    chute.configure(source={"settle": "50ms", "debounce": "20ms"}, flows=[{"to": "dwh", **f} for f in (flows or [flow])], dests={"dwh": dwh}, **(top or {}))


def load(chute, name, text, expect=0):
    """Put NAME into the inbox and run chute until there is nothing more to do."""
    from chute import put_file
    put_file(chute.inbox / name, text)
    return chute.once(expect=expect)


def columns(database, table):
    """Name and type of each column of TABLE."""
    return [tuple(row) for row in database.query(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = '%s'::regclass and attnum > 0"
        " and not attisdropped order by attnum" % table)]


def tables(database, schema="public"):
    """Tables of SCHEMA that are not chute's own."""
    return {row[0] for row in database.query(
        "select relname from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = '%s' and relkind in ('r', 'p')" % schema)
        if row[0] not in OWN}


def reason(chute, path):
    """Why PATH is in quarantine."""
    found = [file for file in chute.files("quarantined") if file["path"] == path]
    assert len(found) == 1, chute.files()
    return found[0]["reason"]


def receipt(chute, path, state="loaded"):
    """The last receipt of PATH, which must add up."""
    found = chute.receipts_of(path, state)
    assert found, chute.receipts()
    last = found[-1]
    assert last["parsed"] == last["inserted"] + last["updated"] + last["unchanged"] + last["rejected"], last
    return last


def counts(chute, path):
    """(inserted, updated, unchanged, rejected) of the last receipt of PATH."""
    last = receipt(chute, path)
    return last["inserted"], last["updated"], last["unchanged"], last["rejected"]


def wait_value(database, sql, value, chute=None):
    def seen():
        return database.value(sql)
    wait_until(lambda: seen() == value, lambda: "%s to be %s; it is %s\n%s" % (
        sql, value, seen(), chute.log_text()[-3000:] if chute else ""), pause=0.05)


def nothing_is_open(database):
    """No session of chute is left in a transaction."""
    return not database.sessions("state like 'idle in transaction%'")
