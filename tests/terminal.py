"""What a terminal of a given width shows after a stream of output: enough of ANSI for a live table."""

from __future__ import annotations

import re

CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b[=>78]|\x1b\][^\x07]*\x07")


def final_screen(output: str, columns: int) -> list[str]:
    """Lines of the screen, blanks at their ends cut."""
    lines: list[list[str]] = [[]]
    row = column = position = 0
    while position < len(output):
        code = CONTROL.match(output, position)
        if code:
            position = code.end()
            n = int(code[1] or 1) if (code[1] or "1").isdigit() else 1
            if code[2] == "A":
                row = max(row - n, 0)
            elif code[2] == "B":
                row += n
            elif code[2] == "K":  # 2K: the whole line; otherwise from here to its end
                lines[row] = [] if code[1] == "2" else lines[row][:column]
            elif code[2] == "G":
                column = n - 1
            continue
        letter = output[position]
        position += 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0
        elif letter >= " ":
            if column == columns:  # the terminal wraps
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            line = lines[row]
            line.extend(" " * (column + 1 - len(line)))
            line[column] = letter
            column += 1
        while len(lines) <= row:
            lines.append([])
    return ["".join(line).rstrip() for line in lines]
