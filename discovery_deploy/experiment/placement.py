"""Which sites share a machine, when a machine holds several hosts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def placed(sizes: Mapping[str, int], most: int) -> tuple[tuple[str, ...], ...]:
    """Sites on the smallest number of machines: the sites of each machine, in the order that was given.

    A site is never divided: its hosts are on one network, which is there. Sites fill machines in their order; only
    where that would need more machines than another way, the largest are placed first.

    Args:
        sizes: site -> number of its hosts.
        most: hosts that a machine holds.
    Raises:
        ValueError: a site is larger than a machine, naming it.
    """
    for name, size in sizes.items():
        if size > most:
            raise ValueError(f'site "{name}" has {size} hosts; a machine holds {most}')
    order = list(sizes)
    numbers = _first_fit([sizes[name] for name in order], most)
    at_least = -(-sum(sizes.values()) // most)
    if numbers and max(numbers) + 1 > at_least:
        by_size = sorted(order, key=lambda name: -sizes[name])  # stable: equal ones in the order of the file
        fewer = _fewest([sizes[name] for name in by_size], most, at_least, max(numbers))
        if fewer is not None:
            of_site = dict(zip(by_size, fewer, strict=True))
            numbers = [of_site[name] for name in order]
    machines: dict[int, list[str]] = {}
    for name, number in zip(order, numbers, strict=True):
        machines.setdefault(number, []).append(name)
    return tuple(tuple(names) for names in machines.values())


def _first_fit(sizes: Sequence[int], most: int) -> list[int]:
    """Machine of each site: the first that has room."""
    loads: list[int] = []
    numbers = []
    for size in sizes:
        number = next((index for index, load in enumerate(loads) if load + size <= most), len(loads))
        if number == len(loads):
            loads.append(0)
        loads[number] += size
        numbers.append(number)
    return numbers


def _fewest(sizes: Sequence[int], most: int, at_least: int, at_most: int) -> list[int] | None:
    """Machine of each site with the smallest number of machines; None when `at_most` are not enough."""
    for count in range(at_least, at_most + 1):
        found = _fitted(sizes, most, count)
        if found is not None:
            return found
    return None


def _fitted(sizes: Sequence[int], most: int, count: int) -> list[int] | None:
    """Machine of each site on `count` machines, the sizes falling; None when they do not fit.

    Depth first. Machines that are equally full are the same to a site, and what has failed once is not tried again.
    """
    hopeless: set[tuple[int, tuple[int, ...]]] = set()
    loads, numbers = [0] * count, list[int]()

    def fits(index: int) -> bool:
        if index == len(sizes):
            return True
        state = (index, tuple(sorted(loads)))
        if state in hopeless:
            return False
        tried = set()
        for number in range(count):
            load = loads[number]
            if load in tried or load + sizes[index] > most:
                continue
            tried.add(load)
            loads[number] += sizes[index]
            numbers.append(number)
            if fits(index + 1):
                return True
            numbers.pop()
            loads[number] -= sizes[index]
        hopeless.add(state)
        return False

    return numbers if fits(0) else None
