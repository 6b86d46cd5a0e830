"""Trackers are told each step once, send nothing that nobody asked for, and never end a run."""

from __future__ import annotations

import socket
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.recipes import track
from sapwood.recipes.track import Service, require_services, tracking
from sapwood.run import Run, open_run
from tiny.folder import write_model, write_rows

Record = dict[str, Any]


def steps(first: int, last: int) -> list[Record]:
    """Records as the loop writes them: an evaluation each third step, a loss that is not finite at step 2."""
    found: list[Record] = []
    for step in range(first, last + 1):
        found += [{"kind": "eval", "step": step - 1, "loss": 3.0, "parts": [1.0, 2.0]}] if step % 3 == 1 else []
        found.append({"kind": "train", "step": step, "loss": None if step == 2 else 1 / step, "lr": 0.1})
    return found


def sitting(run: Run, service: Service, records: list[Record]) -> list[str]:
    """One sitting of a run: what is recorded before is read first, as `watching` does. Returns what was said."""
    said: list[str] = []
    with tracking(run, [service], {"lr": 0.1}, said.append) as tell:
        tell([record for record in run.read("metrics") if record["kind"] in ("train", "eval")])
        for record in records:
            run.append("metrics", record)
            tell([record])
    return said


@pytest.fixture
def run(tmp_path: Path) -> Any:
    opened = open_run(tmp_path / "run")
    yield opened
    opened.close()


def drawn(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        str(run.path / "tensorboard"), size_guidance={"scalars": 0}
    )
    accumulator.Reload()
    return {tag: [(event.step, round(event.value, 5)) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_reads_each_step_once_however_often_the_run_was_resumed(run: Run) -> None:
    pytest.importorskip("tensorboard")
    assert sitting(run, "tensorboard", steps(1, 5)) == []
    assert sitting(run, "tensorboard", steps(4, 9)) == []  # steps 4 and 5 again, from the checkpoint of step 3
    found = drawn(run)
    assert set(found) == {"train/loss", "train/lr", "eval/loss"}
    assert [step for step, _ in found["train/lr"]] == list(range(1, 10))
    assert [step for step, _ in found["train/loss"]] == [1, *range(3, 10)], "what is not finite is no point"
    assert [step for step, _ in found["eval/loss"]] == [0, 3, 6]
    assert found["train/loss"][1] == (3, 0.33333)


def test_tensorboard_that_was_killed_or_asked_for_later_is_told_the_rest(run: Run) -> None:
    pytest.importorskip("tensorboard")
    for record in steps(1, 4):
        run.append("metrics", record)
    sitting(run, "tensorboard", [])
    [file] = (run.path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # the last record is torn
    sitting(run, "tensorboard", steps(5, 5))
    assert [step for step, _ in drawn(run)["train/lr"]] == [1, 2, 3, 4, 5]


def test_wandb_is_kept_here_and_sends_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process is watched by a server where it would send to: nobody calls."""
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    called: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    called.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        said = [*sitting(run, "wandb", steps(1, 4)), *sitting(run, "wandb", steps(4, 6))]
        ended.set()
        thread.join()
    assert called == []
    assert len(said) == 2
    assert all("nothing is sent" in sentence for sentence in said)
    assert len(list((run.path / "wandb").glob("offline-run-*/*.wandb"))) == 2
    assert not list((run.path / "wandb").rglob("requirements.txt")), "what is installed here is nobody's business"
    names = {path.name.rpartition("-")[2] for path in (run.path / "wandb").glob("offline-run-*")}
    assert names == {(run.path / "wandb" / "id.txt").read_text()}, "both sittings are one run"


class Failing:
    """A service whose disk fills up at its third record."""

    def __init__(self, *_: object) -> None:
        self.told: set[tuple[str, int]] = set()
        self.sent = 0

    def send(self, step: int, values: object) -> None:
        self.sent += 1
        if self.sent == 3:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise AssertionError("nobody asks it any more")


def test_a_service_that_fails_is_left_with_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "_TensorBoard", Failing)
    said = sitting(run, "tensorboard", steps(1, 6))
    assert len(said) == 1
    assert "TensorBoard is told no more (OSError: " in said[0]
    assert "Training goes on" in said[0]
    assert len(run.read("metrics")) == len(steps(1, 6))


def test_a_service_that_is_not_installed_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sapwood\[track\]'"):
        require_services(["wandb"])
    assert main(["sft", "no-such-file.jsonl", "--track", "tensorboard"]) == 2
    assert "track names tensorboard" in capsys.readouterr().err


def test_a_run_is_told_to_tensorboard_without_torch_of_its_own(tmp_path: Path) -> None:
    if find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "my.jsonl", 40)
    flags = ["--model", str(model), "--out", str(tmp_path / "run"), "--budget", "512", "--max-new-tokens", "2", "--shots", ""]
    assert main(["sft", str(rows), *flags, "--track", "tensorboard", "--dtype", "fp32"]) == 0
    run = open_run(tmp_path / "run")
    found = drawn(run)
    run.close()
    assert {"train/loss", "train/lr", "train/grad_norm", "train/row_tokens_per_second", "eval/loss"} <= set(found)
    assert "torch.utils.tensorboard" not in sys.modules
