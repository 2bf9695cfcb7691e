"""Attention code at random: written with products or einsum, with axes in any order, heads and
batches in any layout, masks of several kinds at several places, softmaxes of several forms.

What holds: it is exported, fused as one attention, and equal to eager float64 at other sizes than
the example's; or it is refused with a reason from the list in ``docs/concepts/ledger.md``, and
equal all the same. Several attentions are exported at once, as one module.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.export.fuse import fuse
from crossfuse.targets.onnxruntime import lower_ort_cpu

ROOT = Path(__file__).parents[2]
WIDTH, HEADS, GROUPS, TIMES, LONGEST = 16, 4, 2, 3, 24
SIZE = WIDTH // HEADS
LOG2_E = math.log2(math.e)
PER_MODULE = 10

PRODUCTS = ("matmul", "matmul", "keys first", "einsum", "einsum", "ellipsis", "merged", "three")
LAYOUTS = ("", "h", "h", "h", "gr", "multi query")
MASKS = ("none", "keys", "keys", "causal", "both")
PLACES = ("fill", "where", "add", "assign", "fill in place", "fill low", "fill small")
SCALES = ("queries", "keys", "divided", "multiplied", "behind the mask", "none")
SOFTMAXES = (
    *("plain", "plain", "float32", "logarithm", "exponential", "shifted", "logsumexp"),
    *("base 2", "base 2 of logarithms"),
)
GUARDS = ("none", "none", "nan", "again", "again as product", "again and normalised", "dropout")
GATES = ("none", "none", "none", "head", "key", "row")
REFUSED = {
    "tanh": "a soft cap",
    "sigmoid": "not normalised by a softmax",
    "heads mixed": "scores go through|product with weights",
    "other axis": "another axis|go through",
    "clipped": "limited by",
    "causal behind alone": "not masked alike",
    "used twice": "also used by|go through",
}
OF_LOGARITHMS = ("logsumexp", "base 2 of logarithms")
WRITTEN_OUT = ("logarithm", "exponential", "shifted", "base 2", *OF_LOGARITHMS)
NO_SOFTMAX = "not normalised by a softmax"
"""Said, too, where something is in the way of reading a written-out softmax as one."""


@dataclass(frozen=True)
class Case:
    """What was chosen. ``batch`` are its letters of batch axes; ``order`` the letters of the
    scores' axes; ``refused`` makes it something that no fused operator computes."""

    batch: str
    layout: str
    product: str
    order: str
    mask: str
    place: str
    scale: str
    softmax: str
    guard: str
    gate: str
    bias: bool
    refused: str | None

    @property
    def heads(self) -> str:
        return "h" if self.layout == "multi query" else self.layout

    @property
    def of_keys(self) -> str:
        return {"multi query": "", "gr": "g"}.get(self.layout, self.layout)


def chosen(rng: random.Random) -> Case:
    layout, product = rng.choice(LAYOUTS), rng.choice(PRODUCTS)
    batch = rng.choice(["b", "b", "b", "bt"])
    if layout in ("gr", "multi query") and product in ("ellipsis", "merged"):
        product = "einsum"
    letters = [*batch, *("h" if layout == "multi query" else layout)]
    tail = "sl" if product == "keys first" else "ls"
    order = "".join(letters) + tail
    if product in ("einsum", "three"):
        mixed = [*letters, *tail]
        rng.shuffle(mixed)
        order = "".join(mixed)
    mask = rng.choice(MASKS)
    refused = rng.choice(list(REFUSED)) if rng.random() < 0.12 else None
    if refused == "heads mixed" and "h" not in order:
        refused = "tanh"
    if refused == "sigmoid" and product == "keys first":
        refused = "clipped"  # on the right of its product, only a softmax tells an attention
    place, softmax = rng.choice(PLACES), rng.choice(SOFTMAXES)
    if refused == "other axis":
        place = "fill small"  # a key that no row attends to would have nothing but -inf
    if softmax in OF_LOGARITHMS and place == "fill low":
        place = "fill small"  # beside the lowest number a logarithm is nothing
    return Case(
        *(batch, layout, product, order, mask, place, rng.choice(SCALES), softmax),
        *(rng.choice(GUARDS), rng.choice(GATES), rng.random() < 0.3, refused),
    )


