"""Pieces of HTML pages that need nothing else: the frame with its look, tables, lists, pictures. Texts are escaped."""

import base64
import html
import io
import os

CSS = """
:root { color-scheme: light; --ink: #222; --faint: #666; --line: #ddd; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: #fff; color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, li { max-width: 48rem; } .faint { color: var(--faint); font-size: .9rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.panels img { width: 100%; max-width: 36rem; height: auto; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; }
td.long { white-space: normal; min-width: 16rem; max-width: 28rem; }
details { margin: .3rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; font-size: .8rem; }
.problems, .note { border-left: 3px solid #D55E00; padding-left: .8rem; }
.note { border-color: #ddd; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures figure { margin: 0; width: min-content; }
.pictures img { display: block; min-width: 9rem; max-width: 100vw; image-rendering: pixelated; }
figcaption { font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
.matrix td, .matrix th { padding: .2rem .4rem; text-align: right; } .matrix thead th { vertical-align: bottom; }
.matrix thead th span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
"""


def page(title, body):
    """The whole page around `body`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
        f"<style>{CSS}</style></head><body>\n{body}\n</body></html>\n"
    )


def write(path, title, body):
    """Writes the page around `body` to `path`, whole or not at all. Returns the path."""
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(page(title, body))
    os.replace(f"{path}.partial", path)
    return path


def picture(source, alt, *lines):
    """A picture, which lies at `source`, with lines of text below it; for within `<div class=pictures>`."""
    caption = "<br>".join(map(text, lines))
    return (
        f'<figure><img loading=lazy alt="{text(alt)}" src="{text(source)}"><figcaption>{caption}</figcaption></figure>'
    )


def inside(image):
    """A uint8 image [height, width, 3] as a JPEG within the page: what `picture` takes as its source."""
    from matplotlib import image as images

    file = io.BytesIO()
    images.imsave(file, image, format="jpeg", pil_kwargs={"quality": 90})
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def table(header, rows, words):
    """A table; the columns `words` hold words and the others numbers."""

    def line(cells, tag):
        classes = ["" if index in words else " class=number" for index in range(len(cells))]
        classes = [" class=long" if len(str(cell)) > 40 else name for cell, name in zip(cells, classes)]
        return "<tr>" + "".join(f"<{tag}{c}>{text(cell)}</{tag}>" for cell, c in zip(cells, classes)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class=wide><table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table></div>"


def bullets(lines):
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def text(value):
    """`value` as it is read, with nothing in it taken for HTML."""
    return html.escape(str(value), quote=True)
