"""Small pieces of HTML. Every text that comes from data is escaped here and nowhere else."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape

from save_dist.evaluation.style import CSS


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: fewer decimals when it is large, `-` when it is not there."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.0e}"
    return f"{value:.{min(digits, 1) if abs(value) >= 10 else digits}f}"


def tag(name: str, content: str, **attributes: str) -> str:
    """An element around ready HTML; `class_` gives the class."""
    listed = "".join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items() if v)
    return f"<{name}{listed}>{content}</{name}>"


def text(name: str, content: str, **attributes: str) -> str:
    """An element around plain text."""
    return tag(name, escape(content), **attributes)


def heading(title: str) -> str:
    """A part of the page, with a name that `contents` leads to."""
    return text("h2", title, id=_anchor(title))


def contents(body: Sequence[str]) -> str:
    """Links to the headings of the page."""
    titles = [unescape(t) for t in re.findall(r"<h2 [^>]*>(.*?)</h2>", "\n".join(body))]
    links = "".join(text("a", title, href=f"#{_anchor(title)}") for title in titles)
    return tag("nav", links)


def _anchor(title: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def picture(light: bytes, dark: bytes, description: str, caption: str) -> str:
    """A figure that follows the reader's light or dark appearance."""
    source = f'<source srcset="{_data_uri(dark)}" media="(prefers-color-scheme: dark)">'
    image = f'<img src="{_data_uri(light)}" alt="{escape(description)}">'
    return tag("figure", tag("picture", source + image) + text("figcaption", caption))


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways on a narrow screen; `rows` are ready `tr` elements."""
    cells = "".join(text("th", title, scope="col") for title in head)
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", cells)) + tag("tbody", "\n".join(rows))),
        class_="scroll",
    )


def row(cells: Sequence[str | tuple[str, str]]) -> str:
    """A table row of plain texts; a pair is (text, class)."""
    parts = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    return tag("tr", "".join(text("td", content, class_=css) for content, css in parts))


def section_row(title: str, n_columns: int) -> str:
    """A row that heads those below it."""
    return tag("tr", text("td", title, colspan=str(n_columns)), class_="section")


def bars(rows: Sequence[tuple[str, str, float, str]]) -> str:
    """Bars below one another.

    Args:
        rows: (candidate key, title, length from 0 to 1, value as text).
    """
    parts = []
    for key, title, length, value in rows:
        emphasis = " ours" if key == "generated" else ""
        width = f"width:{100 * min(max(length, 0.0), 1.0):.1f}%"
        parts += [
            text("div", title, class_=f"name{emphasis}"),
            tag("div", tag("i", "", class_=key, style=width), class_="track"),
            text("div", value, class_=f"value{emphasis}"),
        ]
    return tag("div", "".join(parts), class_="bars")


def facts(values: Mapping[str, object]) -> str:
    """Names and values below one another."""
    parts = (text("dt", str(k)) + text("dd", _plain(v)) for k, v in values.items())
    return tag("dl", "".join(parts), class_="facts")


def folded(title: str, content: str) -> str:
    """Content that opens on a click, without a script."""
    return tag("details", text("summary", title) + content)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "-"
    return "-" if value is None else str(value)


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
