"""The zero-shot baselines on a two-tower model: image only, text only, weighted sum, spherical interpolation.

The weights are chosen on dev; a table says what the protocol alone is worth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from cirlib.benchmarks import PROTOCOLS, Benchmark, query_texts
from cirlib.models.clip import TwoTowers, slerp, weighted_sum
from cirlib.models.image_encoding import LiveFeatures
from cirlib.models.prepared import Prepared
from cirlib.retrieval.scoring import Scored, average_texts, mean_recall, score, summarise
from cirlib.study.parameters import Evaluation

Composer = Callable[[Tensor, Tensor], Tensor]
MIXES = {"sum": weighted_sum, "slerp": slerp}
BASELINES = ("image_only", "text_only", *MIXES)


@dataclass(frozen=True)
class EmbeddedQueries:
    """A benchmark in a two-tower space: references and texts (N, D), gallery (M, D), all normalised."""

    benchmark: Benchmark
    references: Tensor
    texts: Tensor
    gallery: Tensor


def embed(
    prepared: Prepared, read: Callable[[list[str]], Tensor], parts: Mapping[str, Benchmark], style: str
) -> dict[str, EmbeddedQueries]:
    """Every category's queries and gallery in the two-tower space; captions joined as ``style`` says, several averaged.

    ``read``: the text tower's embeddings (N, D) of texts.

    >>> embed(prepared, prepared.towers().encode_texts, prepared.splits.reported, "and")["hat"].texts.shape
    torch.Size([3, 256])
    """
    store, embedded = prepared.clip, {}
    for category, part in parts.items():
        texts, rows = query_texts(part, style)
        edits = average_texts(read(texts), rows, len(part.triplets))
        references = store[[triplet.reference for triplet in part.triplets]]
        embedded[category] = EmbeddedQueries(part, references, edits, store[part.gallery])
    return embedded


def sweep(weights: Sequence[float], dev: Mapping[str, EmbeddedQueries], evaluation: Evaluation) -> pd.DataFrame:
    """Mean dev recall@10 of each mix at each weight of the text: columns method, weight, dev/recall@10.

    >>> dev = embed(prepared, prepared.towers().encode_texts, prepared.splits.dev, "and")
    >>> sweep([0.0, 0.5], dev, Evaluation()).shape
    (4, 3)
    """
    rows = [
        (method, weight, mean_recall(score_baselines({method: partial(mix, weight=weight)}, dev, evaluation), 10))
        for method, mix in (MIXES.items() if dev else ())
        for weight in weights
    ]
    return pd.DataFrame(rows, columns=["method", "weight", "dev/recall@10"])


def best_weights(table: pd.DataFrame) -> dict[str, float]:
    """The weight with the best dev recall@10 of each method; the smaller of equals, 0.5 where there is no dev part.

    >>> best_weights(pd.DataFrame({"method": ["sum", "sum"], "weight": [0.4, 0.2], "dev/recall@10": [0.3, 0.3]}))
    {'sum': 0.2}
    """
    if table.empty:
        return dict.fromkeys(MIXES, 0.5)
    table = table.sort_values("weight", kind="stable", ignore_index=True)
    best = table.loc[table.groupby("method", sort=False)["dev/recall@10"].idxmax()]
    return dict(zip(best["method"], best["weight"].tolist(), strict=True))


def baselines(weights: Mapping[str, float]) -> dict[str, Composer]:
    """The zero-shot methods by name, the mixes at their ``weights``: of image and text embeddings (N, D) each.

    >>> baselines({"sum": 0.5})["sum"](torch.eye(2)[:1], torch.eye(2)[1:])
    tensor([[0.7071, 0.7071]])
    """
    mixes = {method: partial(MIXES[method], weight=weight) for method, weight in weights.items()}
    return {"image_only": lambda image, _text: image, "text_only": lambda _image, text: text, **mixes}


def score_baselines(
    methods: Mapping[str, Composer], embedded: Mapping[str, EmbeddedQueries], evaluation: Evaluation
) -> list[Scored]:
    """Every method on every category.

    >>> reported = embed(prepared, prepared.towers().encode_texts, prepared.splits.reported, "and")
    >>> len(score_baselines(baselines({"sum": 0.5}), reported, Evaluation()))
    6
    """
    return [
        score(method, category, compose(e.references, e.texts), e.gallery, e.benchmark, evaluation)
        for method, compose in methods.items()
        for category, e in embedded.items()
    ]


def score_raw_sum(
    prepared: Prepared, towers: TwoTowers, parts: Mapping[str, Benchmark], evaluation: Evaluation
) -> list[Scored]:
    """CLIP4Cir's sum on every category, ``sum_raw``: both towers' features are added before they are normalised.

    Nothing is chosen. The references' pictures are read once more, for what the store has is normalised.

    >>> scored = score_raw_sum(prepared, prepared.towers(), prepared.splits.reported, Evaluation())
    >>> [one.category for one in scored]
    ['hat', 'shoe']
    """
    features = LiveFeatures(replace(towers, normalizes=False), prepared.images)
    scored = []
    for category, part in parts.items():
        texts, rows = query_texts(part, evaluation.captions)
        total = torch.zeros(len(part.triplets), *towers.shape)
        edits = total.index_add(0, torch.from_numpy(rows), towers.encode_texts(texts, normalize=False))
        edits /= torch.from_numpy(np.bincount(rows))[:, None]  # (N, D), mean of a query's texts
        names = [triplet.reference for triplet in part.triplets]
        references = torch.cat([features[names[i : i + 64]] for i in range(0, len(names), 64)])  # (N, D)
        queries = F.normalize(references + edits, dim=-1)
        scored.append(score("sum_raw", category, queries, prepared.clip[part.gallery], part, evaluation))
    return scored


def protocol_table(prepared: Prepared, read: Callable[[list[str]], Tensor], weight: float) -> pd.DataFrame:
    """The weighted sum under every protocol that public code uses: what the protocol alone is worth, a row each.

    ``read`` as in :func:`embed`; it is asked for the same texts several times.

    >>> protocol_table(prepared, prepared.towers().encode_texts, 0.5)["protocol"].tolist()[:2]
    ['clip4cir', 'searle']
    """
    rows = []
    small = prepared.stage.study.data.benchmark in ("cirr", "circo")  # which have one gallery only
    for name, protocol in PROTOCOLS.items():
        if name in ("cirr", "circo") or (small and protocol.gallery != "original"):
            continue
        evaluation = Evaluation(gallery=protocol.gallery, reference=protocol.reference, captions=protocol.captions)
        embedded = embed(prepared, read, prepared.splits_under(protocol.gallery).reported, protocol.captions)
        scored = score_baselines({"sum": partial(weighted_sum, weight=weight)}, embedded, evaluation)
        summary = summarise(scored, (10,))
        mean = summary[summary["category"] == "mean"].iloc[0]
        sizes = " / ".join(f"{size:,}" for size in summary.loc[summary["category"] != "mean", "gallery"])
        rows.append({"protocol": name, "used_by": protocol.used_by, "rule": mean["protocol"], "galleries": sizes,
                     **mean[["value", "ci_low", "ci_high", "queries", "gallery", "chance"]]})  # fmt: skip
    return pd.DataFrame(rows)
