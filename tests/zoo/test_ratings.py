"""Ratings of lectures: what is in the table, and that its parts are apart."""

import pytest
import torch

from assets import CI
from termwise.zoo.assets import ASSETS, locate
from termwise.zoo.ratings import FIELDS, ratings, split


@pytest.fixture(autouse=True)
def needs_the_table():
    if not CI and locate(ASSETS["r-tables"]) is None:
        pytest.skip(f"the ratings are not here: {ASSETS['r-tables'].install}")


def test_ids_count_from_zero_and_ratings_are_one_to_five():
    ids, rating = ratings()
    assert ids.shape == (73_421, len(FIELDS))
    assert (ids.amax(0) + 1).tolist() == [2972, 1128, 4, 6, 2, 14]
    assert not ids.amin(0).any()
    assert rating.unique().tolist() == [1, 2, 3, 4, 5]
    assert all(len(ids[:, i].unique()) == ids[:, i].max() + 1 for i in range(6))


def test_the_parts_are_all_of_it():
    (ids, clicks), (held, held_clicks) = split("train"), split("test")
    assert (len(ids), len(held)) == (58_736, 14_685)
    whole, rating = ratings()
    assert torch.equal(torch.cat([ids, held]).sort(0).values, whole.sort(0).values)
    assert clicks.sum() + held_clicks.sum() == (rating >= 4).sum()
    with pytest.raises(ValueError, match="unknown part 'valid'"):
        split("valid")
