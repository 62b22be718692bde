"""Queries as pictures: what was asked and found, what one method finds and another misses, where tokens look."""

from collections.abc import Mapping, Sequence

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
from cirlib.study.method_registry import QFORMER, ZERO_SHOT, method_label


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


def draw_queries(queries: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """So many queries at random, in turn from each category.

    >>> queries = pd.DataFrame({"category": ["hat", "hat", "hat", "sock"]})
    >>> sorted(draw_queries(queries, 2, 0)["category"])
    ['hat', 'sock']
    """
    mixed = queries.sample(frac=1, random_state=seed)
    turns = mixed.groupby("category").cumcount().sort_values(kind="stable")
    return mixed.loc[turns.index].head(count)


def fixed_grid(queries: pd.DataFrame, best: Mapping[str, str], count: int) -> Figure | str:
    """:func:`retrieval_grid` of the first so many :func:`fixed_queries`.

    >>> figure = fixed_grid(pd.DataFrame(columns=["method"]), {"zero-shot": "sum"}, 6)  # a note
    """
    fixed = fixed_queries(queries, best)
    before = method_label(best[ZERO_SHOT]) if ZERO_SHOT in best else "zero-shot"
    note = f"{min(count, len(fixed))} of {len(fixed):,} such queries, the furthest moved first"
    note += f"  ·  rank before: by {before}"
    return retrieval_grid(fixed.head(count), f"Found where {before} misses", note)


def retrieval_grid(queries: pd.DataFrame, title: str, note: str = "") -> Figure | str:
    """Reference, edit, the best five and where the target came, a row a query; a note where there are no queries.

    The queries are of one method, which stands in the title. A target among the best is framed in green.

    >>> figure = retrieval_grid(pd.DataFrame(), "The worst queries")
    """
    if queries.empty:
        return f"{title}: no query."
    rows, titles = [], []
    for row in queries.itertuples():
        path = row.benchmark.path
        found = [
            Picture(path(image), f"rank {i}", framed=image in row.targets) for i, image in enumerate(row.top, start=1)
        ]
        target = Picture(path(row.targets[0]), "target", caption=f"target: rank {row.rank:,}")
        rows.append([Picture(path(row.reference), "reference"), _edit_text(row.captions), *found, None, target])
        titles.append(row.category + (f": rank {row.before:,} before" if "before" in queries else ""))
    notes = [note] if note else []
    notes += [f"ranked among {round(K / queries['chance'].mean()):,} images", "green: the target, where it is shown"]
    title = f"{title}: {method_label(queries['method'].iloc[0])}"
    return figures.picture_grid(rows, title, titles, note="  ·  ".join(notes))


def attention_grid(queries: pd.DataFrame, best: Mapping[str, str], prepared: Prepared, count: int) -> Figure | str:
    """Where the best Q-Former's tokens look: in queries that it fixed, and in its worst misses.

    Maps are means of all query tokens. How alike the tokens are is measured on these queries and said under the title.

    >>> figure = attention_grid(pd.DataFrame(), {"zero-shot": "sum"}, prepared, 6)  # a note
    """
    if QFORMER not in best:
        return "The study has no Q-Former."
    fixed = fixed_queries(queries, best).head(-(-count // 2))
    shown = pd.concat([fixed, select_method(queries, best[QFORMER]).nlargest(count // 2, "rank")])
    composer = trained_composer(prepared, best[QFORMER])
    rows, titles, note = _attention_rows(shown, composer, prepared)
    return figures.picture_grid(rows, f"Where the query tokens look: {method_label(best[QFORMER])}", titles, note=note)


def _attention_rows(
    queries: pd.DataFrame, composer: QFormerComposer, prepared: Prepared
) -> tuple[list[list], list[str], str]:
    """Maps over the reference, with its edit and without words, and over the target; titles; what was measured.

    Of several texts of a query the first is shown.
    """
    store, style = prepared.tokens, prepared.stage.study.evaluation.captions
    texts = [join_captions(captions, style)[0] for captions in queries["captions"]]
    references, targets = (
        store.read(store.rows(list(images)), composer.device)
        for images in (queries["reference"], queries["targets"].str[0])
    )
    inputs = ((references, texts), (references, None), (targets, None))
    maps = [composer.attention_maps(images, words).cpu() for images, words in inputs]  # (B, Q, S, S) each
    edited, plain, found = (each.mean(1).numpy() for each in maps)  # (B, S, S)
    rows, titles = [], []
    for number, row in enumerate(queries.itertuples()):
        reference, target = row.benchmark.path(row.reference), row.benchmark.path(row.targets[0])
        cells = [Picture(reference, "reference"), _edit_text(row.captions)]
        cells.append(Picture(reference, "with the edit", heat=edited[number]))
        cells.append(Picture(reference, "without words", heat=plain[number]))
        cells += [None, Picture(target, "target"), Picture(target, "without words", heat=found[number])]
        rows.append(cells)
        titles.append(f"{row.category}: {'found' if row.rank <= K else 'missed'}, rank {row.rank:,}")
    with torch.inference_mode():
        embedded = composer.embed_targets(targets).cpu()  # (B, D), or a vector for each token (B, Q, D)
    return rows, titles, _measured(maps, embedded)


def _measured(maps: Sequence[Tensor], targets: Tensor) -> str:
    """How alike the query tokens are and what the edit changes, in words; ``maps`` and ``targets`` as they are read."""
    edited, plain, found = maps
    mean, (queries, tokens, side, _) = edited.mean(1), edited.shape
    parts = [
        f"{queries} queries, each map the mean of {tokens} query tokens over {side} × {side} places, yellow: most",
        f"any two tokens share {_shared(edited):.1%} of their attention ({_shared(found):.1%} on targets)",
        f"the edit moves {_moved(mean, plain.mean(1)):.1%} of a map, "
        f"making it even would move {_moved(mean, torch.ones_like(mean)):.1%}",
    ]
    if targets.ndim == 3 and tokens > 1:
        first, second = torch.triu_indices(tokens, tokens, 1)
        parts.append(f"cosine of two tokens of a target: {(targets[:, first] * targets[:, second]).sum(-1).mean():.2f}")
    return "  ·  ".join(parts).replace("%", " %")


def _moved(maps: Tensor, others: Tensor) -> float:
    """Total variation between maps (..., S, S), each brought to the sum of 1: a share, the mean of all pairs.

    >>> _moved(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    0.5
    """
    first, second = (each / each.sum((-2, -1), keepdim=True) for each in (maps, others))
    return float((first - second).abs().sum((-2, -1)).mean() / 2)


def _shared(maps: Tensor) -> float:
    """The share of attention that two different tokens of one image have in common, mean of all pairs.

    >>> _shared(torch.eye(2)[None, :, None])  # (B, Q, S, S): each token looks elsewhere
    0.0
    """
    first, second = torch.triu_indices(maps.shape[1], maps.shape[1], 1)
    return 1 - _moved(maps[:, first], maps[:, second])


def _edit_text(captions: tuple[str, ...]) -> str:
    """All captions in one line, the same words once."""
    return " and ".join(dict.fromkeys(captions))
