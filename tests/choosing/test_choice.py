"""Criteria choose what they say, over any scores: by counting, not by the code's own sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netgrow_cli.errors import UsageError
from netgrow_cli.jobs.choosing import Choice, rounded, rounded_count, taken

SCORES = st.dictionaries(
    st.integers(0, 5),
    st.lists(st.floats(0, 10).map(lambda x: round(x, 1)), min_size=1, max_size=12).map(np.asarray),
    min_size=1,
    max_size=4,
)


def _flat(picked: dict[int, list[int]]) -> set[tuple[int, int]]:
    return {(width, unit) for width, units in picked.items() for unit in units}


@given(SCORES, st.floats(0, 10).map(lambda x: round(x, 1)), st.booleans())
def test_above_and_below_take_all_that_qualify_but_never_a_whole_width(scores, bound, going):
    for choice, qualifies in ((Choice(above=bound), lambda x: x > bound), (Choice(below=bound), lambda x: x < bound)):
        picked = taken("layer", scores, choice, going=going)
        for width, values in scores.items():
            units = {unit for unit, value in enumerate(values) if qualifies(value)}
            found = set(picked.get(width, []))
            if going and len(units) == len(values):
                (spared,) = units - found
                ranked = [values[unit] for unit in units]
                # The one that stays is the last that the criterion would take.
                assert values[spared] == (min(ranked) if choice.above is not None else max(ranked))
            else:
                assert found == units


@given(SCORES, st.integers(1, 20), st.booleans())
def test_counts_take_the_extremes(scores, count, going):
    total = sum(map(len, scores.values()))
    for name, sign in (("top", -1), ("lowest", 1)):
        choice = Choice(**{name: count})
        if going and count >= total:
            with pytest.raises(UsageError, match="at least one must stay"):
                taken("layer", scores, choice, going=going)
            continue
        picked = taken("layer", scores, choice, going=going)
        most = sum(len(values) - going for values in scores.values())
        assert len(_flat(picked)) == min(count, most)
        for width, units in picked.items():
            left = [unit for unit in range(len(scores[width])) if unit not in units]
            assert all(sign * scores[width][a] <= sign * scores[width][b] for a in units for b in left)
            assert left or not going


@given(SCORES, st.floats(0.05, 0.95), st.booleans())
def test_a_fraction_is_the_lowest_that_go_and_the_highest_that_are_split(scores, fraction, going):
    total = sum(map(len, scores.values()))
    picked = taken("layer", scores, Choice(fraction=fraction), going=going)
    assert len(_flat(picked)) <= int(fraction * total)
    same = Choice(lowest=int(fraction * total)) if going else Choice(top=int(fraction * total))
    if int(fraction * total):
        assert _flat(picked) == _flat(taken("layer", scores, same, going=going))


@given(st.integers(1, 70), st.data(), st.sampled_from([1, 2, 8, 16]))
def test_rounding(size, data, multiple):
    count = data.draw(st.integers(0, size - 1))
    fewer, more = (rounded_count(size, count, multiple, going=going) for going in (True, False))
    assert 0 <= fewer <= count
    assert fewer == 0 or (size - fewer) % multiple == 0
    # No more could have gone: the next multiple below would need more than were chosen.
    assert fewer == 0 or size - fewer - multiple < size - count
    if count == 0:
        assert more == 0
    else:
        assert more == 0 or (size + more) % multiple == 0
        assert more >= count or size + count > 2 * size // multiple * multiple
        assert more <= size


@given(SCORES, st.integers(1, 6), st.sampled_from([2, 4]), st.booleans())
def test_rounding_keeps_the_surest(scores, count, multiple, going):
    choice = Choice(top=count, round_to=multiple)
    if going and count >= sum(map(len, scores.values())):
        return
    before = taken("layer", scores, choice, going=going)
    after = rounded(before, scores, choice, going=going)
    for width, units in after.items():
        values, old = scores[width], before[width]
        assert set(units) <= set(old) if going else set(old) <= set(units) or len(units) < len(old)
        if going:
            kept = [values[unit] for unit in old if unit not in units]
            assert not units or not kept or min(values[unit] for unit in units) >= max(kept)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(top=1, below=0.5), "--top and --below both"),
        (Choice(top=0), "--top 0: at least 1"),
        (Choice(fraction=1.0), "--fraction 1.0: a number between"),
        (Choice(above=float("nan")), "--above nan"),
        (Choice(lowest=2, round_to=0), "--round-to 0"),
        (Choice(globally=True), "--globally needs a criterion: one of --top"),
        (Choice(round_to=8), "--round-to needs a criterion"),
    ],
)
def test_what_cannot_be_meant(choice, said):
    with pytest.raises(UsageError, match=said):
        choice.check()
