"""Queries as pictures: what was asked and found, what one method finds and another misses, where tokens look."""

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cirlib import figures
from cirlib.analysis.failures.query_table import K, select_method
from cirlib.benchmarks import join_captions
from cirlib.figures import Picture
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import trained_composer
from cirlib.retrieval.similarity import own_similarity
from cirlib.study.method_registry import QFORMER, ZERO_SHOT


def fixed_queries(queries: pd.DataFrame, best: Mapping[str, str]) -> pd.DataFrame:
    """What the best Q-Former has among its first ten and the best zero-shot method has not, the furthest moved first.

    ``best``: family → its best method. The column ``before`` is the zero-shot rank. No rows where a family lacks.

    >>> queries = pd.DataFrame({"method": ["sum", "sum", "qformer", "qformer"], "rank": [41, 1, 3, 1]})
    >>> fixed_queries(queries, {"zero-shot": "sum", "Q-Former": "qformer"})[["rank", "before"]].values
    array([[ 3, 41]])
    """
    if not {ZERO_SHOT, QFORMER} <= set(best):
        return queries.head(0).assign(before=0)
    before, after = (select_method(queries, best[family]) for family in (ZERO_SHOT, QFORMER))
    after = after.assign(before=before["rank"].to_numpy())
    fixed = after[(after["rank"] <= K) & (after["before"] > K)]
    return fixed.loc[(fixed["before"] - fixed["rank"]).sort_values(ascending=False, kind="stable").index]


def retrieval_grid(queries: pd.DataFrame, title: str) -> Figure:
    """Reference, edit, the best five and where the target came, a row a query; a note where there are no queries.

    A target among the best is framed in green.

    >>> figure = retrieval_grid(pd.DataFrame(), "The worst")
    """
    if queries.empty:
        return figures.note(f"{title}: no query.")
    rows, titles = [], []
    for row in queries.itertuples():
        path = row.benchmark.path
        found = [Picture(path(image), str(i), framed=image in row.targets) for i, image in enumerate(row.top, start=1)]
        target = Picture(path(row.targets[0]), "target", caption=f"target: rank {row.rank:,}")
        rows.append([Picture(path(row.reference), "reference"), _edit_text(row.captions), *found, None, target])
        titles.append(row.category + (f": rank {row.before:,} before" if "before" in queries else ""))
    return figures.picture_grid(rows, title, titles)


def attention_grid(queries: pd.DataFrame, best: Mapping[str, str], prepared: Prepared, count: int) -> Figure:
    """Where the best Q-Former's tokens look: in queries that it fixed, and in its worst misses.

    The brighter a place, the more attention it gets; each map is scaled to its own maximum.

    >>> figure = attention_grid(pd.DataFrame(), {"zero-shot": "sum"}, prepared, 6)  # a note
    """
    if QFORMER not in best:
        return figures.note("The study has no Q-Former.")
    fixed = fixed_queries(queries, best).head(-(-count // 2))
    shown = pd.concat([fixed, select_method(queries, best[QFORMER]).nlargest(count // 2, "rank")])
    composer = trained_composer(prepared, best[QFORMER])
    rows, titles = _attention_rows(shown, composer, prepared)
    return figures.picture_grid(rows, "Where the query tokens look", titles)


def _attention_rows(
    queries: pd.DataFrame, composer: QFormerComposer, prepared: Prepared
) -> tuple[list[list], list[str]]:
    """Over the reference all tokens and the one furthest from their mean, over the target all and the one that scores.

    No token of the target scores where the target is one vector. Of several texts of a query the first is shown.
    """
    store, style = prepared.tokens, prepared.stage.study.evaluation.captions
    texts = [join_captions(captions, style)[0] for captions in queries["captions"]]
    references, targets = (
        store.read(store.rows(list(images)), composer.device)
        for images in (queries["reference"], queries["targets"].str[0])
    )
    on_reference, on_target = composer.attention_maps(references, texts).cpu(), composer.attention_maps(targets).cpu()
    scoring = _scoring_tokens(composer, references, texts, targets)
    rows, titles = [], []
    for number, row in enumerate(queries.itertuples()):
        before, after = on_reference[number], on_target[number]  # (Q, S, S)
        reference, target = row.benchmark.path(row.reference), row.benchmark.path(row.targets[0])
        cells = [Picture(reference, "reference"), _edit_text(row.captions)]
        cells.append(Picture(reference, "all tokens", heat=before.mean(0).numpy()))
        outlier = (before - before.mean(0)).abs().sum((1, 2)).argmax()  # by total variation
        cells.append(Picture(reference, "outlier token", heat=before[outlier].numpy()))
        cells += [None, Picture(target, "target"), Picture(target, "all tokens", heat=after.mean(0).numpy())]
        if scoring is not None:
            cells.append(Picture(target, "scoring token", heat=after[scoring[number]].numpy()))
        rows.append(cells)
        titles.append(f"{row.category}: {'found' if row.rank <= K else 'missed'}, rank {row.rank:,}")
    return rows, titles


@torch.inference_mode()
def _scoring_tokens(composer: QFormerComposer, references: Tensor, texts: list[str], targets: Tensor) -> Tensor | None:
    """The target token that each query scores by, (B,); None where a target is one vector."""
    embedded = composer.embed_targets(targets)  # (B, D) or (B, Q, D)
    return None if embedded.ndim == 2 else own_similarity(composer.embed_queries(references, texts), embedded).argmax(1)


def _edit_text(captions: tuple[str, ...]) -> str:
    """All captions in one line, the same words once."""
    return " and ".join(dict.fromkeys(captions))
