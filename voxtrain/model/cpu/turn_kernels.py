"""A matrix with its rows as columns."""

from __future__ import annotations

from typing import Any

from voxtrain.model.cpu.kernel import Kernel, numbers, take
from voxtrain.model.cpu.lanes import LANES, turn_tile


@Kernel
def turned_matrix(given: Any) -> None:
    """rows, columns, matrix [rows, columns] -> result [columns, rows]. A chunk is LANES rows."""
    rows, columns = given[2], given[3]
    matrix, result = numbers(given[4], rows * columns), numbers(given[5], rows * columns)
    whole = columns - columns % LANES
    chunk = take(given)
    while chunk < given[1]:
        first = chunk * LANES
        stop = min(first + LANES, rows)
        begin = 0
        if stop - first == LANES:
            for column in range(0, whole, LANES):
                turn_tile(matrix, first * columns + column, columns, result, column * rows + first, rows)
            begin = whole
        for column in range(begin, columns):
            for row in range(first, stop):
                result[column * rows + row] = matrix[row * columns + column]
        chunk = take(given)
