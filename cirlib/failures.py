"""Where the best method fails: misses by the kind of edit, and the rows to show as pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cirlib.benchmarks import Triplet
from cirlib.evaluation import Scored
from cirlib.figures import RetrievalRow, note, retrieval_rows
from cirlib.metrics import bootstrap_ci
from cirlib.params import ParameterError

# Words that give an edit's kind away; an edit can be of several kinds.
KINDS = {
    "colour": "colou?r(s|ed|ful)? red blue green yellow black white pink purple orange brown grey gray navy teal beige "
    "tan gold(en)? silver "
    "cream maroon burgundy turquoise olive coral lavender mint mustard khaki charcoal "
    "dark(er)? light(er)? bright(er)? pale(r)? ivory violet magenta cyan rust sky",
    "pattern": "pattern(ed)? stripe[sd]? striped plain solid dot(s|ted)? polka floral flower(s|ed|y)? "
    "check(s|ed|ered)? "
    "plaid print(ed|s)? zig-?zag chevron block animal leopard camouflage",
    "sleeves": r"sleeve[sd]? sleeveless strap(s|less|py)? arms? capped",
    "neckline": r"neck(line)? v-?neck(line)? collar(ed)? scoop boat halter hood(ed)? crew",
    "length": r"long(er)? short(er)? length knee maxi mini midi crop(ped)? tunic ankle floor hem",
    "fit": r"fit(s|ted)? loose(r)? "
    r"tight(er)? flar(ed|y|es)? a-line straight(er)? slim(mer)? flow(ing|y|ier)? baggy boxy",
    "graphic": r"graphic logo star heart text words? writing letter(s|ing)? circle "
    r"picture image slogan face design",
    "detail": r"belt(ed)? button(s|ed)? pocket(s)? ruffle(s|d)? "
    r"lace bow zip(per)? waistband trim sequin(s)? fringe tie[ds]?",
}
_PATTERNS = {kind: re.compile(rf"\b({'|'.join(words.split())})\b") for kind, words in KINDS.items()}


def best_method(summary: pd.DataFrame, metric: str = "recall@10") -> str:
    """The method with the highest mean ``metric``."""
    mean = summary[(summary["category"] == "mean") & (summary["metric"] == metric)]
    return str(mean.loc[mean["value"].idxmax(), "method"])


def of_method(scored: Sequence[Scored], method: str) -> list[Scored]:
    """The categories of one method.

    Raises:
        ParameterError: the study has no such method.
    """
    found = [one for one in scored if one.method == method]
    if not found:
        allowed = ", ".join(dict.fromkeys(one.method for one in scored))
        raise ParameterError(f"parameter 'method': no method {method!r} in this study, allowed: {allowed}")
    return found


def edit_kinds(captions: Sequence[str]) -> list[str]:
    """The kinds of edit that the words of ``captions`` speak of; ``["other"]`` where none is recognised."""
    text = "; ".join(captions).lower()
    # a sleeve's length is no length
    text = re.sub(r"\b(long|longer|short|shorter)(?=[ -](?!and )(\w+[ -])?sleeve[sd]?\b)", "", text)
    return [kind for kind, pattern in _PATTERNS.items() if pattern.search(text)] or ["other"]


def kind_table(scored: Sequence[Scored], k: int = 10) -> pd.DataFrame:
    """Recall@k by kind of edit with intervals: columns kind, queries, value, ci_low, ci_high; worst first."""
    values: dict[str, list[float]] = {}
    for one in scored:
        for triplet, recall in zip(one.benchmark.triplets, one.recall(k), strict=True):
            for kind in edit_kinds(triplet.captions):
                values.setdefault(kind, []).append(float(recall))
    rows = [
        {"kind": kind, "queries": len(v), "value": float(np.mean(v)), "ci_low": low, "ci_high": high}
        for kind, v in values.items()
        for low, high in [bootstrap_ci(v)]
    ]
    return pd.DataFrame(rows).sort_values("value", ignore_index=True)


def miss_table(scored: Sequence[Scored], k: int = 10) -> pd.DataFrame:
    """Every query whose target is not surely in the top k, worst first: category, query, kinds, rank, captions."""
    rows = [
        {
            "category": one.category,
            "query": triplet.id,
            "kinds": ", ".join(edit_kinds(triplet.captions)),
            "rank": place,
            "captions": " / ".join(triplet.captions),
            "reference": triplet.reference,
            "target": triplet.targets[0],
            "top": " ".join(top),
        }
        for one in scored
        for triplet, place, top, recall in zip(one.benchmark.triplets, one.places, one.top, one.recall(k), strict=True)
        if recall < 1
    ]
    columns = ["category", "query", "kinds", "rank", "captions", "reference", "target", "top"]
    return pd.DataFrame(rows, columns=columns).sort_values("rank", ascending=False, ignore_index=True)


def worst_misses(scored: Sequence[Scored], kind: str, count: int) -> list[RetrievalRow]:
    """The ``count`` worst-ranked queries whose edit speaks of ``kind``, as picture rows."""
    ranked = [
        (int(above), one, row)
        for one in scored
        for row, above in enumerate(one.ranks.above)
        if above >= 10 and kind in edit_kinds(one.benchmark.triplets[row].captions)
    ]
    ranked.sort(key=lambda item: -item[0])
    return [picture_row(one, row) for _, one, row in ranked[:count]]


def write_metrics(method: str, kinds: pd.DataFrame, misses: pd.DataFrame, folder: Path) -> None:
    """The recall of each kind of edit and the number of misses, to ``metrics.json``."""
    values = {row.kind: round(row.value, 6) for row in kinds.sort_values("kind").itertuples()}
    content = {"method": method, "misses": len(misses), "recall@10": values}
    (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")


def worst_figure(scored: Sequence[Scored], kinds: pd.DataFrame, per_kind: int) -> Figure:
    """The worst misses of each kind of edit as pictures, the kind with the lowest recall first."""
    rows: list[RetrievalRow] = []
    for kind in kinds["kind"]:
        shown = {(row.reference, row.text) for row in rows}  # a query of several kinds is shown once
        worst = worst_misses(scored, kind, per_kind + len(shown))
        rows += [replace(row, title=kind) for row in worst if (row.reference, row.text) not in shown][:per_kind]
    if not rows:
        return note("Every target is among the first ten.")
    return retrieval_rows(rows, title="The worst misses, by kind of edit")


def picture_row(one: Scored, row: int) -> RetrievalRow:
    """Reference, edit, the best five and where the target came, of one query."""
    benchmark, triplet = one.benchmark, one.benchmark.triplets[row]
    return RetrievalRow(
        reference=benchmark.path(triplet.reference),
        text=edit_text(triplet),
        results=[benchmark.path(image) for image in one.top[row]],
        correct=[image in triplet.targets for image in one.top[row]],
        target=benchmark.path(triplet.targets[0]),
        rank=one.places[row],
        title=one.category,
    )


def edit_text(triplet: Triplet) -> str:
    """Both captions in one line."""
    return " and ".join(dict.fromkeys(triplet.captions))


def example_rows(scored: Sequence[Scored], count: int, seed: int = 0) -> list[RetrievalRow]:
    """Queries drawn at random (not picked), spread over the categories, as picture rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        one = scored[index % len(scored)]
        rows.append(picture_row(one, int(rng.integers(len(one.benchmark.triplets)))))
    return rows
