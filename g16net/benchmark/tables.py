"""Rows of figures as text for a person."""


def table(rows):
    """Rows of one kind as aligned text."""
    cells = [[column.replace("_", " ") for column in rows[0]]] + [
        [cell(column, value) for column, value in row.items()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    left = [isinstance(value, str) for value in rows[0].values()]
    return "\n".join(
        "  ".join(
            text.ljust(width) if flush else text.rjust(width) for text, width, flush in zip(line, widths, left)
        ).rstrip()
        for line in cells
    )


def cell(column, value):
    """A value as its column is read."""
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    if column == "error":
        return f"{value:+.0%}"
    if column.endswith("_share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
