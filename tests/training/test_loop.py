"""The training loop: what an epoch optimises, what is kept, and that a stopped run ends like one never stopped."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cirlib.models.devices import best_device
from cirlib.study.files import replace_file
from cirlib.training import loop as training
from cirlib.training.loop import History, Recipe, as_table, shuffled_batches, train

ROWS = 12
INPUTS = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0)).to(best_device())
WANTED = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1)).to(best_device())
RECIPE = Recipe(epochs=4, lr=0.05, precision="fp32")
SCORES = (0.1, 0.3, 0.2, 0.25)


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a training."""


def network(dropout: float = 0.3) -> nn.Module:
    """The same start each time; dropout draws from torch's own generator."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 2)).to(best_device())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def told(history: History) -> list[dict]:
    """The records without how fast it went."""
    return [{k: v for k, v in record.items() if not k.endswith("/s")} for record in history.records]


class Job:
    """A small regression for `train`, which remembers what it was asked and can be killed in some epoch."""

    def __init__(self, folder: Path, *, recipe=RECIPE, scores=SCORES, stop=("", 0), model=None, size=4, **options):
        self.folder, self.recipe, self.scores, self.stop, self.size = folder, recipe, scores, stop, size
        self.model = network() if model is None else model
        self.options = {"run": "toy", "fingerprint": "data", "validate": self.validate, **options}
        self.epochs: list[int] = []  # asked for
        self.after: dict[int, dict[str, Tensor]] = {}  # the weights that each epoch's score is of
        self.modes: list[tuple[str, bool]] = []
        self.batch = 0

    def __call__(self) -> History:
        torch.manual_seed(3)  # as a stage does when it is opened
        steps = -(-ROWS // self.size)
        return train(self.model, self.batches, steps, self.loss_of, self.recipe, self.folder, **self.options)

    def batches(self, epoch: int) -> list[Tensor]:
        self.epochs.append(epoch)
        self.batch = 0
        self.die("batches")
        return shuffled_batches(ROWS, self.size, 7, epoch)

    def loss_of(self, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        self.batch += 1
        if self.batch == 2:
            self.die("loss")
        self.modes.append(("loss", self.model.training))
        loss = F.mse_loss(self.model(INPUTS[rows.to(INPUTS.device)]), WANTED[rows.to(INPUTS.device)])
        return loss, {"first": rows[0].item()}

    def validate(self) -> dict[str, float]:
        self.die("validate")
        self.modes.append(("validate", self.model.training))
        self.after[self.epochs[-1]] = weights(self.model)
        return {"dev/recall@10": self.scores[self.epochs[-1] - 1]}

    def die(self, place: str) -> None:
        if self.stop == (place, self.epochs[-1]):
            raise Killed

    def killed(self) -> Job:
        with pytest.raises(Killed):
            self()
        return self


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every optimiser step, as the steps are made."""
    noted: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        noted.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(note)
    yield noted
    handle.remove()


# ------------------------------------------------------------------ stopped and called again


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, accumulation=2), replace(RECIPE, schedule="cosine")])
@pytest.mark.parametrize(
    "stop",
    [("batches", 1), ("loss", 1), ("batches", 3), ("loss", 2), ("validate", 1), ("validate", 3), ("validate", 4)],
)
def test_a_killed_run_called_again_is_the_run_that_was_not_killed(tmp_path, stop, recipe):
    whole = Job(tmp_path / "whole", recipe=recipe)
    expected = whole()
    Job(tmp_path / "cut", recipe=recipe, stop=stop).killed()
    again = Job(tmp_path / "cut", recipe=recipe)
    history = again()
    assert again.epochs == list(range(stop[1], 5))
    assert told(history) == told(expected)
    assert history.steps == expected.steps
    assert same(weights(again.model), weights(whole.model))
    assert same(again.after[4], whole.after[4])


