"""The training loop: what an epoch optimises, what is kept, and that a stopped run ends like one never stopped."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.models.devices import best_device
from cirlib.study.files import replace_file
from cirlib.training import loop
from cirlib.training.loop import History, Hooks, TrainingConfig, shuffled_batches, train
from cirlib.training.recipe import optimisation

ROWS = 12
INPUTS = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0)).to(best_device())
WANTED = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1)).to(best_device())
CONFIG = TrainingConfig("toy", epochs=4, steps_per_epoch=3, lr=0.05, precision="fp32")
TRUNK = replace(CONFIG, keep_epoch=2)
SCORES = (0.1, 0.3, 0.2, 0.25)


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a training."""


def network(bias: float = 0.0) -> nn.Module:
    """The same start each time; dropout draws from torch's own generator."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2)).to(best_device())
    model[0].bias.data += bias
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss_on(model: nn.Module, rows: Tensor) -> Tensor:
    return F.mse_loss(model(INPUTS[rows.to(INPUTS.device)]), WANTED[rows.to(INPUTS.device)])


def timeless(history: History) -> list[dict]:
    """The records without how fast it went."""
    return [{k: v for k, v in record.items() if not k.endswith("/s")} for record in history.records]


class Job:
    """A small regression for `train`, which remembers what it was asked and can be killed in some epoch."""

    def __init__(self, folder, *, config=CONFIG, scores=SCORES, stop=("", 0), bias=0.0, size=4, hooks=None, **options):
        self.folder, self.scores, self.stop, self.size, self.options = folder, scores, stop, size, options
        self.config, self.model = replace(config, steps_per_epoch=-(-ROWS // size)), network(bias)
        self.hooks, self.batch = hooks or Hooks(self.validate), 0
        self.epochs: list[int] = []  # asked for
        self.after: dict[int, dict[str, Tensor]] = {}  # the weights that each epoch's score is of

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
        assert self.model.training
        return loss_on(self.model, rows), {"first": rows[0].item()}

    def validate(self) -> dict[str, float]:
        self.die("validate")
        assert not self.model.training
        self.after[self.epochs[-1]] = weights(self.model)
        return {"dev/recall@10": self.scores[self.epochs[-1] - 1]}

    def die(self, place: str) -> None:
        if self.stop == (place, self.epochs[-1]):
            raise Killed

    def killed(self) -> None:
        with pytest.raises(Killed):
            self()


@pytest.mark.parametrize("how", ["plain", "accumulated", "warm"])
@pytest.mark.parametrize("stop", [("batches", 1), ("loss", 2), ("batches", 4), ("validate", 4)])
def test_a_killed_run_called_again_is_the_run_that_was_not_killed(tmp_path, stop, how):
    options = {"config": replace(CONFIG, accumulation=2 if how == "accumulated" else 1)}
    if how == "warm":
        Job(tmp_path / "trunk", config=TRUNK)()
        options, stop = {"warm_start": tmp_path / "trunk" / "epoch-2.pt"}, (stop[0], max(stop[1], 3))
    whole = Job(tmp_path / "whole", **options)
    expected = whole()
    Job(tmp_path / "cut", stop=stop, **options).killed()
    again = Job(tmp_path / "cut", **options)
    history = again()
    assert again.epochs == list(range(stop[1], 5))
    assert (timeless(history), history.steps) == (timeless(expected), expected.steps)
    assert same(again.after[4], whole.after[4])
    assert same(weights(again.model), weights(whole.model))
    finished = Job(tmp_path / "cut", **options)
    assert finished() == history and finished.epochs == []
    assert same(weights(finished.model), weights(whole.model)) and not finished.model.training


@pytest.mark.parametrize("change", [{"fingerprint": "other data"}, {"config": replace(CONFIG, lr=0.01)}, {"bias": 1.0}])
def test_the_state_of_another_run_is_not_gone_on_with(tmp_path, change):
    Job(tmp_path / "used", stop=("batches", 3)).killed()
    (tmp_path / "used" / "left.npy").write_text("of the other run")
    fresh, again = Job(tmp_path / "fresh", **change), Job(tmp_path / "used", **change)
    assert timeless(again()) == timeless(fresh())
    assert again.epochs == [1, 2, 3, 4]
    assert same(weights(again.model), weights(fresh.model))
    assert not (tmp_path / "used" / "left.npy").exists()


@pytest.mark.parametrize("bytes_left", [0, 3000])
def test_a_state_that_was_cut_off_is_started_over(tmp_path, bytes_left):
    Job(tmp_path, stop=("batches", 4)).killed()
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:bytes_left])
    again = Job(tmp_path)
    again()
    assert again.epochs == [1, 2, 3, 4]


@pytest.mark.parametrize("left", [b"hello garbage", b"", torch.zeros(1).numpy().tobytes() * 500])
def test_a_state_that_is_no_state_is_started_over(tmp_path, left):
    Job(tmp_path)()
    (tmp_path / "state.pt").write_bytes(left)
    again = Job(tmp_path)
    again()
    assert again.epochs == [1, 2, 3, 4]


def test_a_training_anew_discards_what_has_finished_and_goes_on_with_what_has_not(tmp_path):
    Job(tmp_path)()
    Job(tmp_path, retrain=True, stop=("batches", 3)).killed()
    again = Job(tmp_path, retrain=True)
    again()
    assert again.epochs == [3, 4]


def test_two_runs_of_one_training_take_turns_and_the_second_only_loads(tmp_path):
    """In threads, as a lock of the file is that of its opening, not of the process."""
    first, second = Job(tmp_path / "run"), Job(tmp_path / "run")
    started, loss_of = Event(), first.loss_of

    def slow(rows: Tensor) -> tuple[Tensor, dict]:
        started.set()
        time.sleep(0.02)
        return loss_of(rows)

    first.loss_of = slow
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        started.wait()
        two = pool.submit(second)
        assert timeless(one.result()) == timeless(two.result())
    assert (first.epochs, second.epochs) == ([1, 2, 3, 4], [])
    assert same(weights(first.model), weights(second.model))


def test_a_warm_start_goes_on_from_the_epoch_that_the_other_run_kept(tmp_path, capsys):
    trunk = Job(tmp_path / "trunk", config=TRUNK)
    expected = trunk()
    warm_start = tmp_path / "trunk" / "epoch-2.pt"
    branch = Job(tmp_path / "branch", config=replace(CONFIG, run="branch"), warm_start=warm_start)
    capsys.readouterr()
    history = branch()
    assert capsys.readouterr().out.splitlines()[0] == "branch: goes on after epoch 2"
    assert branch.epochs == [3, 4]
    assert (history.run, timeless(history), history.steps) == ("branch", timeless(expected), expected.steps)
    assert same(branch.after[4], trunk.after[4])
    assert same(weights(branch.model), trunk.after[2])  # the best is one that it shares


def test_a_run_killed_while_it_kept_an_epoch_keeps_it_when_called_again(tmp_path, monkeypatch):
    left = [replace_file, replace_file]  # after the first epoch one, after the second two

    def dying(path: Path, write) -> None:
        if not left:
            raise Killed
        left.pop()(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "replace_file", dying)
        Job(tmp_path / "cut", config=TRUNK).killed()
    Job(tmp_path / "cut", config=TRUNK)()
    branch = Job(tmp_path / "branch", warm_start=tmp_path / "cut" / "epoch-2.pt")
    branch()
    assert branch.epochs == [3, 4]


@pytest.mark.parametrize(("scores", "best"), [(SCORES, 2), ((0.4, 0.3, 0.4, 0.4), 1), ((0.1, 0.2, 0.3, 0.4), 4)])
def test_the_earliest_best_epoch_is_restored(tmp_path, scores, best):
    job = Job(tmp_path, scores=scores)
    history = job()
    assert [record["dev/recall@10"] for record in history.records] == list(scores)
    assert [epoch for epoch in job.after if same(weights(job.model), job.after[epoch])] == [best]


def test_without_a_score_the_last_epoch_is_kept_and_without_a_folder_nothing_is_said(tmp_path, capsys):
    scored, plain, small = Job(tmp_path / "a"), Job(tmp_path / "b", hooks=Hooks()), Job(None, hooks=Hooks())
    scored()
    records = timeless(plain())
    assert [set(record) for record in records] == [{"epoch", "loss"}] * 4
    capsys.readouterr()
    assert timeless(small()) == records
    assert capsys.readouterr() == ("", "")
    for job in (plain, small):
        assert same(weights(job.model), scored.after[4]) and not job.model.training


def test_the_loss_of_an_epoch_is_the_mean_over_rows_and_each_step_is_kept():
    history = Job(None, size=5)()  # batches of 5, 5 and 2
    assert [step["step"] for step in history.steps] == list(range(1, 13))
    expected = [rows[0].item() for epoch in range(1, 5) for rows in shuffled_batches(ROWS, 5, 7, epoch)]
    assert [step["first"] for step in history.steps] == expected
    for epoch, record in enumerate(history.records):
        losses = [step["loss"] for step in history.steps[3 * epoch : 3 * epoch + 3]]
        assert record["loss"] == pytest.approx((5 * losses[0] + 5 * losses[1] + 2 * losses[2]) / 12, rel=1e-6)


def test_each_epoch_has_a_line_with_loss_score_speed_and_time_left(tmp_path, capsys):
    one, two = Job(tmp_path, config=replace(CONFIG, epochs=2, unit="pairs"))().records
    first, last = capsys.readouterr().out.splitlines()
    said = "toy {}/2  loss {:.4f}  dev/recall@10 {} %  {:.0f} pairs/s"
    assert re.fullmatch(re.escape(said.format(1, one["loss"], "10.0", one["pairs/s"])) + r"  \d+ s left", first)
    assert last == said.format(2, two["loss"], "30.0", two["pairs/s"])


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    job = Job(tmp_path, hooks=Hooks(names=lambda rows: ", ".join(f"image-{row}" for row in 30 * rows.tolist())))
    next(job.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = weights(job.model)
    said = r"toy: a gradient at step 1 of epoch 1 is not finite: lower lr \(now 0\.05\); no epoch was finished\."
    with pytest.raises(FloatingPointError, match=rf"^{said} The batch: (image-\d+, ){{10,20}}image-\d+, …$"):
        job()
    assert same(weights(job.model), before)


def test_a_loss_that_is_not_finite_stops_and_the_epoch_before_is_gone_on_from(tmp_path):
    job, again = Job(tmp_path), Job(tmp_path)
    loss_of = job.loss_of
    job.loss_of = lambda rows: (loss_of(rows)[0] * (math.nan if job.epochs == [1, 2] else 1), {})
    with pytest.raises(FloatingPointError, match=r"the loss at step 1 of epoch 2 is nan.* after epoch 1 is kept"):
        job()
    again()
    assert (list(job.after), again.epochs) == ([1], [2, 3, 4])  # what diverged is neither scored nor kept


@pytest.mark.parametrize("keep", [0, 2])
def test_room_for_the_checkpoint_is_asked_for_before_the_first_epoch(tmp_path, monkeypatch, keep):
    """And it is what the files take until it has finished: four times the weights, twice that with an epoch kept."""
    asked, written, model, config = [], [], nn.Linear(300, 300), replace(CONFIG, keep_epoch=keep)
    monkeypatch.setattr(loop, "require_disk", lambda folder, size, advice: asked.append(size))
    hooks = Hooks(lambda: {"dev/recall@10": 0.5})

    def batches(_: int) -> list[Tensor]:
        written.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        return [torch.ones(1, 300)]

    train(model, batches, lambda rows: (model(rows).square().mean(), {}), config, tmp_path, hooks)
    assert asked == [(2 if keep else 1) * 4 * 4 * 300 * 301]
    assert max(written) == pytest.approx(asked[0], rel=0.02)
    assert (tmp_path / "state.pt").stat().st_size == pytest.approx(4 * 300 * 301, rel=0.05)


def test_each_batch_but_the_first_is_announced_one_step_ahead():
    seen: list[tuple[str, int]] = []
    hooks = Hooks(prefetch=lambda rows: seen.append(("ahead", rows[0].item())))
    job = Job(None, config=replace(CONFIG, epochs=1), hooks=hooks)
    loss_of = job.loss_of
    job.loss_of = lambda rows: (seen.append(("used", rows[0].item())), loss_of(rows))[1]
    job()
    one, two, three = (rows[0].item() for rows in shuffled_batches(ROWS, 4, 7, 1))
    assert seen == [("ahead", two), ("used", one), ("ahead", three), ("used", two), ("used", three)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_is_a_plain_loop_of_adamw_on_clipped_gradients(accumulation):
    """Bit for bit: batches of 5, 5 and 2, the last of which always makes a step."""
    job = Job(None, config=replace(CONFIG, accumulation=accumulation, epochs=10), size=5, hooks=Hooks())
    job()
    model, norms = network().train(), []
    groups = [{"params": [p for p in model.parameters() if (p.ndim < 2) == is_vector]} for is_vector in (False, True)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.05, 0.0
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98), fused=True)
    options = {"total_steps": (30 if accumulation == 1 else 20) + 1, "pct_start": 0.1, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, **options)
    torch.manual_seed(3)
    for epoch in range(1, 11):
        for number, rows in enumerate(shuffled_batches(ROWS, 5, 7, epoch)):
            (loss_on(model, rows) / accumulation).backward()
            if accumulation == 1 or number in (1, 2):
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    assert min(norms) < 1 < max(norms)
    assert same(weights(job.model), weights(model))


@pytest.mark.parametrize(("rate", "moves"), [(None, 1e-4), (1e-2, 1e-2)])
def test_a_learned_temperature_moves_by_its_own_learning_rate(rate, moves):
    """By as much a step as the rate says, of which AdamW's first steps are."""
    model = torch.nn.Linear(4, 1)
    model.raw_temperature = torch.nn.Parameter(torch.tensor(0.07))
    config = TrainingConfig("toy", epochs=1, steps_per_epoch=3, lr=1e-4, temperature_lr=rate, precision="fp32")
    batches = [torch.ones(2, 4)] * 3
    train(model, lambda epoch: batches, lambda rows: (model(rows).mean() + model.raw_temperature, {}), config, None)
    assert 0.5 * moves < 0.07 - model.raw_temperature.item() < 3 * moves


