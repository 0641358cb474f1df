"""Finds out that two axes are the same channels, part by part."""

from jaxsparse._channels.parts import (
    Made,
    Parts,
    atoms_of,
    factors_of,
    family_of,
    find,
    is_atom,
    mix,
    new_atom,
    product,
    replace_atom,
    terms_of,
    total,
)


def unify(parts: Parts, one: int, other: int) -> None:
    """Records that two parts are the same. What cannot be aligned is not permuted."""
    one, other = find(parts, one), find(parts, other)
    if one == other:
        return
    if parts.sizes[one] != parts.sizes[other]:
        _block(parts, one, other)
    elif _is_member(parts, one, other) or _is_member(parts, other, one):
        _unify_families(parts, one, other)
    elif is_atom(parts, one):
        replace_atom(parts, one, Made("same", (other,)))
    elif is_atom(parts, other):
        replace_atom(parts, other, Made("same", (one,)))
    elif family_of(parts, one) or family_of(parts, other):
        _unify_families(parts, one, other)
    else:
        ways = [_align_factors, _align_terms]
        if len(factors_of(parts, one)) == 1 or len(factors_of(parts, other)) == 1:
            ways.reverse()  # one of them is a sum
        if not any(align(parts, one, other) for align in ways):
            _block(parts, one, other)


def _is_member(parts: Parts, part: int, family: int) -> bool:
    """Returns whether a part is in a family of the same size: the members are one."""
    return bool(family_of(parts, family)) and part in atoms_of(parts, family)


def _unify_families(parts: Parts, one: int, other: int) -> None:
    left, right = family_of(parts, one), family_of(parts, other)
    if left and right and find(parts, left.along) == find(parts, right.along):
        for a, b in zip(left.of, right.of, strict=True):
            unify(parts, a, b)
        return
    for part in (one, other):
        collapse(parts, part)
    unify(parts, one, other)


def collapse(parts: Parts, part: int) -> None:
    """Records that all members of a family are the same."""
    if family := family_of(parts, part):
        for member in family.of[1:]:
            unify(parts, family.of[0], member)


def _block(parts: Parts, one: int, other: int) -> None:
    sizes = f"{parts.sizes[one]} and {parts.sizes[other]}"
    for part in (one, other):
        mix(parts, part, f"axes of sizes {sizes} do not align")


def _align_factors(parts: Parts, one: int, other: int) -> bool:
    """Unifies factors from the minor end; returns whether the splits fit."""
    left, right = [one], [other]
    while left and right:
        a, b = _pop_factor(parts, left), _pop_factor(parts, right)
        if a is None or b is None:
            break
        longer = left
        if parts.sizes[a] < parts.sizes[b]:
            a, b, longer = b, a, right
        if parts.sizes[a] != parts.sizes[b]:
            halves = _split_factor(parts, a, parts.sizes[b])
            if halves is None:
                return False
            longer.append(halves[0])
            a = halves[1]
        elif {a, b} == {one, other}:
            return False  # two sums
        unify(parts, a, b)
    return True


def _pop_factor(parts: Parts, pending: list[int]) -> int | None:
    """Removes the minor factor of a product of parts, which may have changed since."""
    while pending:
        pending.extend(factors_of(parts, pending.pop()))
        if pending and factors_of(parts, pending[-1]) == [pending[-1]]:
            return pending.pop()
    return None


def take_minor(
    parts: Parts, factors: list[int], size: int
) -> tuple[list[int], int] | None:
    """Takes a minor factor of some size from a product.

    Returns:
      The factors that remain, and the one that was taken; None if sizes do not fit.
    """
    pending, taken, wanted = list(factors), list[int](), size
    while wanted != 1:
        part = _pop_factor(parts, pending)
        if part is None:
            return None
        if parts.sizes[part] > wanted:
            halves = _split_factor(parts, part, wanted)
            if halves is None:
                return None
            pending.append(halves[0])
            part = halves[1]
        if wanted % parts.sizes[part]:
            return None
        wanted //= parts.sizes[part]
        taken.insert(0, part)
    return pending, product(parts, taken)


def _split_factor(parts: Parts, part: int, size: int) -> tuple[int, int] | None:
    """Splits an atom or sum into a major and a minor factor, of the size given."""
    if parts.sizes[part] % size:
        return None
    if family_of(parts, part):
        collapse(parts, part)
        split = take_minor(parts, [part], size)
        return None if split is None else (product(parts, split[0]), split[1])
    if is_atom(parts, part):
        major = new_atom(parts, parts.sizes[part] // size)
        minor = new_atom(parts, size)
        replace_atom(parts, part, Made("product", (major, minor)))
        return major, minor
    majors, minors = list[int](), list[int]()
    for term in terms_of(parts, part):
        split = take_minor(parts, [term], size)
        if split is None:
            return None
        majors.append(product(parts, split[0]))
        minors.append(split[1])
    for minor in minors[1:]:
        unify(parts, minors[0], minor)
    halves = total(parts, majors), minors[0]
    parts.made[part] = Made("product", halves)
    return halves


def _align_terms(parts: Parts, one: int, other: int) -> bool:
    """Unifies terms from the start; returns whether the cuts fit."""
    left, right = terms_of(parts, one)[::-1], terms_of(parts, other)[::-1]
    if len(left) == len(right) == 1:
        return False
    while left and right:
        a, b = _pop_term(parts, left), _pop_term(parts, right)
        longer = left
        if parts.sizes[a] < parts.sizes[b]:
            a, b, longer = b, a, right
        if parts.sizes[a] != parts.sizes[b]:
            halves = _cut_term(parts, a, parts.sizes[b])
            if halves is None:
                return False
            longer.append(halves[1])
            a = halves[0]
        unify(parts, a, b)
    return True


def _pop_term(parts: Parts, pending: list[int]) -> int:
    """Removes the first term, the last in the list, which may have changed since."""
    pending.extend(terms_of(parts, pending.pop())[::-1])
    return pending.pop()


def _cut_term(parts: Parts, part: int, start: int) -> tuple[int, int] | None:
    """Cuts an atom, or the major factor of a product; None if it does not fit."""
    if family_of(parts, factors_of(parts, part)[0]):
        collapse(parts, factors_of(parts, part)[0])
        front = take_range(parts, part, 0, start)
        back = take_range(parts, part, start, parts.sizes[part])
        return None if front is None or back is None else (front, back)
    first, *rest = factors_of(parts, part)
    minor = product(parts, rest)
    position, left_over = divmod(start, parts.sizes[minor])
    if left_over:
        return None
    front = new_atom(parts, position)
    back = new_atom(parts, parts.sizes[first] - position)
    replace_atom(parts, first, Made("sum", (front, back)))
    return product(parts, [front, minor]), product(parts, [back, minor])


def take_range(parts: Parts, part: int, start: int, stop: int) -> int | None:
    """Returns a range of a part; None if its ends are not between terms."""
    pending, position, chosen = [part], 0, list[int]()
    while pending:
        term = _pop_term(parts, pending)
        end = position + parts.sizes[term]
        ends = [x for x in (start, stop) if position < x < end]
        if ends:
            halves = _cut_term(parts, term, ends[0] - position)
            if halves is None:
                return None
            pending.extend(halves[::-1])
            continue
        if start <= position and end <= stop:
            chosen.append(term)
        position = end
    return total(parts, chosen)
