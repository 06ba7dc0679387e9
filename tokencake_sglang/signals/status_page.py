"""The status as a page: one self-contained HTML document, no scripts, no external assets."""

from collections.abc import Mapping
from html import escape
from typing import Any

REFRESH_S = 2

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{refresh}">
<meta name="viewport" content="width=device-width"><title>TokenCake</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
        color: #222; background: #fdfcfa }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1rem; margin: 1.4rem 0 .3rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .15rem .9rem .15rem 0; text-align: left;
        vertical-align: top; border-bottom: 1px solid #e6e1d8; font-variant-numeric: tabular-nums }}
th {{ font-weight: 500; color: #666 }} table table {{ margin: 0 }}
</style></head><body><h1>TokenCake</h1>
{body}
</body></html>
"""


def render(status: Mapping[str, Any]) -> str:
    """Nested mappings become tables, lists of mappings rows; every name and value is escaped."""
    plain = {
        name: value for name, value in status.items() if not isinstance(value, (Mapping, list))
    }
    parts = [_value(plain)] if plain else []
    for name, value in status.items():
        if name not in plain:
            parts.append(f"<h2>{_text(name)}</h2>{_value(value)}")
    return _PAGE.format(refresh=REFRESH_S, body="\n".join(parts))


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        rows = (f"<tr><th>{_text(n)}</th><td>{_value(v)}</td></tr>" for n, v in value.items())
        return f"<table>{''.join(rows)}</table>" if value else "none"
    if isinstance(value, (list, tuple)):
        return _rows(value)
    return escape(str(value))


def _rows(values: list | tuple) -> str:
    if not values:
        return "none"
    if not all(isinstance(value, Mapping) for value in values):
        return ", ".join(_value(value) for value in values)
    names = list(dict.fromkeys(name for value in values for name in value))
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    rows = (
        "<tr>" + "".join(f"<td>{_value(value.get(name, ''))}</td>" for name in names) + "</tr>"
        for value in values
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _text(name: object) -> str:
    return escape(str(name).replace("_", " "))
