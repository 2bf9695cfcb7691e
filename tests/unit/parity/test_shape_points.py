"""Inputs that matter: what parity is checked on. A candidate that is wrong only there must fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.eager import eager_reference
from crossfuse.parity.reference import ReferenceSet, load_reference, save_reference
from crossfuse.parity.report import ParityReport, compare
from crossfuse.parity.shape_points import EXAMPLE, TAILS
from crossfuse.parity.tables import tables_seen
from crossfuse.spec.imitation import Draw, Table
from crossfuse.spec.input_kinds import kinds_of

WIDTH, KEYS = 8, 6
INF = float("inf")
LOWEST = torch.finfo(torch.float32).min
PREFIX = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
DYNAMIC = {"x": {0: "batch:1:8", 1: "n:1:32"}, "mask": {0: "batch", 1: "n"}}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pooled(nn.Module):
    """A mean of the shown places: enough of an attention to tell which masks a candidate
    understands."""

    def __init__(self, bias: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bias = bias
        torch.manual_seed(0)
        self.score, self.value = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = (self.score(x).squeeze(-1) + self.bias(mask).to(x.dtype)).softmax(-1)
        return weights[:, None] @ self.value(x)


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda mask: torch.zeros(mask.shape).masked_fill(mask == 0, value)


def hidden_where_true(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -1e4)


def judge(spec: ModelSpec, candidate: Callable[[dict[str, Tensor]], Tensor]) -> ParityReport:
    """A candidate that computes in float64, against the reference as it is made for the spec."""

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            given = {n: torch.from_numpy(a) for n, a in inputs.items()}
            return {
                "output": candidate(
                    {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
                ).numpy()
            }

    return compare(run, eager_reference(spec), target="t", executed_on="x")


def double(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).double()


MASKS = {
    "integers": (PREFIX, filled(-1e4)),
    "floats": (PREFIX.float(), filled(-1e4)),
    "half floats": (PREFIX.half(), filled(-1e4)),
    "booleans": (PREFIX.bool(), filled(-1e4)),
    "booleans that hide": (PREFIX == 0, hidden_where_true),
    "all ones": (torch.ones(2, KEYS), filled(-1e4)),
    "left padded": (PREFIX.flip(-1), filled(-1e4)),
    "additive -1e4": ((1 - PREFIX) * -1e4, lambda mask: mask),
    "additive -1e9": ((1 - PREFIX) * -1e9, lambda mask: mask),
    "additive lowest": ((1 - PREFIX) * LOWEST, lambda mask: mask),
    "additive infinite": (torch.zeros(2, KEYS).masked_fill(PREFIX == 0, -INF), lambda mask: mask),
    "undefined without keys": (PREFIX.float(), filled(-INF)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_no_prefix_are_tried(name: str) -> None:
    """A candidate that takes every mask for a prefix of as many places is wrong on all others."""
    mask, bias = MASKS[name]
    module = Pooled(bias)
    spec = ModelSpec(module, {"x": randn(2, KEYS, WIDTH), "mask": mask}, DYNAMIC)
    truth = double(module)
    assert judge(spec, lambda given: truth(**given)).passed

    def prefixes_only(given: dict[str, Tensor]) -> Tensor:
        mask = given["mask"]
        shown = bias(mask) > -100
        as_prefix = torch.arange(mask.shape[-1]) < shown.sum(-1, keepdim=True)
        values = {bool(s): mask[shown == s][:1] for s in shown.unique()}
        if len(values) < 2:
            return truth(**given)
        return truth(given["x"], torch.where(as_prefix, values[True], values[False]))

    assert not judge(spec, prefixes_only).passed


ABSORBING = "additive -1e9"
"""In float32 it absorbs the scores, in float64 it doesn't: the model has no one result where all
keys are hidden."""


def test_what_float32_and_float64_see_differently_is_told() -> None:
    mask, bias = MASKS[ABSORBING]
    reference = eager_reference(
        ModelSpec(Pooled(bias), {"x": randn(2, KEYS, WIDTH), "mask": mask}, DYNAMIC)
    )
    (note,) = reference.notes
    assert "a sample without any key" in note
    assert "something else in float32 than in float64 in output" in note


@pytest.mark.parametrize(
    "name", [n for n in MASKS if "undefined" not in n and "infinite" not in n and n != ABSORBING]
)
def test_samples_without_any_key_are_tried(name: str) -> None:
    """A candidate that gives 0 there, where the eager model averages, is wrong."""
    mask, bias = MASKS[name]
    module = Pooled(bias)
    truth = double(module)
    spec = ModelSpec(module, {"x": randn(2, KEYS, WIDTH), "mask": mask}, DYNAMIC)

    def zero_without_keys(given: dict[str, Tensor]) -> Tensor:
        lowest = bias(given["mask"]).max(-1).values
        return truth(**given) * (lowest > -100)[:, None, None]

    assert not judge(spec, zero_without_keys).passed


def test_what_the_model_is_not_defined_on_is_left_out_and_told(tmp_path: Path) -> None:
    module = Pooled(filled(-INF))
    spec = ModelSpec(module, {"x": randn(2, KEYS, WIDTH), "mask": PREFIX.float()}, DYNAMIC)
    reference = eager_reference(spec)
    assert all((point.inputs["mask"] != 0).any(-1).all() for point in reference.points)
    (note,) = reference.notes
    assert "a sample without any key" in note
    assert "NaN" in note
    assert "with holes" in note.partition("; ")[2]
    save_reference(reference, tmp_path / "r.npz")
    assert load_reference(tmp_path / "r.npz").notes == reference.notes
    assert judge(spec, lambda given: double(module)(**given)).to_json()["notes"] == [note]


def test_a_model_that_refuses_such_masks_is_checked_on_prefixes() -> None:
    class Strict(Pooled):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if not bool((mask[:, 1:] <= mask[:, :-1]).all()):
                raise ValueError("padding must be at the end")
            return super().forward(x, mask)

    reference = eager_reference(
        ModelSpec(Strict(filled(-1e4)), {"x": randn(2, KEYS, WIDTH), "mask": PREFIX}, DYNAMIC)
    )
    assert len(reference.notes) == 2
    assert all("fails" in note for note in reference.notes)
    assert len(reference.points) >= 5


def test_a_mandatory_point_that_is_undefined_fails() -> None:
    class Never(Pooled):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x, mask) / (x.shape[1] == KEYS)

    with pytest.raises(InputError, match="gives NaN or infinity"):
        eager_reference(
            ModelSpec(Never(filled(-1e4)), {"x": randn(2, KEYS, WIDTH), "mask": PREFIX}, DYNAMIC)
        )


def test_masks_over_the_same_dimensions_agree_with_each_other_and_with_lengths() -> None:
    names = {0: "batch", 1: "n"}
    spec = ModelSpec(
        nn.Identity(),
        {
            "x": randn(2, KEYS, WIDTH),
            "mask": PREFIX,
            "hidden": (PREFIX == 0)[:, None, None],
            "additive": ((1 - PREFIX) * -1e9)[:, None],
            "ids": torch.where(PREFIX == 1, torch.randint(5, 9, (2, KEYS)), 3),
            "labels": torch.where(PREFIX == 1, torch.randint(0, 9, (2, KEYS)), -100),
            "lengths": torch.tensor([6, 2]),
        },
        {
            "x": {0: "batch", 1: "n"},
            "mask": names,
            "hidden": {0: "batch", 3: "n"},
            "additive": {0: "batch", 2: "n"},
            "ids": names,
            "labels": names,
            "lengths": {0: "batch"},
        },
    )
    kinds = {name: kind.name for name, kind in spec.kinds().items()}
    assert kinds == {
        "x": "features",
        "mask": "mask",
        "hidden": "mask",
        "additive": "additive",
        "ids": "ids",
        "labels": "ids",
        "lengths": "lengths",
    }
    for style in ("prefix", "holes", "none"):
        made = spec.sample({"batch": 5, "n": 9}, 3, Draw(masks=style))
        shown = made["mask"] == 1
        assert torch.equal(made["hidden"][:, 0, 0], ~shown)
        assert torch.equal(made["additive"][:, 0] == 0, shown)
        assert torch.equal(made["ids"] == 3, ~shown)
        assert torch.equal(made["labels"] == -100, ~shown)
        assert torch.equal(made["lengths"], shown.sum(-1).clamp(min=1))
        assert bool((~shown).all(-1).any()) is (style == "none")
        assert bool((shown[:, 1:] & ~shown[:, :-1]).any()) is (style != "prefix")


@pytest.mark.parametrize(
    ("values", "name", "about"),
    [
        (torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "mask", {"shown": 1}),
        (torch.tensor([[False, True], [False, False]]), "mask", {"shown": 0}),
        (torch.tensor([[0, 0, 1], [1, 1, 1]]), "mask", {"shown": 1}),
        (torch.zeros(2, 3, dtype=torch.bool), "mask", {"shown": 0}),
        (
            torch.tensor([[0.0, -INF], [0.0, 0.0]]),
            "additive",
            {"hiding": (-INF,), "deviation": 0.0},
        ),
        (torch.tensor([[0.0, -1e4], [0.0, LOWEST]]), "additive", {"hiding": (LOWEST, -1e4)}),
        (torch.tensor([[0.0, -65504.0]], dtype=torch.float16), "additive", {"hiding": (-65504.0,)}),
        (torch.tensor([[0.3, -1.2, -INF], [0.4, 2.0, -0.1]]), "additive", {"hiding": (-INF,)}),
        (torch.tensor([[0.3, -1.2, -7.0]]), "features", {}),
        (torch.tensor([[0.0, 0.0, 0.5]]), "features", {}),
        (1e4 * randn(2, 3), "features", {}),
        (torch.tensor([[3, 9, -100]]), "ids", {"ignored": -100, "low": 3, "high": 9}),
        (torch.tensor([[3, 9, -1]], dtype=torch.int32), "ids", {"ignored": -1}),
        (torch.tensor([[-3, 9, -1]]), "ids", {"ignored": None, "low": -3}),
        (
            torch.tensor([[0, 2, 1]], dtype=torch.uint8),
            "ids",
            {"ignored": None, "low": 0, "high": 2},
        ),
    ],
    ids=str,
)
def test_kinds(values: Tensor, name: str, about: dict[str, object]) -> None:
    kind = kinds_of([{"v": values}], {})["v"]
    assert kind.name == name
    assert {key: getattr(kind, key) for key in about} == about
    made = ModelSpec(nn.Identity(), {"v": values}, {"v": {0: "rows"}}).sample({"rows": 40}, 1)["v"]
    assert made.dtype == values.dtype
    if name != "features" and about.get("deviation", 1) in (0.0, 1):
        allowed = set(values.unique().tolist()) | set(range(kind.low, kind.high + 1))
        assert name == "additive" or set(made.unique().tolist()) <= allowed


class Words(nn.Module):
    """Ids, of which negative ones count for nothing."""

    def __init__(self, rows: int = 60) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(rows, WIDTH)
        with torch.no_grad():
            self.table.weight[47] *= 1e4

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.table(ids.clamp(min=0)) * (ids >= 0)[..., None])


@pytest.mark.parametrize("values", [[3, 9, 4], [3, 9, -100], [0, 1, 1]], ids=str)
def test_ids_cover_their_table(values: list[int]) -> None:
    """The example's ids are few; a row far outside of them, the largest, is looked up all the
    same."""
    ids = torch.tensor([values * 3] * 3)
    spec = ModelSpec(Words(), {"ids": ids}, {"ids": {0: "batch:1:8", 1: "n:1:32"}})
    with torch.no_grad(), tables_seen(spec.module, spec.inputs) as tables:
        spec.module(**spec.inputs)
    assert tables["ids"].rows == 60
    assert tables["ids"].extremes[0] == 47
    reference = eager_reference(spec)
    seen = {int(i) for point in reference.points for i in point.inputs["ids"].ravel()}
    assert {47, 59} <= seen
    assert max(seen) == 59
    assert ({i for i in seen if i < 0} == {-100}) is bool((ids < 0).any())


def test_tables_are_those_that_are_looked_up_as_given() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds, self.free = (
                nn.Embedding(30, 4),
                nn.Embedding(2, 4),
                nn.Parameter(randn(20, 4)),
            )

        def forward(self, ids: Tensor, kinds: Tensor, rows: Tensor, shifted: Tensor) -> Tensor:
            pieces = self.words(ids[:, :2]) + self.kinds(kinds)[:, :2] + self.free[rows][:, :2]
            return (
                pieces + self.words(shifted + 2)[:, :2] + F.embedding(ids, self.words.weight)[:, :2]
            )

    inputs = {
        name: torch.tensor([[1, 0, 1], [0, 1, 0]]) for name in ("ids", "kinds", "rows", "shifted")
    }
    inputs["rows"], inputs["ids"], inputs["shifted"] = (
        inputs["rows"] * 7,
        inputs["ids"] * 5,
        inputs["shifted"] * 3,
    )
    module = Three()
    with torch.no_grad(), tables_seen(module, inputs) as tables:
        module(**inputs)
    assert {name: table.rows for name, table in tables.items()} == {
        "ids": 30,
        "kinds": 2,
        "rows": 20,
    }


def test_a_named_vocabulary_stands_in_for_a_table() -> None:
    spec = ModelSpec(
        nn.Identity(),
        {"ids": torch.tensor([[1, 2]])},
        {"ids": {0: "batch"}},
        vocabulary={"ids": 500},
    )
    made = spec.sample({"batch": 200}, 0, Draw(tables={"ids": Table(500)}))["ids"]
    assert int(made.max()) > 400
    reference = eager_reference(replace(spec, module=Words(500)))
    assert max(int(point.inputs["ids"].max()) for point in reference.points) == 499
    with pytest.raises(InputError, match="vocabulary names an input"):
        replace(spec, vocabulary={"words": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.log(1 - torch.sigmoid(-x.float())).double(),
        lambda x: F.logsigmoid(x.clamp(min=-15)),
        lambda x: F.logsigmoid(x) * (x.abs() < 20),
    ],
    ids=["infinite", "clamped", "cut"],
)
def test_magnitudes_reach_tails(wrong: Callable[[Tensor], Tensor]) -> None:
    class Tail(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.logsigmoid(3 * x)

    spec = ModelSpec(Tail(), {"x": randn(2, 40, seed=1)}, {"x": {0: "batch"}})
    assert judge(spec, lambda given: F.logsigmoid(3 * given["x"])).passed
    assert not judge(spec, lambda given: wrong(3 * given["x"])).passed


def test_tails_do_not_loosen_the_other_points() -> None:
    """Eager float32 is a thousand times worse at ten times the magnitude; the tolerance elsewhere
    stays what it was."""

    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**7

    spec = ModelSpec(Cube(), {"x": randn(2, 50, seed=1)}, {"x": {0: "batch"}})
    reference = eager_reference(spec)
    assert reference.eager_error("output", tails=True) > 1e4 * reference.eager_error("output")
    report = judge(spec, lambda given: given["x"] ** 7 * (1 + 1e-4 * (given["x"].abs().max() < 5)))
    assert not report.passed
    assert reference.points[report.failing[0]].kind != TAILS


def test_the_users_examples_are_points_and_come_first(tmp_path: Path) -> None:
    module = Pooled(filled(-1e4))
    first = {"x": randn(2, KEYS, WIDTH), "mask": PREFIX}
    more = [
        {"x": randn(b, n, WIDTH, seed=n), "mask": torch.ones(b, n, dtype=torch.long)}
        for b, n in ((1, 3), (3, 17))
    ]
    spec = ModelSpec(module, first, DYNAMIC, examples=more)
    points = eager_reference(spec).points
    assert [point.kind for point in points[:4]] == [EXAMPLE, EXAMPLE, EXAMPLE, "made"]
    for point, inputs in zip(points, (first, *more), strict=False):
        assert all(np.array_equal(point.inputs[name], tensor) for name, tensor in inputs.items())
    truth = double(module)
    wrong_at_17 = judge(
        spec, lambda given: truth(**given) * (1.01 if given["x"].shape[:2] == (3, 17) else 1)
    )
    assert [wrong_at_17.points[i] for i in wrong_at_17.failing] == [{"batch": 3, "n": 17}]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"x": randn(1, 3, WIDTH)}, "names are wrong.*missing mask"),
        ({"x": randn(1, 3, WIDTH), "mask": torch.ones(1, 3), "y": randn(1)}, "unknown y"),
        ({"x": randn(1, 3, WIDTH), "mask": torch.ones(1, 3)}, "wrong dtype.*mask.*float32"),
        (
            {"x": randn(1, 3, 5), "mask": torch.ones(1, 3, dtype=torch.long)},
            r"wrong shape.*\[1, 3, 5\].*\[batch, n, 8\]",
        ),
        ({"x": randn(1, 3, WIDTH), "mask": torch.ones(1, 4, dtype=torch.long)}, "two sizes"),
        (
            {"x": randn(9, 3, WIDTH), "mask": torch.ones(9, 3, dtype=torch.long)},
            "outside its range",
        ),
    ],
    ids=["missing", "unknown", "dtype", "width", "two sizes", "range"],
)
def test_examples_are_checked(example: dict[str, Tensor], message: str) -> None:
    inputs = {"x": randn(2, KEYS, WIDTH), "mask": PREFIX}
    with pytest.raises(InputError, match=message) as caught:
        ModelSpec(Pooled(filled(-1e4)), inputs, DYNAMIC, examples=[example])
    assert "examples[0]" in str(caught.value)


@pytest.mark.parametrize("name", ["qformer", "clip", "vilt"])
def test_masks_that_a_sampler_pads_vary_too(name: str) -> None:
    spec = zoo_spec(name, "tiny")
    sizes = {dim: max(size, 4) for dim, size in spec.example_sizes.items()}
    made = spec.sample(
        sizes, 5, Draw(masks="none", extremes=True, tables={"input_ids": Table(99, (7,))})
    )
    mask = made["attention_mask"]
    assert (mask == 0).all(-1).any()
    assert bool((mask[:, 1:] > mask[:, :-1]).any())
    assert bool((made["input_ids"] == 7).any())
    plain = spec.sample(sizes, 5)
    assert not bool((plain["attention_mask"][:, 1:] > plain["attention_mask"][:, :-1]).any())
    if "pixel_mask" in made:
        assert torch.equal(made["pixel_mask"], plain["pixel_mask"]), (
            "masks of grids are not rows of padding"
        )


def test_padding_ids_move_with_a_samplers_mask() -> None:
    def sampler(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        mask = (torch.arange(sizes["n"]) < torch.tensor([sizes["n"], 2])[:, None]).long()
        return {
            "ids": torch.where(mask == 1, torch.randint(5, 20, mask.shape, generator=generator), 1),
            "mask": mask,
        }

    names = {0: "batch:2:2", 1: "n:1:32"}
    spec = ModelSpec.from_sampler(
        nn.Identity(), sampler, dynamic={"ids": names, "mask": names}, example={"batch": 2, "n": 7}
    )
    made = spec.sample({"batch": 2, "n": 7}, 1, Draw(masks="holes"))
    assert torch.equal(made["ids"] == 1, made["mask"] == 0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            f(t).unflatten(-1, (2, -1)).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        if mask.ndim == 2:
            scores = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // 2)).masked_fill(
                (mask == 0)[:, None, None], -INF
            )
            return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("form", ["float mask", "additive"])
def test_exported_with_such_masks(form: str, tmp_path: Path) -> None:
    """Whole: the bundle was checked on masks that hide, and is right on others that the user may
    give."""
    mask, named = PREFIX.float(), {0: "batch", 1: "m"}
    if form == "additive":
        mask = torch.zeros(2, 1, 3, KEYS).masked_fill(PREFIX[:, None, None] == 0, -INF)
        named = {0: "batch", 2: "n", 3: "m"}
    spec = ModelSpec(
        Attention(),
        {"x": randn(2, 3, WIDTH), "y": randn(2, KEYS, WIDTH, seed=1), "mask": mask},
        {"x": {0: "batch:1:8", 1: "n:1:32"}, "y": {0: "batch", 1: "m:1:32"}, "mask": named},
    )
    bundle = crossfuse.export(spec, tmp_path / "b")
    points = load_reference(bundle.path / "reference.npz").points
    assert all(set(np.unique(point.inputs["mask"])) <= {0.0, 1.0, -INF} for point in points)
    hidden = [point.inputs["mask"] == (0 if form == "float mask" else -INF) for point in points]
    assert any(h.any() for h in hidden)
    assert any((h[..., :-1] & ~h[..., 1:]).any() for h in hidden), (
        "none of them is padded at the start or has holes"
    )
    assert bundle.manifest.targets["ort-cpu"].parity["notes"] or form == "additive"


def test_reference_of_old_bundles_is_read(tmp_path: Path) -> None:
    """Without kinds and notes, as they were written before there were any."""
    import json

    spec = ModelSpec(Pooled(filled(-1e4)), {"x": randn(2, KEYS, WIDTH), "mask": PREFIX}, DYNAMIC)
    save_reference(eager_reference(spec), tmp_path / "r.npz")
    arrays = dict(np.load(tmp_path / "r.npz"))
    about = json.loads(bytes(arrays["about"]))
    del about["notes"]
    for point in about["points"]:
        del point["kind"]
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **arrays)
    assert isinstance(load_reference(tmp_path / "old.npz"), ReferenceSet)
