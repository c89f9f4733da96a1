"""Build HTML safely: text is escaped unless it is an `Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


# That end themselves.
_VOID = frozenset({"br", "circle", "img", "line", "meta", "path", "rect"})


def tag(element: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """Return an element; children that are no `Html` are text.

    Parameters
    ----------
    element
        Its name.
    *children
        What is in it; None is nothing.
    **attributes
        Its attributes: ``class_`` is ``class`` and ``aria_label`` is ``aria-label``; True is one without a value, False and
        None are none.
    """
    words = [element]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{html.escape(_shown(str(value)))}"')
    start = " ".join(words)
    # The slash is for SVG, where it closes.
    return Html(f"<{start}/>" if element in _VOID else f"<{start}>{join(children)}</{element}>")


def join(children: Iterable[str | None], between: str = "") -> Html:
    """Return children one after the other; those that are no `Html` are text."""
    return Html(between.join(text(child) for child in children if child is not None))


def text(value: str) -> Html:
    """Return a text as markup that shows it, on one line and in its own order, whatever characters it has."""
    return value if isinstance(value, Html) else Html(html.escape(_shown(value)))


def name(value: str) -> Html:
    """Return the name of a recording or folder: it neither turns what is around it nor runs out of the page."""
    return tag("bdi", value, class_="name")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str | None]],
    *,
    numbers: Iterable[int] = (),
    wide: int | None = None,
) -> Html:
    """Return a table that scrolls by itself where the page is narrow.

    Parameters
    ----------
    caption
        What it shows.
    head
        Words over its columns, of which the first names the row.
    rows
        Cells, `Html` or text.
    numbers
        Columns that hold numbers.
    wide
        The column that takes the room that is left: of pictures.
    """
    of_column = {**dict.fromkeys(numbers, "n"), **({} if wide is None else {wide: "wide"})}

    def cells(kind: str, row: Sequence[str | None]) -> list[Html]:
        found = []
        for column, cell in enumerate(row):
            scope = "col" if kind == "head" else "row" if column == 0 else None
            found.append(tag("td" if scope is None else "th", cell, scope=scope, class_=of_column.get(column)))
        return found

    body = [tag("tr", *cells("body", row)) for row in rows]
    made = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *cells("head", head))),
        tag("tbody", *body),
    )
    # To be scrolled by keys it must have the focus.
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _shown(value: str) -> str:
    """Return a text without characters that are not seen: controls, turns of direction, ends of lines."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in value)
