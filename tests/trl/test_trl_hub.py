"""Nothing goes out unless it is asked for; what goes out then is what `save_model` writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import peft
import pytest

from sapwood.errors import ConfigError, ExportError
from tiny.trainers import Rows, trainer_of

Sent = list[tuple[str, dict[str, Any], set[str], str]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """A hub that writes down what it is sent."""
    sent: Sent = []

    def create(self: Any, repo_id: str, **named: Any) -> Any:
        sent.append(("create", {"repo_id": repo_id, "token": self.token, **named}, set(), ""))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id}")

    def upload(self: Any, folder_path: str, **named: Any) -> Any:
        files = {path.name for path in Path(folder_path).iterdir()}
        sent.append(("upload", named, files, (Path(folder_path) / "README.md").read_text()))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{named['repo_id']}/commit/1")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    return sent


def lora() -> Any:
    return peft.LoraConfig(r=4, target_modules="all-linear")


def test_nothing_goes_out_by_itself(hub: Sent, folder: Path, rows: Rows, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rows, peft_config=lora(), hub_model_id="mine")
    trainer.train()
    trainer.save_model()
    assert hub == []


@pytest.mark.parametrize("by_option", [False, True])
def test_what_is_sent(by_option: bool, hub: Sent, folder: Path, rows: Rows, tmp_path: Path) -> None:
    named = {"hub_model_id": "mine", "hub_token": "hf_x", "hub_private_repo": False} if by_option else {}
    trainer = trainer_of(folder, tmp_path / "ours", rows, peft_config=lora(), push_to_hub=by_option, **named)
    trainer.train()
    if not by_option:
        assert trainer.push_to_hub(commit_message="first", tags=["course", "mine"]).endswith("/me/ours/commit/1")
    (_, created, _, _), (_, uploaded, files, readme) = hub
    assert created["repo_id"] == ("mine" if by_option else "ours")
    assert (created["token"], created["private"]) == (("hf_x", False) if by_option else (None, True))
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not any("rows" in name or "run" in name for name in files), "rows are nobody's but their owner's"
    assert by_option or "tags:\n- course\n- mine" in readme
    assert uploaded["repo_id"].startswith("me/")


def test_a_refusal_of_the_hub_is_one_paragraph(folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, repo_id: str, **named: Any) -> Any:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    trainer = trainer_of(folder, tmp_path, rows, peft_config=lora(), hub_model_id="mine")
    with pytest.raises(ExportError, match=r"The hub did not take mine \(offline\)\. The result is safe in .*call push_to_hub\(\) again"):
        trainer.push_to_hub()
    with pytest.raises(ConfigError, match="blocking cannot be honoured"):
        trainer.push_to_hub(blocking=True)