class Projections(nn.Module):
    """Keys and values, for a number of times where there is a batch axis of these."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.times = nn.Parameter(torch.randn(TIMES, 1, WIDTH) / 4)

    def forward(self, x: Tensor, y: Tensor, batch: str) -> tuple[Tensor, Tensor, Tensor]:
        if batch == "bt":
            x, y = x[:, None] + self.times, y[:, None] - self.times
        return x, self.k(y), self.v(y)


def split(case: Case, t: Tensor, length: str) -> tuple[str, Tensor]:
    """Letters and tensor: ``[b, t, length, heads, d]``; keys may have fewer heads."""
    heads = case.heads if length == "l" else case.of_keys
    if case.heads and not heads:
        return case.batch + length + "d", t[..., :SIZE]
    if heads == "g":
        t = t[..., : GROUPS * SIZE]
    sizes = {"": (), "h": (HEADS,), "g": (GROUPS,), "gr": (GROUPS, HEADS // GROUPS)}[heads]
    return case.batch + length + heads + "d", t.unflatten(-1, (*sizes, -1)) if heads else t


class Operands:
    """What queries are made of, keys, values and mask, and what several attentions make of these
    alike, made once. Queries are each attention's own: equal products would be one product."""

    def __init__(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> None:
        self.x, self.mask, self.of = x, mask, {"key": key, "value": value}
        self.parts: dict[tuple[str, ...], tuple[str, Tensor]] = {}
        self.made: dict[tuple[str, ...], Tensor] = {}

    def split(self, case: Case, name: str) -> tuple[str, Tensor]:
        """Keys or values, split."""
        how = (name, case.heads, case.of_keys)
        if how not in self.parts:
            self.parts[how] = split(case, self.of[name], "s")
        return self.parts[how]

    def attended(self, kind: str) -> Tensor:
        """``[b, s]``, ``[l, s]`` or ``[b, l, s]``."""
        if (kind,) not in self.made:
            rows, keys = self.x.shape[-2], self.of["key"].shape[-2]
            self.made[(kind,)] = {
                "keys": lambda: self.mask > 0,
                "causal": lambda: torch.ones(rows, keys, dtype=torch.bool).tril(2),
                "both": lambda: self.attended("keys")[:, None] & self.attended("causal"),
            }[kind]()
        return self.made[(kind,)]


class Attention(nn.Module):
    """The attention of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.q = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(LONGEST + 8, LONGEST + 8))
        self.mixing = nn.Parameter(torch.randn(HEADS, HEADS))
        self.by_head = nn.Parameter(torch.rand(HEADS) + 0.5)
        self.by_size = nn.Parameter(torch.rand(SIZE if case.heads else WIDTH) + 0.5)

    def forward(self, operands: Operands) -> Tensor:
        case, mask = self.case, operands.mask
        query, (letters, key) = self.q(operands.x), operands.split(case, "key")
        rows, keys = query.shape[-2], mask.shape[-1]
        query = query * SIZE**-0.5 if case.scale == "queries" else query
        key = key * SIZE**-0.5 if case.scale == "keys" else key
        attended = self.attended(operands)
        scores = self.scaled(self.scores(split(case, query, "l"), (letters, key)))
        if case.bias:
            scores = scores + self.spread(self.table[:rows, :keys], "ls")
        if attended is not None and case.refused != "causal behind alone":
            scores = self.masked(scores, attended)
        if case.scale == "behind the mask":
            scores = scores / 2
        weights = self.guarded(self.weights(scores), attended)
        gated = self.gated(weights, query, mask)
        out = self.product_with_values(gated, operands.split(case, "value"))
        if case.refused == "used twice":
            out = out + weights.mean()
        return out.flatten(out.ndim - 1 - len(case.heads))

    def scores(self, query: tuple[str, Tensor], key: tuple[str, Tensor]) -> Tensor:
        case, (q_letters, q), (k_letters, k) = self.case, query, key
        if case.product == "einsum":
            return torch.einsum(f"{q_letters},{k_letters}->{case.order}", q, k)
        if case.product == "three":
            return torch.einsum(f"{q_letters},{k_letters},d->{case.order}", q, k, self.by_size)
        batch = case.order[:-2]
        q, k = moved(q, q_letters, batch + "ld"), moved(k, k_letters, batch + "sd")
        if case.product == "ellipsis":
            return torch.einsum("...ld,...sd->...ls", q, k)
        if case.product == "keys first":
            return k @ q.mT
        if case.product == "merged":
            count = len(batch) - 1
            merged = torch.bmm(q.flatten(0, count), k.flatten(0, count).mT)
            return merged.unflatten(0, q.shape[: count + 1])
        return q @ k.mT

    def product_with_values(self, weights: Tensor, value: tuple[str, Tensor]) -> Tensor:
        """``[b, t, l, heads, d]``"""
        case, (letters, v) = self.case, value
        out = case.batch + "l" + case.heads + "d"
        if case.product in ("einsum", "ellipsis"):
            return torch.einsum(f"{case.order},{letters}->{out}", weights, v)
        if case.product == "three":
            return torch.einsum(f"{case.order},{letters},d->{out}", weights, v, self.by_size)
        batch = case.order[:-2]
        v = moved(v, letters, batch + "sd")
        if case.product == "keys first":
            return moved((v.mT @ weights).mT, batch + "ld", out)
        return moved(weights @ v, batch + "ld", out)

    def spread(self, t: Tensor, letters: str) -> Tensor:
        """With the scores' axes."""
        return moved(t, letters, self.case.order)

    def attended(self, operands: Operands) -> Tensor | None:
        """Where keys are attended, with the scores' axes."""
        mask = "causal" if self.case.refused == "causal behind alone" else self.case.mask
        if mask == "none":
            return None
        letters = {"keys": "bs", "causal": "ls", "both": "bls"}[mask]
        return self.spread(operands.attended(mask), letters)

    def scaled(self, scores: Tensor) -> Tensor:
        case = self.case
        if case.refused == "tanh":
            scores = 5 * torch.tanh(scores / 5)
        if case.refused == "clipped":
            scores = scores.clamp(-1, 1)
        if case.refused == "heads mixed":
            other = case.order.replace("h", "z")
            scores = torch.einsum(f"{case.order},hz->{other}", scores, self.mixing)
        return {"divided": scores / 2, "multiplied": scores * 0.5}.get(case.scale, scores)

    def masked(self, scores: Tensor, attended: Tensor) -> Tensor:
        place = self.case.place
        if place == "where":
            return torch.where(attended, scores, -torch.inf)
        if place == "add":
            return scores + torch.where(attended, 0.0, -torch.inf).to(scores.dtype)
        if place == "assign":
            scores = scores.clone()
            scores[~attended.expand_as(scores)] = -torch.inf
            return scores
        if place == "fill in place":
            return scores.clone().masked_fill_(~attended, -torch.inf)
        low = {"fill": -torch.inf, "fill low": torch.finfo(torch.float32).min, "fill small": -3e4}
        return scores.masked_fill(~attended, low[place])

    def weights(self, scores: Tensor) -> Tensor:
        case, axis = self.case, self.case.order.index("s")
        if case.refused == "sigmoid":
            return scores.sigmoid()
        if case.refused == "other axis":
            return scores.softmax(case.order.index("l"))
        if case.softmax == "float32":
            return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(axis)
        if case.softmax == "logarithm":
            return torch.log_softmax(scores, axis).exp()
        if case.softmax == "logsumexp":
            return (scores - scores.logsumexp(axis, keepdim=True)).exp()
        if case.softmax in ("exponential", "shifted"):
            shift = scores.amax(axis, keepdim=True) if case.softmax == "shifted" else 0
            weights = (scores - shift).exp()
            return weights / weights.sum(axis, keepdim=True)
        if case.softmax == "base 2":
            weights = ((scores - scores.amax(axis, keepdim=True)) * LOG2_E).exp2()
            return weights / weights.sum(axis, keepdim=True)
        if case.softmax == "base 2 of logarithms":
            scores = scores * LOG2_E
            return (scores - scores.exp2().sum(axis, keepdim=True).log2()).exp2()
        return scores.softmax(axis)

    def guarded(self, weights: Tensor, attended: Tensor | None) -> Tensor:
        case, axis = self.case, self.case.order.index("s")
        if case.refused == "causal behind alone" and attended is not None:
            return weights * attended
        if case.guard == "nan":
            return torch.nan_to_num(weights, 0.0)
        if case.guard == "dropout":
            return nn.functional.dropout(weights, 0.1, self.training)
        if attended is None or not case.guard.startswith("again"):
            return weights
        if case.guard == "again":
            return weights.masked_fill(~attended, 0.0)
        weights = weights * attended
        total = weights.sum(axis, keepdim=True)
        return weights / total if case.guard == "again and normalised" else weights

    def gated(self, weights: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        case = self.case
        if case.gate == "head" and "h" in case.order:
            return weights * self.spread(self.by_head, "h")
        if case.gate == "key":
            return weights * self.spread(mask.to(weights.dtype) + 0.5, "bs")
        if case.gate == "row":
            return weights * self.spread((query.mean(-1) > 0), case.batch + "l")
        return weights


def moved(t: Tensor, letters: str, order: str) -> Tensor:
    """The axes in another order, with one of size 1 for each letter that the tensor lacks."""
    t = t.permute([letters.index(letter) for letter in order if letter in letters])
    for axis, letter in enumerate(order):
        if letter not in letters:
            t = t.unsqueeze(axis)
    return t


class Several(nn.Module):
    """Attentions beside each other, each with keys and values of its own or all with the same."""

    def __init__(self, cases: list[Case], *, shared: bool = False) -> None:
        super().__init__()
        self.cases = {f"n{i}": case for i, case in enumerate(cases)}
        for name, case in self.cases.items():
            self.add_module(name, Attention(case))
        made = [Projections() for _ in cases[: 1 if shared else None]]
        self.projections = nn.ModuleList(made)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        made: dict[tuple[int, str], Operands] = {}
        for i, (name, case) in enumerate(self.cases.items()):
            which = (min(i, len(self.projections) - 1), case.batch)
            if which not in made:
                made[which] = Operands(*self.projections[which[0]](x, y, case.batch), mask)
            found[name] = self.get_submodule(name)(made[which])
        return found


def inputs(batch: int, rows: int, keys: int, seed: int) -> dict[str, Tensor]:
    """The last of three samples has no key at all; all others have the first."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, keys, generator=generator) > 0.4).long()
    mask[:, 0] = 1
    if batch > 2:
        mask[-1] = 0
    return {
        "x": torch.randn(batch, rows, WIDTH, generator=generator),
        "y": torch.randn(batch, keys, WIDTH, generator=generator),
        "mask": mask,
    }


DYNAMIC = {
    "x": {0: "batch:1:8", 1: f"rows:1:{LONGEST}"},
    "y": {0: "batch", 1: f"keys:1:{LONGEST}"},
    "mask": {0: "batch", 1: "keys"},
}


def of_cases(seed: int, count: int, *, shared: bool = False) -> tuple[list[Case], ModelSpec]:
    """Cases, and one module of them all."""
    rng = random.Random(seed)
    cases = [chosen(rng) for _ in range(count)]
    torch.manual_seed(seed)
    module = Several(cases, shared=shared).eval()
    return cases, ModelSpec(module, inputs(2, 3, 5, seed), DYNAMIC)


def require_fused(cases: list[Case], ledger: Ledger, kernels: Collection[str]) -> None:
    """Each case is one attention, fused; or refused with a reason of the list.

    Args:
        cases: in the order of the module's parts.
        ledger: of the module.
        kernels: sites that have one.
    """
    rows: dict[str, list[LedgerRow]] = {f"n{i}": [] for i in range(len(cases))}
    for row in ledger:
        rows[re.split(r"\W", row.site)[0]].append(row)
    for case, found in zip(cases, rows.values(), strict=True):
        reasons = [reason for row in found for reason in row.reasons.values()]
        assert len(found) == 1, (case, reasons)
        if case.refused is None:
            assert found[0].site in kernels, (case, reasons)
        else:
            assert found[0].site not in kernels, case
            expected_reason = REFUSED[case.refused]
            if case.softmax in WRITTEN_OUT:
                expected_reason += f"|{NO_SOFTMAX}"
            assert re.search(expected_reason, reasons[0]), (case, reasons)


def require_equal(
    cases: list[Case],
    module: nn.Module,
    run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]],
    points: Iterable[dict[str, Tensor]],
) -> None:
    """What is computed is what the module computes in float64, where that is a number that float32
    has."""
    wide = copy.deepcopy(module).double()
    for given in points:
        got = run({name: t.numpy() for name, t in given.items()})
        with torch.no_grad():
            truth = wide(given["x"].double(), given["y"].double(), given["mask"])
        for case, (name, expected) in zip(cases, truth.items(), strict=True):
            defined = expected.float().isfinite().numpy()
            np.testing.assert_allclose(
                got[name][defined],
                expected.numpy()[defined],
                rtol=2e-5,
                atol=2e-5,
                err_msg=f"{case} at {[tuple(t.shape) for t in given.values()]}",
            )


def check(seed: int, count: int, folder: Path) -> None:
    """One module of several cases, exported."""
    cases, spec = of_cases(seed, count)
    bundle = crossfuse.export(spec, folder / "b", ["ort-cpu"], allow_unfused=True)
    kernels = [row.site for row in bundle.ledger if row.fused.get("ort-cpu")]
    require_fused(cases, bundle.ledger, kernels)
    points = [inputs(*sizes, seed=seed + 1) for sizes in ((3, 1, 11), (2, 9, 2), (1, 6, 6))]
    with runtime.load(bundle.path) as session:
        require_equal(cases, spec.module, session.run, points)


def test_random_attention() -> None:
    """40 cases as one module, traced, fused and lowered once; no bundle, which costs the most."""
    cases, spec = of_cases(1000, 40, shared=True)
    fused = fuse(spec)
    lowered = lower_ort_cpu(fused.model)
    require_fused(cases, fused.ledger, lowered.kernels)
    engine = InferenceSession(
        ir.to_proto(lowered.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in engine.get_outputs()]

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, engine.run(names, given), strict=True))

    points = [inputs(3, 1, 11, seed=1001), inputs(2, 9, 2, seed=1002)]
    require_equal(cases, spec.module, run, points)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_more_random_attention(seed: int, tmp_path: Path) -> None:
    check(seed, PER_MODULE, tmp_path)


def test_reasons_are_documented() -> None:
    page = (ROOT / "docs/concepts/ledger.md").read_text()
    missing = [how for how, reason in REFUSED.items() if not re.search(reason, page)]
    assert missing == []
