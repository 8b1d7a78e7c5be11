"""Tables for the terminal, in Markdown and as CSV."""

import csv
import io
import math
import re

from rich.console import Console

from defeat.render import Table, decimals, print_line

TABLE = Table(
    ["name", "AP", "steps"],
    [["a|b [red]*x*[/]", 0.125, 400], ["two\nlines", math.nan, None]],
    "A [title]",
    "A note.",
)


def render(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table.as_rich())
    return console.file.getvalue().splitlines()


def test_markdown_has_as_many_cells_in_each_line_and_nothing_that_it_would_take_for_its_own():
    assert TABLE.as_markdown().splitlines() == [
        "| name | AP | steps |",
        "| --- | --: | --: |",
        r"| a\|b \[red\]\*x\*\[/\] | 0.125 | 400 |",
        "| two lines | - | - |",
    ]
    assert TABLE._replace(text_columns=2).as_markdown().splitlines()[1] == "| --- | --- | --: |"


def test_csv_reads_back_and_leaves_out_what_is_missing():
    assert list(csv.reader(io.StringIO(TABLE.as_csv()))) == [
        ["name", "AP", "steps"],
        ["a|b [red]*x*[/]", "0.125", "400"],
        ["two\nlines", "", ""],
    ]
    third = 1 / 3
    assert float(Table(["x"], [[third]]).as_csv().splitlines()[1]) == third


def test_the_terminal_shows_every_cell_as_it_is():
    text = "\n".join(render(TABLE))
    for part in ("A [title]", "A note.", "a|b [red]*x*[/]", "0.125", "400", "two", "lines"):
        assert part in text


ODD = [
    "=cmd|'/c x'!A1",
    "+1",
    "@x",
    "[red]x[/]",
    "<b>&amp;",
    "\x1b[31mred\x1b[0m",
    "_x_ $y$ ~z~",
    "# a_b",
    "\ud800",
    "\u202eab",
]


def test_names_of_anything_are_no_commands_anywhere():
    table = Table(["class", "AP"], [[name, 0.5] for name in ODD], title=ODD[5], note=ODD[8])
    shown = "\n".join(render(table, 200))
    for text in (shown, table.as_markdown(), table.as_csv()):
        assert text.replace("\n", "").isprintable()
        text.encode()
    assert r"\x1b[31mred" in shown
    assert "[red]x[/]" in shown
    html = re.sub(r"\\[^\w\s]", "", table.as_markdown())  # what is escaped is text
    assert not re.search(r"[<>\[\]$~&]|\| #|(?<![|-])-(?=[^|-])", html.replace("| --- | --: |", ""))
    cells = [row[0] for row in csv.reader(io.StringIO(table.as_csv()))][1:]
    assert not any(cell[0] in "=+-@" for cell in cells)
    assert cells[:3] == ["'=cmd|'/c x'!A1", "'+1", "'@x"]


def test_a_line_is_printed_as_it_is():
    console = Console(file=io.StringIO(), width=20)
    print_line(console, "written to /runs/[red]/:smile:/\x1b[31m a long name that is not wrapped", "yellow")
    assert (
        console.file.getvalue()
        == "written to /runs/[red]/:smile:/\\x1b[31m a long name that is not wrapped\n"
    )


def test_texts_are_folded_in_a_narrow_terminal_and_figures_are_not():
    table = Table(["name", "a longer header", "AP"], [["word " * 30, "0.123\n±0.456", 0.5]])
    lines = render(table, 40)
    assert max(map(len, lines)) <= 40
    assert sum(line.count("word") for line in lines) == 30
    assert all(any(part in line.split() for line in lines) for part in ("0.123", "±0.456", "0.5"))


def test_decimals():
    assert (decimals(0.12345), decimals(2, 1), decimals(math.nan)) == ("0.123", "2.0", "-")
