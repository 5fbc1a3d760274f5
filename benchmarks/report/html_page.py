"""The report as one page of HTML that needs no other file: Markdown in, pictures embedded."""

import base64
import html
import re
from collections.abc import Mapping

from markdown_it import MarkdownIt

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1,h2,h3{line-height:1.25}h2{margin-top:3rem;border-top:1px solid #ddd;padding-top:1rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e2e2e2;white-space:nowrap}th{background:#f4f4f4;white-space:normal}
tr:hover td{background:#fafafa}td.gain{color:#00548a;font-weight:600}td.loss{color:#a84300;font-weight:600}
img{max-width:100%;height:auto}code{background:#f4f4f4;padding:0 .2em;font-size:.88em}nav a{margin-right:.8em}
"""


def html_page(markdown: str, pictures: Mapping[str, bytes], title: str) -> str:
    """The page.

    Args:
        markdown: Markdown text of the report; it shows its pictures as `plots/NAME`.
        pictures: PNG files by name.
        title: title of the page.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for name, content in pictures.items():
        data = base64.b64encode(content).decode("ascii")
        body = body.replace(f'src="plots/{name}"', f'src="data:image/png;base64,{data}"')
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<td([^>]*)>(▲|▼)", _coloured, body)
    headings = re.findall(r"<h2>(.*?)</h2>", body)
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a> ' for name in headings)
    body = re.sub(r"<h2>(.*?)</h2>", lambda found: f'<h2 id="{_anchor(found[1])}">{found[1]}</h2>', body)
    body = body.replace("</h1>", f"</h1>\n<nav>{links}</nav>", 1)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", html.unescape(heading).lower()).strip("-")


def _coloured(found: re.Match[str]) -> str:
    return f'<td{found[1]} class="{"gain" if found[2] == "▲" else "loss"}">{found[2]}'
