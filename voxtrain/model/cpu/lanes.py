"""Sixteen float32 numbers that kernels compute with together: a vector of LLVM, as a type of Numba.

Numba leaves it to LLVM to find loops that fit vector units, which fails for the short loops of attention. With a type
of their own, sums stay in registers while a loop runs. On processors with narrower units LLVM takes two or four each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import register_model

from voxtrain.model.cpu.kernel import intrinsic

LANES = 16
_VECTOR, _FLOAT, _INT = ir.VectorType(ir.FloatType(), LANES), ir.FloatType(), ir.IntType(64)
_FUSED = ("contract",)
"""A product and a sum may be rounded once."""


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes: Any = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)  # type: ignore[no-untyped-call]


def _of_lanes(code: Callable[..., Any], arguments: int) -> Any:
    """An intrinsic of `arguments` vectors that gives one. code: of LLVM's builder and the vectors."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return code(builder, *given)

    if arguments == 1:
        return intrinsic(lambda typing, a: (lanes(a), generate))
    if arguments == 2:
        return intrinsic(lambda typing, a, b: (lanes(a, b), generate))
    return intrinsic(lambda typing, a, b, c: (lanes(a, b, c), generate))


def _place(context: Any, builder: Any, signature: Any, given: Any) -> Any:
    """Where number given[1] of the array given[0] lies, as the place of a vector."""
    array = context.make_array(signature.args[0])(context, builder, given[0])
    return builder.bitcast(builder.gep(array.data, [given[1]]), _VECTOR.as_pointer())


@intrinsic
def load(_: Any, numbers: Any, first: Any) -> Any:
    """The sixteen numbers of a contiguous float32 array from place `first` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_place(context, builder, signature, given), align=4)

    return lanes(numbers, types.int64), code


@intrinsic
def store(_: Any, numbers: Any, first: Any, value: Any) -> Any:
    """Write sixteen numbers of a contiguous float32 array from place `first` on."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[2], _place(context, builder, signature, given), align=4)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, lanes), code


@intrinsic
def spread(_: Any, number: Any) -> Any:
    """The same float32 number sixteen times."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), given[0], ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), mask)

    return lanes(types.float32), code


def _builtin(builder: Any, name: str, kind: Any) -> Any:
    """A function that LLVM knows, for vectors of sixteen."""
    name = f"{name}.v{LANES}f32"
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def _all(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Of each pair the larger; what is no number in a stays."""
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _exp(builder: Any, value: Any) -> Any:
    """2^n times Taylor's series of what is left, which lies within half of ln 2: the first term left out is under 6e-9.

    Below -87 it is 0, above 88 as at 88, and what is not a number stays so.
    """

    def added(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)

    small = builder.fcmp_ordered("<", value, _all(-87.0))
    value = builder.select(small, _all(-87.0), value)
    value = builder.select(builder.fcmp_ordered(">", value, _all(88.0)), _all(88.0), value)
    rounded = _builtin(builder, "llvm.rint", ir.FunctionType(_VECTOR, [_VECTOR]))
    whole = builder.call(rounded, [builder.fmul(value, _all(1.4426950408889634))])
    left = added(whole, _all(-0.693359375), value)
    left = added(whole, _all(2.12194440e-4), left)
    series = _all(1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = added(series, left, _all(coefficient))
    bits = ir.VectorType(ir.IntType(32), LANES)
    exponent = builder.add(builder.fptosi(whole, bits), ir.Constant(bits, [127] * LANES))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(bits, [23] * LANES)), _VECTOR)
    return builder.select(small, _all(0.0), builder.fmul(series, power))


def _where_more(builder: Any, a: Any, b: Any, value: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), value, _all(-np.inf))


product = _of_lanes(lambda builder, a, b: builder.fmul(a, b, flags=_FUSED), 2)
quotient = _of_lanes(lambda builder, a, b: builder.fdiv(a, b, flags=_FUSED), 2)
added = _of_lanes(lambda builder, a, b: builder.fadd(a, b, flags=_FUSED), 2)
less = _of_lanes(lambda builder, a, b: builder.fsub(a, b, flags=_FUSED), 2)
product_and = _of_lanes(lambda builder, a, b, c: builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED), 3)
"""a x b + c."""
larger = _of_lanes(_larger, 2)
where_more = _of_lanes(_where_more, 3)
"""The third, and minus infinity where the first is not more than the second."""
exp = _of_lanes(_exp, 1)


@intrinsic
def turn_tile(_: Any, source: Any, first: Any, step: Any, result: Any, at: Any, result_step: Any) -> Any:
    """Sixteen rows of sixteen numbers as columns; rows begin at `first`, `step` apart, in the result at `at`.

    In four rounds: rows 8, 4, 2 and 1 apart exchange those halves of their numbers that are as far apart.
    """

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        from_, first_, step_, to, at_, result_step_ = given
        rows = []
        for row in range(LANES):
            place = builder.add(first_, builder.mul(step_, ir.Constant(_INT, row)))
            kind = types.void(signature.args[0], types.int64)
            rows.append(builder.load(_place(context, builder, kind, (from_, place)), align=4))
        for apart in (8, 4, 2, 1):
            for row in (row for row in range(LANES) if not row & apart):
                one, two = rows[row], rows[row + apart]
                low = [lane if not lane & apart else LANES + lane - apart for lane in range(LANES)]
                rows[row] = _shuffled(builder, one, two, low)
                rows[row + apart] = _shuffled(builder, one, two, [place + apart for place in low])
        for row, value in enumerate(rows):
            place = builder.add(at_, builder.mul(result_step_, ir.Constant(_INT, row)))
            kind = types.void(signature.args[3], types.int64)
            builder.store(value, _place(context, builder, kind, (to, place)), align=4)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(source, whole, whole, result, whole, whole), code


def _shuffled(builder: Any, one: Any, two: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(ir.IntType(32), LANES), places))
