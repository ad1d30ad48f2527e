"""Which sites share a machine."""

from __future__ import annotations

import itertools
import random

import pytest

from discovery_deploy.experiment.placement import placed


def sites(*sizes: int) -> dict[str, int]:
    return {f"s{index}": size for index, size in enumerate(sizes)}


def test_sites_fill_machines_in_their_order() -> None:
    assert placed(sites(1, 1, 1, 1, 1), 2) == (("s0", "s1"), ("s2", "s3"), ("s4",))
    assert placed(sites(2, 3, 1), 4) == (("s0", "s2"), ("s1",))


def test_forty_five_sites_fit_on_four_machines() -> None:
    assert [len(names) for names in placed(sites(*[1] * 45), 12)] == [12, 12, 12, 9]


def test_the_largest_go_first_where_their_order_would_need_a_machine_more() -> None:
    assert placed(sites(2, 2, 3, 3), 5) == (("s0", "s2"), ("s1", "s3"))


def test_the_number_is_the_smallest_also_where_largest_first_is_not() -> None:
    # first fit, also by falling size, needs three machines of 12 here
    assert len(placed(sites(5, 5, 4, 4, 3, 3), 12)) == 2


def test_a_site_larger_than_a_machine_is_named() -> None:
    with pytest.raises(ValueError, match='site "s1" has 5 hosts; a machine holds 4'):
        placed(sites(1, 5), 4)


def test_against_all_ways_there_are() -> None:
    dice = random.Random(4)
    for _ in range(60):
        sizes, most = [dice.randint(1, 6) for _ in range(dice.randint(1, 6))], 7
        found = placed(sites(*sizes), most)
        assert sorted(itertools.chain(*found)) == sorted(sites(*sizes))
        loads = [sum(sizes[int(name[1:])] for name in names) for names in found]
        assert max(loads) <= most
        ways = itertools.product(range(len(sizes)), repeat=len(sizes))
        fewest = min(
            len(set(way))
            for way in ways
            if all(sum(size for size, at in zip(sizes, way, strict=True) if at == one) <= most for one in set(way))
        )
        assert len(found) == fewest


def test_many_unlike_sites_are_placed_at_once() -> None:
    dice = random.Random(7)
    assert placed(sites(*[dice.randint(1, 12) for _ in range(64)]), 25)
