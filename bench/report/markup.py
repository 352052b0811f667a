"""Small pieces of HTML: escaping, tables, legends and the page around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1300px; margin: 2em auto;
  padding: 0 1.5em; }
h1 { font-size: 1.7em; margin-bottom: .2em; }
h2 { font-size: 1.3em; margin-top: 2.2em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
h3 { font-size: 1.05em; margin: 1.6em 0 .4em; }
nav { background: #f6f6f4; padding: .6em 1em; border-radius: 6px; }
nav { display: flex; flex-wrap: wrap; gap: .1em 1.4em; }
nav a { white-space: nowrap; }
a { color: #0b5394; }
p, li { max-width: 60em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; margin: .6em 0; }
th, td { padding: .22em .45em; text-align: right; border-bottom: 1px solid #e6e6e3; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 1px solid #888; font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; }
td.long { white-space: normal; text-align: left; min-width: 9em; }
tr.first td { border-top: 1px solid #888; }
small { color: #666; }
svg { max-width: 100%; height: auto; display: block; margin: .3em 0 .8em; }
.legend { font-size: 13px; color: #333; }
.legend span { margin-right: 1.3em; white-space: nowrap; }
.legend i { display: inline-block; width: 1.7em; border-top: 3px solid; vertical-align: middle; margin-right: .4em; }
.badge { display: inline-block; border-radius: 3px; padding: 0 .45em; font-size: 12px; }
.match { background: #cfe3f7; color: #08315c; font-weight: 600; }
.weak { background: #e6eef5; color: #08315c; }
.labels { background: #fdeec4; color: #5a4300; }
.no-match { background: #f9ddcf; color: #6d2500; }
.none { background: #eee; color: #555; }
.warning { background: #fdeec4; padding: .5em .9em; border-radius: 5px; }
details { margin: .3em 0; }
summary { cursor: pointer; }
"""


def page(title: str, sections: Sequence[tuple[str, str, str]], introduction: str) -> str:
    """The whole page. Sections are (anchor, heading, body); those with an empty body are left out."""
    kept = [section for section in sections if section[2]]
    contents = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in kept)
    bodies = "\n".join(f'<h2 id="{anchor}">{escape(heading)}</h2>\n{body}' for anchor, heading, body in kept)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n'
        "</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{introduction}\n<nav>{contents}</nav>\n{bodies}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Iterable[int] = (), long: Iterable[int] = (),
          over: Sequence[tuple[str, int]] = ()) -> str:  # fmt: skip
    """A table of ready HTML.

    Args:
        head: of every column.
        rows: ready HTML, one string a cell.
        text: columns that are aligned to the left.
        long: columns whose text may wrap.
        over: headings above the heads, with how many columns each spans.
    """
    kinds = {**dict.fromkeys(text, ' class="text"'), **dict.fromkeys(long, ' class="long"')}
    heads = "".join(f"<th{kinds.get(i, '').replace('long', 'text')}>{cell}</th>" for i, cell in enumerate(head))
    upper = "".join(f'<th colspan="{span}" style="text-align:center">{cell}</th>' for cell, span in over)
    body = "\n".join(
        "<tr>" + "".join(f"<td{kinds.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    first = f"<tr>{upper}</tr>\n" if over else ""
    inner = f"<thead>{first}<tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table>\n{inner}\n</table></div>\n'


def listing(items: Iterable[str]) -> str:
    """A list of sentences, escaped; empty for none."""
    inner = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{inner}</ul>\n" if inner else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """Entries are (label, colour, CSS border style)."""
    spans = "".join(
        f'<span><i style="border-top-color:{colour};border-top-style:{style}"></i>{escape(label)}</span>'
        for label, colour, style in entries
    )
    return f'<p class="legend">{spans}</p>\n'


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return table(("", ""), ((escape(str(k)), escape(str(v))) for k, v in values.items()), text=(0,), long=(1,))


def details(summary: str, body: str, unfolded: bool) -> str:
    """A summary with a body that can be folded away."""
    return f"<details{' open' if unfolded else ''}><summary>{summary}</summary>\n{body}</details>\n"
