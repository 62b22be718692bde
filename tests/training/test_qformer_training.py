"""The Q-Former's trainings: what a batch holds, which negatives are mined, and what is trained from what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, Blip2QFormerConfig

from cirlib.models.devices import best_device
from cirlib.models.mini import minilm_folder
from cirlib.models.preparation import Prepared
from cirlib.models.qformer import QFormerComposer, QFormerSettings, load_weights
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer, qformer_settings
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import Data, Evaluation, Models, QFormer, Study
from cirlib.training import qformer_training
from cirlib.training.loop import History
from cirlib.training.qformer_training import (
    TripletBatch,
    TripletSampler,
    benchmark_queries,
    finetune,
    pretrain,
    require_negatives,
    save_all,
    score_all,
    score_qformer,
    train_qformer,
    triplet_loss,
)

CHANNELS = 6
QUERIES = {"hat": 7, "shoe": 5}
IMAGES = [f"{category}-{i}" for category in QUERIES for i in range(9)]
NOISE = torch.Generator().manual_seed(0)
FEATURES = torch.randn(len(IMAGES), 4, CHANNELS, generator=NOISE)
STORED = FEATURES.half().float()


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a training."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small need no more, and where tests run side by side threads mostly wait for each other."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="module")
def start():
    """A Q-Former of two narrow layers; random weights large enough to tell pictures and words apart."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    config = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        encoder_hidden_size=CHANNELS,
        cross_attention_frequency=1,
        use_qformer_text_input=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    composer = QFormerComposer(config, 3, 8, tokenizer, QFormerSettings())
    generator = torch.Generator().manual_seed(1)
    for name, parameter in composer.named_parameters():
        if name != "log_temperature" and not name.lower().endswith("layernorm.weight"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return composer.to(best_device()).eval()


@pytest.fixture
def composer(start) -> QFormerComposer:
    return deepcopy(start)


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "store", IMAGES, FEATURES)


@pytest.fixture
def parts(make_chains):
    return make_chains(QUERIES, (3, 8, 0, 7, 1, 5, 2, 6, 4), lambda name, i: (f"is {name} {i}", f"has {i} dots."))


def study_of(seed: int = 0, **qformer) -> Study:
    block = {"batch_size": 4, "epochs": 3, "pretraining_epochs": 3, "lr": 3e-3, "pretraining_lr": 3e-3, **qformer}
    data = Data(root=Path("nowhere"))
    return Study(name="t", seed=seed, data=data, models=Models(precision="fp32"), qformer=QFormer(**block))


def sampler_of(store, parts, seed: int = 0, **qformer) -> TripletSampler:
    return TripletSampler(store, parts, study_of(**qformer).qformer, seed)


def query_of(batch: TripletBatch, row: int) -> tuple[str, str]:
    return IMAGES[batch.references[row]], IMAGES[batch.targets[row]]


def texts_of(batches: list[TripletBatch]) -> dict[tuple[str, str], str]:
    """(reference, target) → the text drawn for it."""
    return {query_of(batch, row): text for batch in batches for row, text in enumerate(batch.texts)}


def told(history: History) -> list[dict]:
    return [{k: v for k, v in record.items() if not k.endswith("/s")} for record in history.records]


ALL = {(f"{c}-{i}", f"{c}-{i + 1}") for c, queries in QUERIES.items() for i in range(queries)}

# ------------------------------------------------------------------ batches


def test_an_epoch_has_every_triplet_once_with_its_own_images_and_words(store, parts):
    sampler = sampler_of(store, parts)
    batches = sampler.batches(1)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sampler.steps == 3
    texts = texts_of(batches)
    assert texts.keys() == ALL
    for (reference, _), text in texts.items():
        category, i = reference.split("-")
        one, two = f"is {category} {i}", f"has {i} dots"
        # both captions in either order, or one of them
        assert text in {f"I{one[1:]} and {two}", f"H{two[1:]} and {one}", f"I{one[1:]}", f"H{two[1:]}"}


