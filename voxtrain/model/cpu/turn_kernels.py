"""Matrices with their rows as columns."""

from __future__ import annotations

from typing import Any

from voxtrain.model.cpu.kernel import Kernel, numbers, part, take
from voxtrain.model.cpu.lanes import LANES, turn_tile


@Kernel
def turned_matrices(given: Any) -> None:
    """Of each matrix where its chunks end, rows, columns, matrix [rows, columns] -> result [columns, rows].

    A chunk is LANES rows of one of them.
    """
    chunk = take(given)
    while chunk < given[1]:
        at = 2
        before = 0
        while chunk >= given[at]:
            before = given[at]
            at += 5
        rows, columns = given[at + 1], given[at + 2]
        matrix, result = numbers(given[at + 3], rows * columns), numbers(given[at + 4], rows * columns)
        _turn_rows(matrix, result, rows, columns, (chunk - before) * LANES)
        chunk = take(given)


@part
def _turn_rows(matrix: Any, result: Any, rows: int, columns: int, first: int) -> None:
    stop = min(first + LANES, rows)
    begin = 0
    if stop - first == LANES:
        begin = columns - columns % LANES
        for column in range(0, begin, LANES):
            turn_tile(matrix, first * columns + column, columns, result, column * rows + first, rows)
    for column in range(begin, columns):
        for row in range(first, stop):
            result[column * rows + row] = matrix[row * columns + column]
