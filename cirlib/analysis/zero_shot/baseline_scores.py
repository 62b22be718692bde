"""The zero-shot baselines on a two-tower model: image only, text only, weighted sum, spherical interpolation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from cirlib.benchmarks import PROTOCOLS, Benchmark, query_texts
from cirlib.models.baselines import image_only, slerp, text_only, weighted_sum
from cirlib.models.clip import TwoTowers
from cirlib.models.feature_store import FeatureStore
from cirlib.models.preparation import Prepared
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score, summarise
from cirlib.study.parameters import Evaluation

Composer = Callable[[Tensor, Tensor], Tensor]
MIXES = {"sum": weighted_sum, "slerp": slerp}


@dataclass(frozen=True)
class Embedded:
    """A benchmark in a two-tower space: references and texts (N, D), gallery (M, D), all normalised."""

    benchmark: Benchmark
    references: Tensor
    texts: Tensor
    gallery: Tensor


def embed(towers: TwoTowers, store: FeatureStore, parts: Mapping[str, Benchmark], style: str) -> dict[str, Embedded]:
    """Every category's queries and gallery in the two-tower space; captions joined as ``style`` says."""
    return {c: place(store, part, embed_texts(towers, part, style)) for c, part in parts.items()}


def embed_texts(towers: TwoTowers, benchmark: Benchmark, style: str) -> Tensor:
    """The edit of each query, (N, D); a query's several texts averaged."""
    texts, rows = query_texts(benchmark, style)
    return average_texts(towers.encode_texts(texts), rows, len(benchmark.triplets))


def place(store: FeatureStore, benchmark: Benchmark, texts: Tensor) -> Embedded:
    """A benchmark with its edits (N, D) and the stored embeddings of its images."""
    references = store[[triplet.reference for triplet in benchmark.triplets]]
    return Embedded(benchmark, references, texts, store[benchmark.gallery])


def score_composer(
    method: str, compose: Composer, embedded: Mapping[str, Embedded], evaluation: Evaluation
) -> list[Scored]:
    """One composer on every category."""
    return [
        score(method, category, compose(e.references, e.texts), e.gallery, e.benchmark, evaluation)
        for category, e in embedded.items()
    ]


def sweep(weights: Sequence[float], dev: Mapping[str, Embedded], evaluation: Evaluation) -> pd.DataFrame:
    """Mean dev recall@10 of each mix at each weight of the text: columns method, weight, dev/recall@10."""
    rows = []
    for method, mix in MIXES.items() if dev else ():
        for weight in weights:
            scored = score_composer(method, lambda i, t, m=mix, w=weight: m(i, t, w), dev, evaluation)
            rows.append({"method": method, "weight": weight, "dev/recall@10": mean_recall(scored, 10)})
    return pd.DataFrame(rows, columns=["method", "weight", "dev/recall@10"])


def best_weights(table: pd.DataFrame) -> dict[str, float]:
    """The weight with the best dev recall@10 of each method; the smaller of equals, 0.5 where there is no dev part."""
    if table.empty:
        return dict.fromkeys(MIXES, 0.5)
    table = table.sort_values("weight", kind="stable", ignore_index=True)
    best = table.loc[table.groupby("method", sort=False)["dev/recall@10"].idxmax()]
    return dict(zip(best["method"], best["weight"], strict=True))


def baselines(weights: Mapping[str, float]) -> dict[str, Composer]:
    """The four zero-shot methods by name, the mixes at their ``weights``."""
    mixes = {m: (lambda i, t, m=m: MIXES[m](i, t, weights[m])) for m in MIXES}
    return {"image_only": image_only, "text_only": text_only, **mixes}


def score_baselines(
    weights: Mapping[str, float], embedded: Mapping[str, Embedded], evaluation: Evaluation
) -> list[Scored]:
    """All four zero-shot methods on every category."""
    methods = baselines(weights).items()
    return [one for method, compose in methods for one in score_composer(method, compose, embedded, evaluation)]


def protocol_table(towers: TwoTowers, prepared: Prepared, weight: float) -> pd.DataFrame:
    """One model, the weighted sum, under every protocol public code uses: what the protocol alone is worth."""
    rows: list[dict] = []
    benchmark, store = prepared.stage.study.data.benchmark, prepared.clip
    texts: dict[str, dict[str, Tensor]] = {}  # caption style → category → features
    galleries: dict[str, dict[str, Benchmark]] = {}  # gallery protocol → category → benchmark
    for name, protocol in PROTOCOLS.items():
        if name in ("cirr", "circo") or (benchmark in ("cirr", "circo") and protocol.gallery != "original"):
            continue
        evaluation = Evaluation(gallery=protocol.gallery, reference=protocol.reference, captions=protocol.captions)
        if protocol.gallery not in galleries:
            galleries[protocol.gallery] = prepared.splits_under(protocol.gallery).reported
        parts = galleries[protocol.gallery]
        if protocol.captions not in texts:
            texts[protocol.captions] = {c: embed_texts(towers, part, protocol.captions) for c, part in parts.items()}
        embedded = {c: place(store, part, texts[protocol.captions][c]) for c, part in parts.items()}
        summary = summarise(score_composer("sum", lambda i, t: weighted_sum(i, t, weight), embedded, evaluation), (10,))
        mean = summary[summary["category"] == "mean"].iloc[0]
        sizes = " / ".join(f"{size:,}" for size in summary.loc[summary["category"] != "mean", "gallery"])
        rows.append({"protocol": name, "used_by": protocol.used_by, "rule": mean["protocol"], "galleries": sizes,
                     **mean[["value", "ci_low", "ci_high", "queries", "gallery", "chance"]]})  # fmt: skip
    return pd.DataFrame(rows)
