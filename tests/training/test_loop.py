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
from cirlib.study.errors import ResourceError
from cirlib.training import loop
from cirlib.training.loop import History, Hooks, TrainingConfig, shuffled_batches, train

ROWS = 12
INPUTS = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0)).to(best_device())
WANTED = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1)).to(best_device())
CONFIG = TrainingConfig("toy", epochs=4, steps_per_epoch=3, lr=0.05, precision="fp32")
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


def timeless(history: History) -> list[dict]:
    """The records without how fast it went."""
    return [{k: v for k, v in record.items() if not k.endswith("/s")} for record in history.records]


class Job:
    """A small regression for `train`, which remembers what it was asked and can be killed in some epoch."""

    def __init__(
        self, folder, *, config=CONFIG, scores=SCORES, stop=("", 0), model=None, size=4, hooks=None, **options
    ):
        self.folder, self.scores, self.stop, self.size, self.options = folder, scores, stop, size, options
        self.config = replace(config, steps_per_epoch=-(-ROWS // size))
        self.model = network() if model is None else model
        self.hooks = Hooks(self.validate) if hooks is None else hooks
        self.epochs: list[int] = []  # asked for
        self.after: dict[int, dict[str, Tensor]] = {}  # the weights that each epoch's score is of
        self.modes: list[tuple[str, bool]] = []
        self.batch = 0

    def __call__(self) -> History:
        torch.manual_seed(3)  # as a stage does when it is opened
        return train(self.model, self.batches, self.loss_of, self.config, self.folder, self.hooks, **self.options)

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
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: noted.append(optimizer.param_groups[0]["lr"]))
    yield noted
    handle.remove()


# ------------------------------------------------------------------ stopped and called again


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, accumulation=2)], ids=["each", "accumulated"])
@pytest.mark.parametrize(
    "stop",
    [("batches", 1), ("loss", 1), ("batches", 3), ("loss", 2), ("validate", 1), ("validate", 3), ("validate", 4)],
)
def test_a_killed_run_called_again_is_the_run_that_was_not_killed(tmp_path, stop, config):
    whole = Job(tmp_path / "whole", config=config)
    expected = whole()
    Job(tmp_path / "cut", config=config, stop=stop).killed()
    again = Job(tmp_path / "cut", config=config)
    history = again()
    assert again.epochs == list(range(stop[1], 5))
    assert timeless(history) == timeless(expected)
    assert history.steps == expected.steps
    assert same(weights(again.model), weights(whole.model))
    assert same(again.after[4], whole.after[4])


def test_the_best_epoch_before_a_kill_is_still_the_one_that_is_kept(tmp_path):
    scores = (0.1, 0.9, 0.2, 0.3)
    cut = Job(tmp_path, stop=("validate", 4), scores=scores).killed()
    again = Job(tmp_path, scores=scores)
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
        pytest.param({"config": replace(CONFIG, run="another")}, id="run"),
        pytest.param({"config": replace(CONFIG, lr=0.01)}, id="lr"),
        pytest.param({"config": replace(CONFIG, epochs=3)}, id="epochs"),
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
    assert timeless(again()) == timeless(fresh())
    assert again.epochs == list(range(1, again.config.epochs + 1))
    assert same(weights(again.model), weights(fresh.model))
    assert not (tmp_path / "used" / "left.npy").exists()