def test_a_triplet_left_alone_sits_the_epoch_out(store, parts):
    sampler = sampler_of(store, parts, batch_size=11)
    assert [len(batch) for batch in sampler.batches(1)] == [11]
    assert sampler.steps == 1


def test_captions_are_drawn_anew_each_epoch_and_in_all_four_ways(store, parts):
    epochs = [texts_of(sampler_of(store, parts).batches(epoch)) for epoch in range(1, 13)]
    assert epochs[0] != epochs[1]
    for query in ALL:
        assert 2 <= len({texts[query] for texts in epochs}) <= 4
    ways = {(" and " in text, text[0]) for texts in epochs for text in texts.values()}
    assert ways == {(True, "I"), (True, "H"), (False, "I"), (False, "H")}


def test_an_epoch_depends_on_seed_and_epoch_alone(store, parts):
    sampler = sampler_of(store, parts)
    first, second = (texts_of(sampler.batches(epoch)) for epoch in (1, 2))
    assert list(texts_of(sampler_of(store, parts).batches(2)).items()) == list(second.items())
    assert list(texts_of(sampler.batches(1)).items()) == list(first.items())
    other = texts_of(sampler_of(store, parts, seed=1).batches(1))
    assert list(other) != list(first)
    assert other != first


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        ({"mine_from": 0, "mine_every": 1}, [1, 2, 3, 4, 5, 6]),
        ({"mine_from": 1, "mine_every": 2}, [None, 2, 2, 4, 4, 6]),
        ({"mine_from": 3, "mine_every": 9}, [None, None, None, 4, 4, 4]),
    ],
)
def test_negatives_are_mined_when_the_parameters_say(store, parts, rules, asked):
    sampler = sampler_of(store, parts, **rules)

    def mine(epoch: int) -> np.ndarray:
        seen.append(epoch)
        return np.full((len(ALL), 2), epoch)

    for epoch, expected in enumerate(asked, start=1):
        seen: list[int] = []
        batches = sampler.batches(epoch, mine=mine)
        assert seen == [expected] * (expected is not None)
        for batch in batches:
            assert batch.negatives.tolist() == [[expected] * 2 if expected else []] * len(batch)


def test_mined_negatives_stay_with_their_query(store, parts):
    sampler = sampler_of(store, parts, mine_from=0)
    order = {(t.reference, t.targets[0]): row for row, t in enumerate(sampler.triplets)}
    for batch in sampler.batches(1, mine=lambda _: np.arange(2 * len(ALL)).reshape(-1, 2)):
        for row, negatives in enumerate(batch.negatives.tolist()):
            at = order[query_of(batch, row)]
            assert negatives == [2 * at, 2 * at + 1]


def test_the_parameters_give_the_composers_form():
    params = QFormer(fusion="two_pass", target="mean", max_words=7)
    assert qformer_settings(params) == QFormerSettings("two_pass", "mean", 7)


# ------------------------------------------------------------------ embedding in order


def assert_rows_match(together: Tensor, alone: Tensor) -> None:
    """Each row is nearest to its own counterpart; bfloat16 leaves them not quite equal."""
    similar = together @ alone.T
    assert similar.argmax(1).tolist() == list(range(len(together)))
    torch.testing.assert_close(similar.diagonal(), torch.ones(len(together)), atol=0.02, rtol=0)


@pytest.mark.parametrize(("dtype", "coarse"), [(torch.float32, False), (torch.bfloat16, True)])
def test_embeddings_have_the_precision_that_was_asked_for(composer, store, dtype, coarse):
    composer.dtype = dtype
    found = embed_gallery(composer, store, np.arange(4))
    direct = composer.embed_targets(store.read(np.arange(4), composer.device)).detach()
    assert torch.equal(found, direct) != coarse
    torch.testing.assert_close(found, direct, atol=0.05, rtol=0)