def test_sprcs_recipe_warms_up_over_a_twentieth_decays_every_weight_and_clips_nothing():
    config = TrainingConfig("toy", epochs=10, steps_per_epoch=10, lr=0.01, recipe="sprc")
    optimizer, schedule, max_norm = optimisation(torch.nn.LayerNorm(2), config)
    assert [(group["weight_decay"], group["eps"]) for group in optimizer.param_groups] == [(0.05, 1e-7)]
    assert max_norm == math.inf
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates.index(max(rates)) in (4, 5)  # of 100 steps


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_cycle_works_for_the_shortest_runs(epochs):
    job = Job(None, config=replace(CONFIG, epochs=epochs), size=ROWS)
    assert len(job().steps) == epochs
    assert not same(weights(job.model), weights(network()))


def test_the_precision_of_one_training_does_not_bind_the_next():
    for precision, dtype in [("bf16", torch.bfloat16), ("fp32", torch.float32)] * 2:
        job, seen = Job(None, config=replace(CONFIG, precision=precision, epochs=1)), set()
        job.model[0].register_forward_hook(lambda _, __, output, seen=seen: seen.add(output.dtype))
        job()
        assert seen == {dtype}
        assert all(p.dtype == torch.float32 for p in job.model.parameters())


def test_batches_hold_every_row_once_in_another_order_each_epoch_but_for_a_last_one_alone():
    state, keys = torch.get_rng_state(), [(1, 1), (1, 2), (1, 2), (2, 2)]  # seed, epoch
    one, two, again, other = (torch.cat(shuffled_batches(20, 6, *key)).tolist() for key in keys)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(one) == sorted(two) == list(range(20))
    assert one != two == again != other
    assert [[len(rows) for rows in shuffled_batches(n, 6, 1, 1)] for n in (20, 13)] == [[6, 6, 6, 2], [6, 6]]


def test_losses_are_written_step_by_step_where_a_folder_is_named(tmp_path, monkeypatch):
    model, config = nn.Linear(2, 1), TrainingConfig("toy", epochs=2, steps_per_epoch=3, lr=0.01)

    def loss_of(batch):
        return model(batch).square().mean(), {}

    train(model, lambda epoch: [torch.ones(4, 2)] * 3, loss_of, config, tmp_path / "first")
    assert not (tmp_path / "live").exists()
    monkeypatch.setenv("CIRLIB_LIVE", str(tmp_path / "live"))
    train(model, lambda epoch: [torch.ones(4, 2)] * 3, loss_of, config, tmp_path / "second")
    rows = (tmp_path / "live" / "toy.csv").read_text().splitlines()
    assert rows[0] == "step,loss,lr" and [row.split(",")[0] for row in rows[1:]] == [str(step) for step in range(1, 7)]