@pytest.mark.parametrize("how", ["empty", "3 bytes", "half", "last byte", "zeros", "text"])
def test_a_cut_off_or_overwritten_state_is_started_over(tmp_path, how):
    whole = Job(tmp_path / "whole")
    expected = whole()
    Job(tmp_path / "cut", stop=("batches", 4)).killed()
    file = tmp_path / "cut" / "state.pt"
    size = file.stat().st_size
    if how in ("zeros", "text"):
        file.write_bytes(bytes(size) if how == "zeros" else b"no state at all")
    else:
        os.truncate(file, {"empty": 0, "3 bytes": 3, "half": size // 2, "last byte": size - 1}[how])
    again = Job(tmp_path / "cut")
    assert timeless(again()) == timeless(expected)
    assert again.epochs == [1, 2, 3, 4]
    assert same(weights(again.model), weights(whole.model))


# ------------------------------------------------------------------ a warm start

TRUNK = replace(CONFIG, keep_epoch=2)


def test_a_warm_start_goes_on_from_the_epoch_that_the_other_run_kept(tmp_path, capsys):
    trunk = Job(tmp_path / "trunk", config=TRUNK)
    expected = trunk()
    branch = Job(
        tmp_path / "branch", config=replace(CONFIG, run="branch"), warm_start=tmp_path / "trunk" / "epoch-2.pt"
    )
    capsys.readouterr()
    history = branch()
    assert capsys.readouterr().out.splitlines()[0] == "branch: goes on after epoch 2"
    assert branch.epochs == [3, 4]
    assert history.run == "branch"
    assert timeless(history) == timeless(expected)
    assert history.steps == expected.steps
    assert same(branch.after[4], trunk.after[4])
    assert same(weights(branch.model), trunk.after[2])  # the best is one that it shares


@pytest.mark.parametrize("stop", [("loss", 3), ("validate", 4)])
def test_a_killed_warm_start_called_again_is_the_one_that_was_not_killed(tmp_path, stop):
    Job(tmp_path / "trunk", config=TRUNK)()
    options = {"warm_start": tmp_path / "trunk" / "epoch-2.pt", "scores": (0.1, 0.3, 0.2, 0.5)}
    whole = Job(tmp_path / "whole", **options)
    expected = whole()
    Job(tmp_path / "cut", stop=stop, **options).killed()
    again = Job(tmp_path / "cut", **options)
    assert timeless(again()) == timeless(expected)
    assert again.epochs == list(range(stop[1], 5))
    assert same(weights(again.model), weights(whole.model))


@pytest.mark.parametrize("written", [0, 1])
def test_a_run_killed_while_it_kept_an_epoch_keeps_it_when_called_again(tmp_path, monkeypatch, written):
    whole, replaced = Job(tmp_path / "whole", config=TRUNK), []
    whole()

    def dying(path: Path, write) -> None:
        replaced.append(path.name)
        if replaced == ["state.pt", "epoch-2.pt", "state.pt"][: 2 + written]:
            raise Killed
        loop_replace(path, write)

    loop_replace = loop.replace_file
    with monkeypatch.context() as patch:
        patch.setattr(loop, "replace_file", dying)
        Job(tmp_path / "cut", config=TRUNK).killed()
    again = Job(tmp_path / "cut", config=TRUNK)
    again()
    assert again.epochs == [2, 3, 4]
    branches = [Job(tmp_path / f"{name} b", warm_start=tmp_path / name / "epoch-2.pt") for name in ("whole", "cut")]
    one, two = (timeless(branch()) for branch in branches)
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
    assert [record["dev/recall@10"] for record in history.records] == list(scores)
    assert same(weights(job.model), job.after[best])
    assert not any(same(job.after[best], job.after[epoch]) for epoch in job.after if epoch != best)


def test_without_a_score_the_last_epoch_is_kept(tmp_path):
    scored, job = Job(tmp_path / "scored"), Job(tmp_path / "not", hooks=Hooks())
    scored()
    history = job()
    assert same(weights(job.model), scored.after[4])
    assert [set(record) for record in history.records] == [{"epoch", "loss", "triplets/s"}] * 4


def test_the_model_learns_in_train_mode_and_is_scored_and_left_in_eval_mode(tmp_path):
    job = Job(tmp_path)
    job()
    assert set(job.modes) == {("loss", True), ("validate", False)}
    assert not job.model.training


def test_with_no_epochs_nothing_happens_but_that_the_model_is_ready_to_score(tmp_path):
    job = Job(tmp_path / "run", config=replace(CONFIG, epochs=0))
    assert job() == History("toy")
    assert same(weights(job.model), weights(network()))
    assert not job.model.training
    assert not (tmp_path / "run").exists()


def test_a_small_run_without_a_folder_prints_nothing_keeps_nothing_and_stays_at_its_last_epoch(tmp_path, capsys):
    kept, small = Job(tmp_path / "kept", hooks=Hooks()), Job(None, hooks=Hooks())
    expected = kept()
    capsys.readouterr()
    assert timeless(small()) == timeless(expected)
    assert capsys.readouterr() == ("", "")
    assert same(weights(small.model), weights(kept.model)) and not small.model.training


def test_the_loss_of_an_epoch_is_the_mean_over_rows_and_each_step_is_kept(tmp_path):
    history = Job(tmp_path, size=5)()  # batches of 5, 5 and 2
    assert [step["step"] for step in history.steps] == list(range(1, 13))
    expected = [rows[0].item() for epoch in range(1, 5) for rows in shuffled_batches(ROWS, 5, 7, epoch)]
    assert [step["first"] for step in history.steps] == expected
    for epoch, record in enumerate(history.records):
        losses = [step["loss"] for step in history.steps[3 * epoch : 3 * epoch + 3]]
        assert record["loss"] == pytest.approx((5 * losses[0] + 5 * losses[1] + 2 * losses[2]) / 12, rel=1e-6)


# ------------------------------------------------------------------ what is said, and what stops


def test_each_epoch_has_a_line_with_loss_score_speed_and_time_left(tmp_path, capsys):
    history = Job(tmp_path, config=replace(CONFIG, epochs=2, unit="pairs"))()
    first, last = capsys.readouterr().out.splitlines()
    for line, record, score in ((first, history.records[0], "10.0"), (last, history.records[1], "30.0")):
        assert line.startswith(f"toy {record['epoch']}/2  loss {record['loss']:.4f}  dev/recall@10 {score} %  ")
        assert f"  {record['pairs/s']:.0f} pairs/s" in line
        assert record["pairs/s"] > 0
    assert re.search(r" pairs/s  \d+ s left$", first)
    assert last.endswith(" pairs/s")


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    job = Job(tmp_path, hooks=Hooks(names=lambda rows: [f"image-{row}" for row in 3 * rows.tolist()]))
    next(job.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = weights(job.model)
    said = r"toy: a gradient at step 1 of epoch 1 is not finite: lower lr \(now 0\.05\); no epoch was finished\."
    with pytest.raises(FloatingPointError, match=rf"^{said} The batch: (image-\d+, ){{7}}image-\d+ …$"):
        job()
    assert same(weights(job.model), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_the_epoch_before_is_gone_on_from(tmp_path, value):
    class Diverging(Job):
        def loss_of(self, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
            loss, rest = super().loss_of(rows)
            return loss * (value if self.epochs[-1] == 2 and self.batch == 1 else 1), rest

    job = Diverging(tmp_path)
    with pytest.raises(FloatingPointError, match=f"the loss at step 1 of epoch 2 is {value}.* after epoch 1 is kept"):
        job()
    assert list(job.after) == [1]  # what diverged is not scored
    again = Job(tmp_path)
    again()
    assert again.epochs == [2, 3, 4]  # nor kept


def test_a_batch_that_does_not_fit_into_memory_says_what_to_lower(tmp_path):
    def too_large(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(ResourceError, match=r"batch of 4 triplets does not fit.*lower batch_size"):
        train(network(), lambda epoch: shuffled_batches(ROWS, 4, 7, epoch), too_large, CONFIG, tmp_path)


@pytest.mark.parametrize(("keep", "copies"), [(0, 1), (2, 2)])
def test_room_for_the_checkpoint_is_asked_for_before_the_first_epoch(tmp_path, monkeypatch, keep, copies):
    """And it is what the files take: four times the weights, twice that with an epoch kept."""
    asked: list[int] = []
    monkeypatch.setattr(loop, "require_disk", lambda folder, size, advice: asked.append(size))
    job = Job(tmp_path, config=replace(CONFIG, keep_epoch=keep), model=nn.Linear(300, 300))
    job.loss_of = lambda rows: (job.model(torch.ones(1, 300)).square().mean(), {})
    job()
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert asked == [copies * 4 * 4 * 300 * 301]
    assert written == pytest.approx(asked[0], rel=0.02)


def test_each_batch_but_the_first_is_announced_one_step_ahead(tmp_path):
    seen: list[tuple[str, list[int]]] = []
    job = Job(None, config=replace(CONFIG, epochs=1), hooks=Hooks(prefetch=lambda rows: seen.append(("ahead", rows))))
    loss_of = job.loss_of
    job.loss_of = lambda rows: (seen.append(("used", rows)), loss_of(rows))[1]
    job()
    one, two, three = shuffled_batches(ROWS, 4, 7, 1)
    wanted = [("ahead", two), ("used", one), ("ahead", three), ("used", two), ("used", three)]
    assert [(what, rows.tolist()) for what, rows in seen] == [(what, rows.tolist()) for what, rows in wanted]


# ------------------------------------------------------------------ how it optimises


def one_cycle(step: int, steps: int, lr: float) -> float:
    """From lr / 25 up to lr within a tenth of the steps, down to lr / 250,000 after the last, along cosines."""
    top = 0.1 * (steps + 1) - 1
    start, end, share = (lr / 25, lr, step / top) if step <= top else (lr, lr / 25e4, (step - top) / (steps - top))
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_is_a_plain_loop_of_adamw_on_clipped_gradients(tmp_path, accumulation):
    """Bit for bit: batches of 5, 5 and 2, the last of which always makes a step."""
    config = replace(CONFIG, accumulation=accumulation, epochs=10)
    job = Job(tmp_path, config=config, size=5, hooks=Hooks())
    job()
    model = network().train()
    groups = [{"params": [p for p in model.parameters() if (p.ndim < 2) == is_vector]} for is_vector in (False, True)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.05, 0.0
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98), fused=True)
    steps = 30 if accumulation == 1 else 20
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    torch.manual_seed(3)
    for epoch in range(1, 11):
        for number, rows in enumerate(shuffled_batches(ROWS, 5, 7, epoch)):
            loss = F.mse_loss(model(INPUTS[rows.to(INPUTS.device)]), WANTED[rows.to(INPUTS.device)])
            (loss / accumulation).backward()
            if accumulation == 1 or number in (1, 2):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    assert same(weights(job.model), weights(model))


def test_one_cycle_peaks_at_a_tenth_of_the_steps(rates):
    Job(None, config=replace(CONFIG, epochs=10), size=3)()
    assert rates == pytest.approx([one_cycle(i, 40, 0.05) for i in range(40)])
    assert rates.index(max(rates)) == 4


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_cycle_works_for_the_shortest_runs(rates, epochs):
    Job(None, config=replace(CONFIG, epochs=epochs), size=ROWS)()
    assert len(rates) == epochs
    assert all(0 < rate <= 0.05 for rate in rates)


def test_only_matrices_decay_and_what_is_frozen_stays(rates):
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    model = Parts().to(best_device())
    no_loss = lambda rows: (0 * (model.matrix.sum() + model.vector.sum() + model.scalar), {})  # noqa: E731
    train(model, lambda epoch: [torch.arange(3)] * 3, no_loss, replace(CONFIG, weight_decay=0.5), None)
    left = math.prod(1 - rate * 0.5 for rate in rates)
    torch.testing.assert_close(model.matrix.data.cpu(), torch.full((2, 3), left))
    for kept in (model.vector, model.scalar, model.frozen):
        assert torch.equal(kept.data, torch.ones_like(kept))


def test_large_gradients_are_clipped(rates):
    """A gradient of 1000 after one of 0.5 counts as 1: without clipping Adam's second step would be larger."""
    model = nn.ParameterList([torch.zeros(1)]).to(best_device())
    slopes = iter([0.5, 1000.0])
    config = TrainingConfig("toy", 2, 1, 0.1, weight_decay=0, betas=(0.0, 0.5), precision="fp32")
    train(model, lambda _: [torch.arange(2)], lambda _: (next(slopes) * model[0].sum(), {}), config, None)
    first, second = rates[0], rates[1] * 1 / math.sqrt((0.5 * 0.5 * 0.25 + 0.5 * 1) / 0.75)
    assert model[0].item() == pytest.approx(-(first + second), rel=1e-4)


def test_the_precision_of_one_training_does_not_bind_the_next():
    for precision, dtype in [("bf16", torch.bfloat16), ("fp32", torch.float32)] * 2:
        model, seen = network(), []

        def loss_of(rows: Tensor, model=model, seen=seen) -> tuple[Tensor, dict]:
            seen.append(model[0](INPUTS[:1]).dtype)
            return model(INPUTS).float().square().mean(), {}

        train(model, lambda _: [torch.arange(4)], loss_of, replace(CONFIG, precision=precision, epochs=1), None)
        assert seen == [dtype]
        assert all(p.dtype == torch.float32 for p in model.parameters())


# ------------------------------------------------------------------ batches


def test_batches_hold_every_row_once_in_another_order_each_epoch_but_for_a_last_one_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epochs = [torch.cat(shuffled_batches(20, 6, 1, epoch)).tolist() for epoch in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(rows) for rows in shuffled_batches(20, 6, 1, 1)] == [6, 6, 6, 2]
    assert [len(rows) for rows in shuffled_batches(13, 6, 1, 1)] == [6, 6]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert torch.cat(shuffled_batches(20, 6, 1, 2)).tolist() == epochs[1]
    assert torch.cat(shuffled_batches(20, 6, 2, 2)).tolist() != epochs[1]
