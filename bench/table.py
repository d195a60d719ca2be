"""Tables of results: kept as JSON, shown as Markdown."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Value = float | int | str | bool | None
Record = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one value of every row is shown."""

    key: str
    title: str
    form: str = ""
    """A format specification, e.g. ".2f"; used for numbers only."""
    unit: str = ""
    """Put behind the number in each cell."""

    def cell(self, value: Value) -> str:
        """What stands in the table: a dash where nothing was measured."""
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        text = value if isinstance(value, str) else format(value, self.form)
        return f"{text}{self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that were measured alike."""

    name: str
    """Unlike any other's of all sections: the pages that show it call it so."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Record, ...]
    note: str = ""
    """What a reader needs to know to read the figures right."""

    def __post_init__(self) -> None:
        keys = {column.key for column in self.columns}
        for row in self.rows:
            if missing := keys - row.keys():
                raise ValueError(f"table {self.name}: a row lacks {', '.join(sorted(missing))}")

    def markdown(self) -> str:
        """The title, the table with its numbers to the right, and the note."""
        is_text = [self._is_text(column) for column in self.columns]
        lines = [
            f"**{self.title}**",
            "",
            _line(column.title for column in self.columns),
            _line("---" if text else "---:" for text in is_text),
        ]
        lines += [
            _line(column.cell(row[column.key]) for column in self.columns) for row in self.rows
        ]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)

    def _is_text(self, column: Column) -> bool:
        return any(isinstance(row[column.key], str) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """What from_json() reads."""
        return asdict(self)


def from_json(data: Mapping[str, Any]) -> Table:
    """A table as it was kept.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return Table(
        name=data["name"],
        title=data["title"],
        columns=tuple(Column(**column) for column in data["columns"]),
        rows=tuple(data["rows"]),
        note=data["note"],
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
