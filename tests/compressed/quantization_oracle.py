"""Eight bits in plain NumPy and float64, from the definitions of the formats."""

import numpy as np


def _e4m3_numbers():
    """Sign, four bits of exponent with a bias of 7, three of mantissa; 127 is NaN."""
    numbers = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        if exponent == 0:
            numbers.append(mantissa / 8 * 2.0**-6)
        else:
            numbers.append((1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(numbers)


E4M3 = _e4m3_numbers()
LARGEST = {"int8": 127, "float8_e4m3fn": E4M3[-1]}


def rounded(x, name):
    """Returns the nearest numbers of the format, ties to even; beyond it the largest.

    The even ones of e4m3 have an even code, which is their place in the list.
    """
    magnitude = np.minimum(np.abs(np.asarray(x, np.float64)), LARGEST[name])
    if name == "int8":
        return np.sign(x) * np.rint(magnitude)
    above = np.clip(np.searchsorted(E4M3, magnitude), 1, len(E4M3) - 1)
    below = above - 1
    to_above, to_below = E4M3[above] - magnitude, magnitude - E4M3[below]
    takes_above = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.sign(x) * np.where(takes_above, E4M3[above], E4M3[below])


def absmax_scales(x, name, axes):
    """Returns float32 scales; one for zeros."""
    largest = np.abs(np.asarray(x, np.float64)).max(tuple(axes), keepdims=True)
    scales = np.float32(largest.astype(np.float32) / np.float32(LARGEST[name]))
    return np.where(largest == 0, np.float32(1), scales).astype(np.float64)


def quantized(x, scales, name):
    """Returns the numbers of the format for `x`, scaled in float32 as documented."""
    return rounded(np.float32(x) * (np.float32(1) / np.float32(scales)), name)


def half_step(x, scales, name):
    """Returns a bound of the rounding error of `x` that is within the largest number.

    Of int8, half a scale. Of e4m3, 2^-4 of the number, as it has four binary digits,
    or half of the smallest subnormal number. Scaling to the format and back, in
    float32, adds three roundings.
    """
    slack = 2.0**-22 * np.abs(x)
    if name == "int8":
        return scales / 2 + slack
    return np.maximum(2.0**-4 * np.abs(x), 2.0**-10 * scales) + slack