def test_a_run_killed_again_and_again_still_ends_the_same(tmp_path):
    whole = Job(tmp_path / "whole")
    expected = whole()
    for stop in [("loss", 1), ("validate", 2), ("loss", 2), ("batches", 3), ("validate", 4)]:
        Job(tmp_path / "cut", stop=stop).killed()
    again = Job(tmp_path / "cut")
    assert told(again()) == told(expected)
    assert same(weights(again.model), weights(whole.model))


def test_the_best_epoch_before_a_kill_is_still_the_one_that_is_kept(tmp_path):
    cut = Job(tmp_path, stop=("validate", 4), scores=(0.1, 0.9, 0.2, 0.3)).killed()
    again = Job(tmp_path, scores=(0.1, 0.9, 0.2, 0.3))
    again()
    assert same(weights(again.model), cut.after[2])
    assert not same(weights(again.model), again.after[4])


def test_a_finished_run_is_not_repeated(tmp_path, rates):
    first = Job(tmp_path)
    expected = first()
    rates.clear()
    again = Job(tmp_path)
    history = again()
    assert (again.epochs, again.modes, rates) == ([], [], [])
    assert history == expected
    assert same(weights(again.model), weights(first.model))
    assert not again.model.training


OTHER_START = network()
OTHER_START[0].bias.data.add_(1)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"fingerprint": "other data"}, id="fingerprint"),
        pytest.param({"run": "another"}, id="run"),
        pytest.param({"recipe": replace(RECIPE, lr=0.01)}, id="lr"),
        pytest.param({"recipe": replace(RECIPE, epochs=3)}, id="epochs"),
        pytest.param({"recipe": replace(RECIPE, schedule="cosine")}, id="schedule"),
        pytest.param({"model": "other start"}, id="start"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_the_state_of_another_run_is_not_gone_on_with(tmp_path, change, finished):
    def options() -> dict:
        other = network()
        other.load_state_dict(OTHER_START.state_dict())
        return {**change, "model": other} if "model" in change else change

    Job(tmp_path / "used")() if finished else Job(tmp_path / "used", stop=("batches", 3)).killed()
    (tmp_path / "used" / "left.npy").write_text("of the other run")
    fresh, again = Job(tmp_path / "fresh", **options()), Job(tmp_path / "used", **options())
    assert told(again()) == told(fresh())
    assert again.epochs == list(range(1, again.recipe.epochs + 1))
    assert same(weights(again.model), weights(fresh.model))
    assert not (tmp_path / "used" / "left.npy").exists()


def test_the_order_in_which_a_fingerprint_is_written_does_not_matter(tmp_path):
    Job(tmp_path, fingerprint={"a": 1, "b": [2, 3]})()
    again = Job(tmp_path, fingerprint={"b": [2, 3], "a": 1})
    again()
    assert again.epochs == []


def damage(file: Path, how: str) -> None:
    size = file.stat().st_size
    if how == "zeros":
        file.write_bytes(bytes(size))
    elif how == "text":
        file.write_text("no state at all")
    else:
        os.truncate(file, {"empty": 0, "3 bytes": 3, "half": size // 2, "last byte": size - 1}[how])


@pytest.mark.parametrize("how", ["empty", "3 bytes", "half", "last byte", "zeros", "text"])
def test_a_cut_off_or_overwritten_state_is_started_over(tmp_path, how):
    whole = Job(tmp_path / "whole")
    expected = whole()
    Job(tmp_path / "cut", stop=("batches", 4)).killed()
    damage(tmp_path / "cut" / "state.pt", how)
    again = Job(tmp_path / "cut")
    assert told(again()) == told(expected)
    assert again.epochs == [1, 2, 3, 4]
    assert same(weights(again.model), weights(whole.model))


def test_going_on_is_said(tmp_path, capsys):
    Job(tmp_path, stop=("batches", 3)).killed()
    capsys.readouterr()
    Job(tmp_path)()
    assert capsys.readouterr().out.splitlines()[0] == "toy: goes on after epoch 2"


# ------------------------------------------------------------------ runs that share their first epochs


def test_a_run_that_forks_goes_on_from_the_epoch_that_the_other_kept(tmp_path):
    scores = (0.1, 0.3, 0.2, 0.25)
    trunk = Job(tmp_path / "trunk", keep=2, scores=scores)
    expected = trunk()
    branch = Job(tmp_path / "branch", run="branch", fork=tmp_path / "trunk", scores=scores)
    history = branch()
    assert branch.epochs == [3, 4]
    assert history.run == "branch"
    assert told(history) == told(expected)
    assert history.steps == expected.steps
    assert same(branch.after[4], trunk.after[4])
    assert same(weights(branch.model), trunk.after[2])  # the best is one that it shares


@pytest.mark.parametrize("stop", [("loss", 3), ("validate", 4)])
def test_a_killed_branch_called_again_is_the_branch_that_was_not_killed(tmp_path, stop):
    scores = (0.1, 0.3, 0.2, 0.5)
    Job(tmp_path / "trunk", keep=2, scores=scores)()
    whole = Job(tmp_path / "whole", fork=tmp_path / "trunk", scores=scores)
    expected = whole()
    Job(tmp_path / "cut", fork=tmp_path / "trunk", scores=scores, stop=stop).killed()
    again = Job(tmp_path / "cut", fork=tmp_path / "trunk", scores=scores)
    assert told(again()) == told(expected)
    assert again.epochs == list(range(stop[1], 5))
    assert same(weights(again.model), weights(whole.model))


@pytest.mark.parametrize("written", [0, 1])
def test_a_trunk_killed_while_it_kept_its_epoch_keeps_it_when_called_again(tmp_path, monkeypatch, written):
    whole = Job(tmp_path / "whole", keep=2)
    whole()
    left = iter([False] * written + [True])

    def dying_copy(source: Path, target: Path) -> None:
        if next(left):
            raise Killed
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(training.shutil, "copy", dying_copy)
        Job(tmp_path / "cut", keep=2).killed()
    again = Job(tmp_path / "cut", keep=2)
    again()
    assert again.epochs == [3, 4]
    branches = [Job(tmp_path / f"{name} branch", fork=tmp_path / name) for name in ("whole", "cut")]
    one, two = (told(branch()) for branch in branches)
    assert one == two
    assert branches[1].epochs == [3, 4]
    assert same(weights(branches[0].model), weights(branches[1].model))


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    ("scores", "best"), [((0.1, 0.3, 0.2, 0.25), 2), ((0.4, 0.3, 0.4, 0.4), 1), ((0.1, 0.2, 0.3, 0.4), 4)]
)
def test_the_earliest_best_epoch_is_restored(tmp_path, scores, best):
    job = Job(tmp_path, scores=scores)
    history = job()
    assert history.best("dev/recall@10")["epoch"] == best
    assert [record["dev/recall@10"] for record in history.records] == list(scores)
    assert same(weights(job.model), job.after[best])
    assert not any(same(job.after[best], job.after[epoch]) for epoch in job.after if epoch != best)


def test_another_score_can_choose_the_epoch(tmp_path):
    job = Job(tmp_path, select="less")
    job.options["validate"] = lambda: {**job.validate(), "less": -job.epochs[-1]}
    job()
    assert same(weights(job.model), job.after[1])


def test_without_a_score_the_last_epoch_is_kept(tmp_path):
    scored, job = Job(tmp_path / "scored"), Job(tmp_path / "not", validate=None)
    scored()
    history = job()
    assert same(weights(job.model), scored.after[4])
    assert [set(record) for record in history.records] == [{"epoch", "loss", "triplets/s"}] * 4
    assert not job.model.training


def test_the_model_learns_in_train_mode_and_is_scored_and_left_in_eval_mode(tmp_path):
    job = Job(tmp_path)
    job()
    assert set(job.modes) == {("loss", True), ("validate", False)}
    assert not job.model.training


def test_with_no_epochs_nothing_happens_but_that_the_model_is_ready_to_score(tmp_path):
    job = Job(tmp_path / "run", recipe=replace(RECIPE, epochs=0))
    history = job()
    assert (history.run, history.records, history.steps) == ("toy", [], [])
    assert same(weights(job.model), weights(network()))
    assert not job.model.training
    assert not (tmp_path / "run").exists()


def test_the_loss_of_an_epoch_is_the_mean_over_rows_not_over_batches(tmp_path):
    history = Job(tmp_path, size=5)()  # batches of 5, 5 and 2
    assert [step["step"] for step in history.steps] == list(range(1, 13))
    for epoch, record in enumerate(history.records):
        losses = [step["loss"] for step in history.steps[3 * epoch : 3 * epoch + 3]]
        assert record["loss"] == pytest.approx((5 * losses[0] + 5 * losses[1] + 2 * losses[2]) / 12, rel=1e-6)


def test_what_the_loss_tells_beside_itself_is_kept_a_batch_at_a_time(tmp_path):
    history = Job(tmp_path)()
    expected = [rows[0].item() for epoch in range(1, 5) for rows in shuffled_batches(ROWS, 4, 7, epoch)]
    assert [step["first"] for step in history.steps] == expected


def test_where_the_loss_tells_nothing_no_steps_are_kept(tmp_path):
    job = Job(tmp_path)
    history = train(job.model, job.batches, 3, lambda rows: (job.loss_of(rows)[0], {}), RECIPE, tmp_path, run="toy")
    assert history.steps == []
    assert len(history.records) == 4


def test_the_table_has_a_row_an_epoch_of_every_run():
    first = History("pretraining", [{"epoch": 1, "loss": 2.0, "pairs/s": 5.0}])
    second = History("qformer", [{"epoch": e, "loss": 1.0, "dev/recall@10": 0.5} for e in (1, 2)])
    table = as_table(first, second)
    assert table["run"].tolist() == ["pretraining", "qformer", "qformer"]
    assert table["epoch"].tolist() == [1, 1, 2]
    assert table.columns[0] == "run"
    assert table["dev/recall@10"].isna().tolist() == [True, False, False]
    assert as_table().columns.tolist() == as_table(History("x")).columns.tolist()
    assert as_table().columns.tolist() == ["run", "epoch", "loss", "dev/recall@10"]


# ------------------------------------------------------------------ what is said


def test_each_epoch_has_a_line_with_loss_score_speed_and_time_left(tmp_path, capsys):
    history = Job(tmp_path, unit="pairs", recipe=replace(RECIPE, epochs=2))()
    _needs, first, last = capsys.readouterr().out.splitlines()
    for line, record, score in ((first, history.records[0], "10.0"), (last, history.records[1], "30.0")):
        assert line.startswith(f"toy {record['epoch']}/2  loss {record['loss']:.4f}  dev/recall@10 {score} %  ")
        assert f"  {record['pairs/s']:.0f} pairs/s" in line
        assert record["pairs/s"] > 0
    assert re.search(r" pairs/s  \d+ s left$", first)
    assert last.endswith(" pairs/s")


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    job = Job(tmp_path, names=lambda rows: [f"image-{row}" for row in rows.tolist()])
    next(job.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = weights(job.model)
    with pytest.raises(FloatingPointError) as caught:
        job()
    said = str(caught.value)
    assert said.startswith(
        "toy: a gradient at step 1 of epoch 1 is not finite: lower lr (now 0.05); no epoch was finished."
    )
    assert 1 <= said.count("image-") <= 8
    assert same(weights(job.model), before)


def test_each_batch_but_the_first_is_announced_one_step_ahead(tmp_path):
    seen: list[tuple[str, list[int]]] = []

    class Watched(Job):
        def loss_of(self, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
            seen.append(("used", rows.tolist()))
            return super().loss_of(rows)

    Watched(tmp_path, prefetch=lambda rows: seen.append(("expected", rows.tolist())))()
    epoch = [part.tolist() for part in shuffled_batches(ROWS, Job(tmp_path / "x").size, 7, 1)]
    first = seen[: 2 * len(epoch) - 1]
    wanted = [
        item
        for now, after in zip(epoch, [*epoch[1:], None], strict=True)
        for item in (("expected", after), ("used", now))
    ]
    assert first == [item for item in wanted if item[1] is not None]


def test_a_small_run_without_a_folder_prints_nothing_keeps_nothing_and_stays_at_its_last_epoch(tmp_path, capsys):
    kept, small = Job(tmp_path / "kept"), Job(tmp_path / "none")
    small.folder = None
    small.options.pop("validate", None)
    kept.options.pop("validate", None)
    assert [r["loss"] for r in small().records] == [r["loss"] for r in kept().records]
    assert same(weights(small.model), weights(kept.model)) and not small.model.training
    capsys.readouterr()
    again = Job(tmp_path / "none")
    again.folder = None
    again.options.pop("validate", None)
    again()
    assert capsys.readouterr() == ("", "") and not (tmp_path / "none").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_one_sentence(tmp_path, value):
    class Diverging(Job):
        def loss_of(self, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
            loss, rest = super().loss_of(rows)
            return loss * (value if self.epochs[-1] == 2 and self.batch == 1 else 1), rest

    job = Diverging(tmp_path)
    with pytest.raises(FloatingPointError) as caught:
        job()
    said = f"toy: the loss at step 1 of epoch 2 is {value}: lower lr (now 0.05); the state after epoch 1 is kept."
    assert str(caught.value).startswith(f"{said} The batch: tensor([")
    assert list(job.after) == [1]  # what diverged is not scored
    again = Job(tmp_path)
    again()
    assert again.epochs == [2, 3, 4]  # nor kept


# ------------------------------------------------------------------ how it optimises


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_gradients_are_those_of_one_big_batch(tmp_path, parts, rates):
    big = Job(tmp_path / "big", size=ROWS, model=network(dropout=0))
    big()
    assert len(rates) == 4
    recipe = replace(RECIPE, accumulation=parts)
    small = Job(tmp_path / "small", size=ROWS // parts, model=network(dropout=0), recipe=recipe)
    small()
    assert len(rates) == 8
    assert rates[:4] == rates[4:]
    for name, tensor in big.after[4].items():
        torch.testing.assert_close(small.after[4][name], tensor, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tensor, network().state_dict()[name].to(tensor.device), atol=1e-3)


def test_batches_left_over_at_the_end_of_an_epoch_make_a_step_of_their_own(tmp_path, rates):
    Job(tmp_path, recipe=replace(RECIPE, accumulation=2, schedule="cosine"))()  # 3 batches an epoch: 2 and 1
    assert len(rates) == 8
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])


def one_cycle(step: int, steps: int, lr: float) -> float:
    """From lr / 25 up to lr within a tenth of the steps, down to lr / 250,000 after the last, along cosines."""
    top = 0.1 * (steps + 1) - 1
    start, end, share = (lr / 25, lr, step / top) if step <= top else (lr, lr / 25e4, (step - top) / (steps - top))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def test_one_cycle_peaks_at_a_tenth_of_the_steps(tmp_path, rates):
    Job(tmp_path, recipe=replace(RECIPE, epochs=10), size=3, scores=[0.5] * 10)()
    assert rates == pytest.approx([one_cycle(i, 40, 0.05) for i in range(40)])
    assert rates.index(max(rates)) == 4


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_cycle_works_for_the_shortest_runs(tmp_path, rates, epochs):
    Job(tmp_path, recipe=replace(RECIPE, epochs=epochs), size=ROWS)()
    assert len(rates) == epochs
    assert all(0 < rate <= 0.05 for rate in rates)


def test_cosine_falls_from_the_given_rate(tmp_path, rates):
    Job(tmp_path, recipe=replace(RECIPE, schedule="cosine"))()
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)])


def test_only_matrices_decay(tmp_path, rates):
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    model = Parts().to(best_device())

    def no_loss(rows: Tensor) -> tuple[Tensor, dict]:
        return 0 * (model.matrix.sum() + model.vector.sum() + model.scalar), {}

    recipe = replace(RECIPE, weight_decay=0.5, epochs=2)
    train(model, lambda epoch: [torch.arange(3)] * 2, 2, no_loss, recipe, tmp_path, run="toy")
    left = math.prod(1 - rate * 0.5 for rate in rates)
    assert len(rates) == 4
    torch.testing.assert_close(model.matrix.data.cpu(), torch.full((2, 3), left))
    for kept in (model.vector, model.scalar, model.frozen):
        assert torch.equal(kept.data, torch.ones_like(kept))


def test_large_gradients_are_clipped(tmp_path):
    """A gradient of 1000 after one of 0.5 counts as 1: without clipping Adam's step would be twice as large."""
    model = nn.ParameterList([torch.zeros(1)]).to(best_device())
    slopes = iter([0.5, 1000.0])
    recipe = Recipe(2, 0.1, weight_decay=0, betas=(0.0, 0.5), schedule="cosine", precision="fp32")
    train(
        model,
        lambda _: [torch.arange(2)],
        1,
        lambda _: (next(slopes) * model[0].sum(), {}),
        recipe,
        tmp_path,
        run="toy",
    )
    first, second = 0.1 * 1.0, 0.05 * 1 / math.sqrt((0.5 * 0.5 * 0.25 + 0.5 * 1) / 0.75)
    assert model[0].item() == pytest.approx(-(first + second), rel=1e-4)


def test_the_precision_of_one_training_does_not_bind_the_next(tmp_path):
    for number, (precision, dtype) in enumerate([("bf16", torch.bfloat16), ("fp32", torch.float32)] * 2):
        model, seen = network(), []

        def loss_of(rows: Tensor, model=model, seen=seen) -> tuple[Tensor, dict]:
            output = model(INPUTS[rows.to(INPUTS.device)])
            seen.append(model[0](INPUTS[:1]).dtype)
            return output.float().square().mean(), {}

        recipe = replace(RECIPE, precision=precision, epochs=1)
        train(model, lambda _: [torch.arange(4)], 1, loss_of, recipe, tmp_path / str(number), run="toy")
        assert seen == [dtype]
        assert all(p.dtype == torch.float32 for p in model.parameters())


# ------------------------------------------------------------------ batches and files


def test_batches_hold_every_row_once_in_another_order_each_epoch():
    epochs = [torch.cat(shuffled_batches(20, 6, 1, epoch)).tolist() for epoch in (1, 2)]
    assert [len(rows) for rows in shuffled_batches(20, 6, 1, 1)] == [6, 6, 6, 2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert torch.cat(shuffled_batches(20, 6, 1, 2)).tolist() == epochs[1]
    assert torch.cat(shuffled_batches(20, 6, 2, 2)).tolist() != epochs[1]


def test_batches_do_not_touch_the_common_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    shuffled_batches(20, 6, 1, 1)
    assert torch.equal(torch.rand(1), expected)


def test_a_last_batch_of_one_is_left_out():
    batches = shuffled_batches(13, 6, 0, 1)
    assert [len(rows) for rows in batches] == [6, 6]
    assert len(set(torch.cat(batches).tolist())) == 12


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "state.pt"
    replace_file(file, lambda path: path.write_text("first"))

    def fail(path: Path) -> None:
        path.write_text("hal")
        raise Killed

    with pytest.raises(Killed):
        replace_file(file, fail)
    assert file.read_text() == "first"
    replace_file(file, lambda path: path.write_text("second"))
    assert file.read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
