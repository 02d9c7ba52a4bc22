"""Self-contained HTML page of the report."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

LARGEST = 400_000  # bytes of an embedded SVG; its PNG replaces a larger one


def html(text: str, title: str, folder: Path) -> str:
    """Return the Markdown `text` of a report as an HTML page with embedded images, readable without a network connection.

    HTML in the text is escaped. Links stay relative to `folder`. A missing image or an image outside `folder` becomes a link.
    """
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    tokens = reader.parse(text)
    for token in tokens:
        for part in token.children or ():
            if part.type == "image":
                _embed(part, folder)
    body = reader.renderer.render(tokens, reader.options, {})
    # Wide tables scroll inside a block that the keyboard can reach.
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return _HTML.format(title=escape(title), style=_STYLE, body=body)


def _embed(image: Token, folder: Path) -> None:
    """Replace the address of an image by the content of its file.

    The file is the SVG of the same name, or the named file if that SVG is missing or too large. Without a valid file, the
    image becomes a link.
    """
    name = str(image.attrGet("src"))
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        image.type, image.tag, image.nesting = "html_inline", "", 0
        image.content = f'<a href="{escape(name)}">{escape(image.content)}</a>'
        return
    vector = path.with_suffix(".svg")
    if vector.is_file() and vector.stat().st_size <= LARGEST:
        path = vector
    kind = {".svg": "svg+xml", ".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    image.attrSet("src", f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")


_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
p, ul { max-width: 46rem; overflow-wrap: break-word; }
p:has(img) { max-width: none; }
h1, h2 { line-height: 1.2; text-wrap: balance; }
h2 { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid #d0d0d0; }
a { color: #0b57a4; }
img { display: block; max-width: 100%; height: auto; margin: 1.5rem 0 0; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.92em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; border-top: 2px solid #1a1a1a; border-bottom: 2px solid #1a1a1a; font-size: 0.875rem;
  line-height: 1.35; font-variant-numeric: tabular-nums; }
thead { border-bottom: 1px solid #1a1a1a; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; }
td[style*="right"] { white-space: nowrap; }
tbody tr:hover { background: #f3f6f9; }
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  td[style*="right"] { white-space: normal; }
  thead { display: table-header-group; }
  tr, img { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; }
}
""".strip()