@pytest.mark.parametrize("batch_size", [3, 256])
def test_queries_are_embedded_in_the_order_given(composer, store, batch_size):
    rows = np.array([4, 1, 16, 0, 9, 12, 7])
    texts = [f"is {'very ' * n}{word}" for n, word in zip([3, 0, 5, 1, 0, 2, 4], "abcdefg", strict=True)]
    together = embed_queries(composer, store, rows, texts, batch_size)
    with torch.inference_mode():
        alone = [
            composer.embed_queries(STORED[[row]].to(composer.device), [text])
            for row, text in zip(rows, texts, strict=True)
        ]
    assert together.dtype == torch.float32
    assert_rows_match(together, torch.cat(alone).cpu())


@pytest.mark.parametrize("batch_size", [2, 256])
@pytest.mark.parametrize(("target", "shape"), [("max", (5, 3, 8)), ("mean", (5, 8))])
def test_the_gallery_is_embedded_in_the_order_given(composer, store, batch_size, target, shape):
    composer.settings = QFormerSettings(target=target)
    rows = np.array([4, 1, 16, 0, 9])
    together = embed_gallery(composer, store, rows, batch_size)
    with torch.inference_mode():
        expected = composer.embed_targets(STORED[rows].to(composer.device)).cpu()
    assert together.shape == expected.shape == shape
    assert_rows_match(together.flatten(1) / math.sqrt(shape[1] if target == "max" else 1), _unit(expected.flatten(1)))


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def test_a_query_of_several_texts_is_their_average(composer, store, parts):
    got = benchmark_queries(composer, store, parts["hat"], Evaluation(captions="both_orders"))
    orders = [
        [f"is hat {i} and has {i} dots" for i in range(7)],
        [f"has {i} dots and is hat {i}" for i in range(7)],
    ]
    with torch.inference_mode():
        images = STORED[:7].to(composer.device)  # hat-0 … hat-6
        one, two = (composer.embed_queries(images, texts).cpu() for texts in orders)
    assert (one - two).norm(dim=-1).min() > 0.05
    assert_rows_match(got, _unit(one + two))


def test_scores_are_the_ranks_of_each_category(composer, store, parts):
    rules = Evaluation(reference="kept")
    scored = score_qformer(composer, store, parts, rules, "mine")
    assert [(one.method, one.category) for one in scored] == [("mine", "hat"), ("mine", "shoe")]
    for one, part in zip(scored, parts.values(), strict=True):
        queries = benchmark_queries(composer, store, part, rules)
        gallery = embed_gallery(composer, store, store.rows(part.gallery))
        scores = torch.stack([torch.stack([(g @ q).max() for g in gallery]) for q in queries])  # the best token
        for row, triplet in enumerate(part.triplets):
            wanted = scores[row, part.gallery.index(triplet.targets[0])]
            assert one.ranks.above[row] == (scores[row] > wanted + 1e-6).sum()
            assert one.top[row][0] == part.gallery[scores[row].argmax()]


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("target", ["max", "mean"])
@pytest.mark.parametrize("mined", [0, 2])
def test_the_loss_is_cross_entropy_over_the_batch_and_the_mined(composer, store, target, mined):
    composer.settings = QFormerSettings(target=target)
    rng = np.random.default_rng(0)
    batch = TripletBatch(
        np.array([0, 5, 9]), np.array([1, 2, 3]), ["red", "long", "with dots"], rng.integers(18, size=(3, mined))
    )
    with torch.inference_mode():
        queries = composer.embed_queries(STORED[batch.references].to(composer.device), batch.texts).cpu()
        images = composer.embed_targets(STORED.to(composer.device)).cpu().reshape(len(IMAGES), -1, 8)
        loss = triplet_loss(composer, store, batch)
    losses = []
    for i, query in enumerate(queries):
        candidates = [*batch.targets.tolist(), *batch.negatives[i].tolist()]
        logits = [max(float(query @ token) for token in images[row]) / 0.07 for row in candidates]
        losses.append(math.log(sum(math.exp(x - logits[i]) for x in logits)))
    assert loss.item() == pytest.approx(sum(losses) / 3, rel=1e-4)


