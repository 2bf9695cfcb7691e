"""Inputs like the examples, at other sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossfuse.spec.imitation import Draw, Patterns, Table, imitate, vary
from crossfuse.spec.input_kinds import kinds_of

IDS = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]])
LIKE = {"ids": IDS, "mask": (IDS != 0).long(), "image": torch.randn(2, 3) * 4 + 1}
AXES = {"ids": {0: "batch", 1: "text"}, "mask": {0: "batch", 1: "text"}, "image": {0: "batch"}}
SHAPES = {"ids": (64, 9), "mask": (64, 9), "image": (64, 3)}


def make(draw: Draw, seed: int = 1) -> dict[str, torch.Tensor]:
    kinds, generator = kinds_of([LIKE], AXES), torch.Generator().manual_seed(seed)
    return imitate(kinds, LIKE, SHAPES, AXES, draw, generator)


@pytest.mark.parametrize("masks", ["prefix", "holes", "none"])
def test_ids_are_padding_exactly_where_the_mask_hides(masks: str) -> None:
    made = make(Draw(masks))
    assert {name: tuple(t.shape) for name, t in made.items()} == SHAPES
    assert {name: t.dtype for name, t in made.items()} == {n: t.dtype for n, t in LIKE.items()}
    assert ((made["ids"] == 0) == (made["mask"] == 0)).all()
    rows = made["mask"].sum(1)
    assert bool((rows == 0).any()) == (masks == "none")
    padded_at_the_end = (made["mask"][:, 1:] <= made["mask"][:, :-1]).all(1)
    assert bool(padded_at_the_end.all()) == (masks == "prefix")


def test_features_have_the_scale_that_is_asked() -> None:
    plain, large = make(Draw())["image"], make(Draw(scale=10.0))["image"]
    assert torch.allclose(large, plain * 10, rtol=1e-5)
    assert plain.std() == pytest.approx(float(LIKE["image"].std()), rel=0.3)


def test_ids_reach_the_whole_table_and_its_extremes() -> None:
    table = {"ids": Table(1000, (123,))}
    ids = make(Draw(tables=table))["ids"]
    assert int(ids.max()) > 500
    assert int(ids.max()) < 1000
    ids = make(Draw(tables=table, extremes=True))["ids"]
    assert {123, 999} <= set(ids.unique().tolist())


def test_masks_may_be_read_the_other_way_round() -> None:
    one, other = make(Draw())["mask"], make(Draw(flipped=True))["mask"]
    assert (one + other == 1).all()


def test_what_a_sampler_made_is_varied_and_the_rest_stays() -> None:
    kinds = kinds_of([LIKE], AXES)
    generator = torch.Generator().manual_seed(3)
    varied = vary(kinds, LIKE, AXES, Draw("holes", scale=2.0), generator)
    assert torch.equal(varied["image"], LIKE["image"] * 2)
    assert not varied["mask"].equal(LIKE["mask"])
    assert ((varied["ids"] == 0) == (varied["mask"] == 0)).all()
    assert vary(kinds, LIKE, AXES, Draw(), generator)["ids"].equal(IDS)


@pytest.mark.parametrize("masks", ["prefix", "holes", "none"])
def test_settled_ids_and_inputs_stay_and_no_mask_hides_them(masks: str) -> None:
    image, rows = 7, 24
    ids = torch.randint(1, 6, (rows, 8), generator=torch.Generator().manual_seed(0))
    ids[:, :3] = image
    mask = (torch.arange(8) < 4 + torch.arange(rows)[:, None] % 5).long()
    mask[0] = 1
    made = {"mask": mask, "ids": ids * mask, "types": (ids == image).long()}
    axes = {name: {0: "batch", 1: "text"} for name in made}
    settled = {"ids": (image,), "types": ()}
    draw = Draw(masks, tables={"ids": Table(9, (image, 8))}, extremes=True)
    varied = vary(kinds_of([made], axes), made, axes, draw, torch.Generator(), settled)
    assert torch.equal(varied["ids"] == image, ids == image)
    assert varied["mask"][ids == image].all()
    assert varied["types"] is made["types"]
    assert (varied["ids"] == 8).any()
    assert ((varied["ids"] == 0) >= (varied["mask"] == 0)).all()
    assert (masks == "prefix") == torch.equal(varied["mask"], mask)


def test_masks_of_the_same_dimensions_show_the_same_places() -> None:
    patterns = Patterns("holes", torch.Generator().manual_seed(1))
    names = {0: "batch", 1: "text"}
    one = patterns.shown((4, 6), names)
    assert patterns.shown((4, 1, 1, 6), {0: "batch", 3: "text"}).reshape(4, 6).equal(one)
    assert not patterns.shown((4, 6), {0: "batch", 1: "other"}).equal(one)
    assert patterns.shown((0, 6), {0: "none", 1: "text"}).shape == (0, 6)


def test_words_tell_what_a_draw_reaches() -> None:
    assert Draw().words() == "rows padded at the end"
    whole = Draw("none", 100.0, {"ids": Table(3)}, True, True)
    assert whole.words() == (
        "a sample without any key, features × 100, ids of the whole table, its largest rows among "
        "them, masks read the other way round"
    )
    assert "largest" not in replace(whole, extremes=False).words()