# ------------------------------------------------------------------ mined negatives


def tune(composer, store, parts, folder: Path, mining: bool = True, seed: int = 0, fork=None, **qformer) -> History:
    torch.manual_seed(seed)
    rules = {"mine_from": 0, "hard_negatives": 2, **qformer}
    study = study_of(seed, **rules)
    return finetune(composer, store, parts, parts, study, folder, run="tuned", hard_negatives=mining, fork=fork)


def mined(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.load(file) for file in sorted(folder.glob("negatives-*.npy"))}


def check_negatives(negatives: np.ndarray, parts: dict) -> None:
    triplets = [triplet for part in parts.values() for triplet in part.triplets]
    for triplet, rows in zip(triplets, negatives, strict=True):
        ids = {IMAGES[row] for row in rows}
        assert ids <= set(parts[triplet.category].gallery)
        assert not ids & {triplet.reference, *triplet.targets}


def test_mined_negatives_are_images_of_the_category_but_neither_target_nor_reference(composer, store, parts, tmp_path):
    tune(composer, store, parts, tmp_path / "run")
    files = mined(tmp_path / "run")
    assert list(files) == ["negatives-1.npy", "negatives-2.npy", "negatives-3.npy"]
    for negatives in files.values():
        assert negatives.shape == (12, 2)
        check_negatives(negatives, parts)
        assert all(len(set(row)) == 2 for row in negatives.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_where_too_few_are_left_others_are_drawn_that_are_neither_target_nor_reference(
    composer, store, make_benchmark, tmp_path, seed
):
    gallery = [f"hat-{i}" for i in range(5)]  # three to choose from for four
    parts = {"hat": make_benchmark([(f"hat-{i}", f"hat-{(i + 1) % 5}", f"is {i}") for i in range(5)], gallery)}
    tune(composer, store, parts, tmp_path / "run", seed=seed, hard_negatives=4, epochs=1)
    negatives = mined(tmp_path / "run")["negatives-1.npy"]
    assert negatives.shape == (5, 4)
    check_negatives(negatives, parts)


@pytest.mark.parametrize("skipped", [0, 2])
def test_the_places_of_the_ranking_that_the_parameters_name_are_mined(composer, start, store, parts, tmp_path, skipped):
    rules = {"range_min": skipped, "range_max": skipped + 2}
    tune(composer, store, parts, tmp_path / "run", epochs=1, **rules)
    negatives = iter(mined(tmp_path / "run")["negatives-1.npy"].tolist())
    for part in parts.values():
        rows = store.rows(part.gallery)
        texts = [" and ".join(triplet.captions) for triplet in part.triplets]
        queries = embed_queries(start, store, store.rows([t.reference for t in part.triplets]), texts)
        images = _unit(embed_gallery(start, store, rows).mean(1))
        for triplet, query in zip(part.triplets, queries, strict=True):
            ranking = [part.gallery[i] for i in (images @ query).argsort(descending=True)]
            others = [image for image in ranking if image not in (triplet.reference, *triplet.targets)]
            assert {IMAGES[row] for row in next(negatives)} == set(others[skipped : skipped + 2])


def test_without_hard_negatives_none_are_mined(composer, store, parts, tmp_path):
    history = tune(composer, store, parts, tmp_path / "run", mining=False)
    assert mined(tmp_path / "run") == {}
    assert [record["epoch"] for record in history.records] == [1, 2, 3]


@pytest.mark.parametrize("stop", [1, 2, 4, 6, 9])  # of nine batches
@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_run_called_again_trains_on_the_same_negatives(
    start, store, parts, tmp_path, monkeypatch, stop, every
):
    whole = deepcopy(start)
    expected = tune(whole, store, parts, tmp_path / "whole", mine_every=every)
    left = iter(range(stop))

    def dying_loss(*arguments) -> Tensor:
        if next(left) == stop - 1:
            raise Killed
        return triplet_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(qformer_training, "triplet_loss", dying_loss)
        with pytest.raises(Killed):
            tune(deepcopy(start), store, parts, tmp_path / "cut", mine_every=every)
    again = deepcopy(start)
    history = tune(again, store, parts, tmp_path / "cut", mine_every=every)
    assert told(history) == told(expected)
    files, wanted = mined(tmp_path / "cut"), mined(tmp_path / "whole")
    assert list(files) == [f"negatives-{epoch}.npy" for epoch in (range(1, 4) if every == 1 else (1, 3))]
    for name, negatives in wanted.items():
        np.testing.assert_array_equal(files[name], negatives)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_between_two_minings_the_negatives_stay_those_of_the_first(composer, start, store, parts, tmp_path):
    tune(deepcopy(start), store, parts, tmp_path / "one", epochs=1, lr=0.05)
    tune(composer, store, parts, tmp_path / "three", mine_every=3, lr=0.05)
    first = mined(tmp_path / "one")["negatives-1.npy"]
    files = mined(tmp_path / "three")
    assert list(files) == ["negatives-1.npy"]
    np.testing.assert_array_equal(files["negatives-1.npy"], first)
    tune(deepcopy(start), store, parts, tmp_path / "each", lr=0.05)
    assert (mined(tmp_path / "each")["negatives-3.npy"] != first).any()  # the weights have moved on


def test_a_run_with_mined_negatives_may_share_the_epochs_before_the_first_mining(start, store, parts, tmp_path):
    alone, plain, branch = (deepcopy(start) for _ in range(3))
    expected = tune(alone, store, parts, tmp_path / "alone", mine_from=2)
    without = tune(plain, store, parts, tmp_path / "plain", mining=False, mine_from=2)
    history = tune(branch, store, parts, tmp_path / "branch", mine_from=2, fork=tmp_path / "plain")
    assert told(history) == told(expected)
    assert told(history)[:2] == told(without)[:2]
    assert told(history)[2] != told(without)[2]
    files, wanted = mined(tmp_path / "branch"), mined(tmp_path / "alone")
    assert list(files) == list(wanted) == ["negatives-3.npy"]
    np.testing.assert_array_equal(files["negatives-3.npy"], wanted["negatives-3.npy"])
    for name, tensor in alone.state_dict().items():
        assert torch.equal(branch.state_dict()[name], tensor), name


def test_negatives_of_another_run_are_not_used(composer, start, store, parts, tmp_path):
    tune(composer, store, parts, tmp_path / "run", epochs=1)
    np.save(tmp_path / "run" / "negatives-1.npy", np.zeros((12, 2), np.int64))
    tune(deepcopy(start), store, parts, tmp_path / "run", epochs=1, lr=1e-3)
    check_negatives(mined(tmp_path / "run")["negatives-1.npy"], parts)


# ------------------------------------------------------------------ trainings


def test_finetuning_learns_and_keeps_the_best_dev_epoch(composer, store, parts, tmp_path):
    history = tune(composer, store, parts, tmp_path / "run", mining=False, epochs=8)
    losses = [record["loss"] for record in history.records]
    assert losses[-1] < 0.8 * losses[0]
    best = load_file(tmp_path / "run" / "best.safetensors")
    for name, tensor in composer.state_dict().items():
        assert torch.equal(tensor.cpu(), best[name]), name
    scored = score_qformer(composer, store, parts, study_of().evaluation, "x")
    recall = np.mean([one.recall(10).mean() for one in scored])
    assert history.best("dev/recall@10")["dev/recall@10"] == pytest.approx(recall)


@pytest.mark.parametrize("change", ["triplets", "store", "rules"])
def test_a_finetuning_on_something_else_is_not_gone_on_with(
    composer, start, store, parts, tmp_path, make_store, make_benchmark, change, capsys
):
    tune(composer, store, parts, tmp_path / "run", epochs=1)
    capsys.readouterr()
    rules = {"range_max": 40} if change == "rules" else {}
    if change == "triplets":
        queries = [(t.reference, t.targets[0], "is new") for t in parts["hat"].triplets]
        parts = {**parts, "hat": make_benchmark(queries, parts["hat"].gallery)}
    if change == "store":
        store = make_store(tmp_path / "other", IMAGES, FEATURES, key="another tower")
    tune(deepcopy(start), store, parts, tmp_path / "run", epochs=1, **rules)
    assert "goes on" not in capsys.readouterr().out


def test_pretraining_brings_pictures_and_their_captions_together(composer, start, store, tmp_path):
    pairs = [{"image": image, "caption": f"picture of {i} and {image}"} for i, image in enumerate(IMAGES[:12])]

    def hits(model: QFormerComposer) -> int:
        """How many captions are nearest to their own picture."""
        with torch.inference_mode():
            texts = model.embed_texts([pair["caption"] for pair in pairs])
            images = model.embed_targets(STORED[:12].to(model.device))
        best = torch.einsum("bd,ntd->bnt", texts, images).amax(-1)
        return int((best.argmax(1).cpu() == torch.arange(12)).sum())

    study = study_of(batch_size=6, pretraining_epochs=40, pretraining_lr=3e-3)
    history = pretrain(composer, store, pairs, study, tmp_path / "run")
    assert history.run == "pretraining"
    assert [record["epoch"] for record in history.records] == list(range(1, 41))
    assert history.records[0].keys() == {"epoch", "loss", "pairs/s"}
    assert history.records[-1]["loss"] < 0.5 * history.records[0]["loss"]
    assert hits(composer) >= 6 > 3 >= hits(start)


def test_pretraining_on_other_pairs_starts_over(composer, start, store, tmp_path, capsys):
    pairs = [{"image": image, "caption": f"number {i}"} for i, image in enumerate(IMAGES[:4])]
    study = study_of(pretraining_epochs=1)
    pretrain(composer, store, pairs, study, tmp_path / "run")
    pretrain(deepcopy(start), store, pairs, study, tmp_path / "run")
    assert "pretraining: goes on after epoch 1" in capsys.readouterr().out
    pretrain(deepcopy(start), store, [{**pairs[0], "caption": "another"}, *pairs[1:]], study, tmp_path / "run")
    assert "goes on" not in capsys.readouterr().out


# ------------------------------------------------------------------ the whole stage


@pytest.fixture
def prepared(custom_stage, tiny_blip2, make_store) -> Callable[..., Prepared]:
    """The small study on a tiny BLIP-2, its tokens random."""

    def prepare(**qformer) -> Prepared:
        block = {
            "pretraining_epochs": 1, "epochs": 1, "batch_size": 4, "mine_from": 0, "lr": 1e-3, **qformer,
        }  # fmt: skip
        stage = custom_stage("qformer", models={"fusion": str(tiny_blip2), "precision": "fp32"}, qformer=block)
        ids = [f"{c}-{s}-{i}" for c in ("hat", "shoe") for s, size in (("train", 9), ("val", 6)) for i in range(size)]
        ids += [f"pair-{i}" for i in range(6)]
        make_store(stage.data / "tokens", ids, torch.randn(len(ids), 5, 24, generator=torch.Generator().manual_seed(2)))
        return Prepared(stage)

    return prepare


def test_both_finetunings_start_from_the_pretrained_and_every_epoch_has_a_row(prepared, tmp_path):
    ready = prepared()
    composers, table = train_qformer(ready)
    assert list(composers) == ["qformer", "qformer_hard_negatives"]
    assert table["run"].tolist() == ["pretraining", "qformer", "qformer_hard_negatives"]
    assert table["epoch"].tolist() == [1, 1, 1]
    one, two = (composer.state_dict() for composer in composers.values())
    assert any(not torch.equal(one[name], two[name]) for name in one)
    assert not any(composer.training for composer in composers.values())
    scored = score_all(composers, ready)
    assert [(s.method, s.category) for s in scored] == [(m, c) for m in composers for c in ("hat", "shoe")]
    save_all(composers, tmp_path / "saved")
    for method, state in zip(composers, (one, two), strict=True):
        loaded = new_composer(ready)
        load_weights(loaded, tmp_path / "saved" / method)
        for name, tensor in state.items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    ready.stage.finish()
    assert not ready.stage.unfinished.exists()


def test_the_epochs_before_the_first_mining_are_run_once_and_told_for_both(prepared, capsys):
    ready = prepared(epochs=2, mine_from=1)
    composers, table = train_qformer(ready)
    assert table["run"].tolist() == ["pretraining"] + ["qformer"] * 2 + ["qformer_hard_negatives"] * 2
    assert table["epoch"].tolist() == [1, 1, 2, 1, 2]
    loss = table["loss"].tolist()
    assert loss[1] == loss[3]
    assert loss[2] != loss[4]
    assert "qformer_hard_negatives: goes on after epoch 1" in capsys.readouterr().out
    assert list(mined(ready.stage.unfinished / "qformer_hard_negatives")) == ["negatives-2.npy"]
    assert mined(ready.stage.unfinished / "qformer") == {}
    assert not any(composer.training for composer in composers.values())


def test_a_finished_stage_called_again_trains_nothing(prepared, capsys):
    composers, table = train_qformer(prepared())
    capsys.readouterr()
    again, same_table = train_qformer(prepared())
    assert same_table.equals(table)
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["goes on after epoch 1"] * 3
    for method, composer in composers.items():
        for name, tensor in composer.state_dict().items():
            assert torch.equal(again[method].state_dict()[name], tensor), (method, name)


def test_with_no_epochs_the_composers_are_those_given_and_ready_to_score(prepared):
    ready = prepared(pretraining_epochs=0, epochs=0)
    composers, table = train_qformer(ready)
    assert len(table) == 0
    start = new_composer(ready).state_dict()
    for composer in composers.values():
        assert not composer.training
        for name, tensor in composer.state_dict().items():
            assert torch.equal(tensor, start[name]), name


def test_without_a_train_split_the_composer_is_scored_as_it_is_given(prepared):
    ready = prepared()
    for file in (ready.stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    composers, table = train_qformer(ready)
    assert list(composers) == ["qformer"]
    assert table.columns.tolist() == ["run", "epoch", "loss", "dev/recall@10"]
    assert len(table) == 0
    assert not composers["qformer"].training
    for name, tensor in new_composer(ready).state_dict().items():
        assert torch.equal(composers["qformer"].state_dict()[name], tensor), name
    assert len(score_all(composers, ready)) == 2


def test_training_starts_at_the_temperature_that_the_parameters_give(prepared):
    assert new_composer(prepared()).temperature.item() == pytest.approx(0.07)
    assert new_composer(prepared(temperature=0.2)).temperature.item() == pytest.approx(0.2)


def test_a_checkpoint_keeps_the_temperature_it_learned(prepared, tmp_path):
    ready = prepared(temperature=0.2)
    learned = new_composer(ready)
    learned.log_temperature.data.fill_(math.log(0.11))
    save_all({"learned": learned}, tmp_path)
    models = ready.stage.study.models.model_copy(update={"fusion_checkpoint": Path("learned")})
    study = ready.stage.study.model_copy(update={"models": models})
    object.__setattr__(ready.stage, "study", study)
    assert new_composer(ready).temperature.item() == pytest.approx(0.11)


def test_hard_negatives_that_the_images_cannot_give_are_refused_before_training(parts):
    params = study_of(hard_negatives=5, range_min=3, range_max=50).qformer
    with pytest.raises(ParameterError, match=r"3 \+ 5, at most 7 is allowed: so many images has hat"):
        require_negatives(parts, params)
    require_negatives(parts, study_of(hard_negatives=4, range_min=3, range_max=50).qformer)
