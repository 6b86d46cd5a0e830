"""`sapwood eval init`: what is read off the rows, what flags say, what a person says, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from sapwood.cli.main import main
from sapwood.errors import ConfigError
from sapwood.recipes.needs import InitConfig, propose
from sapwood.requirements import ErrorType, read_requirements


def rows(path: Path, count: int = 40) -> Path:
    made = [
        {
            "messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"{n + 1}"}],
            "tags": ["edge:typos"] if n % 2 else ["real"],
            "task": "adding",
        }
        for n in range(count)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, made)))
    return path


def test_what_is_read_off_the_rows(tmp_path: Path) -> None:
    out = tmp_path / "requirements.yaml"
    found = propose(InitConfig(data=(str(rows(tmp_path / "my.jsonl")),), out=out))
    assert read_requirements(out) == found.requirements, "what was written is what was proposed"
    needs = found.requirements
    assert (needs.name, needs.primary.scorer) == ("my", "number")
    assert {one.name for one in needs.slices} == {"edge:typos", "real"}
    assert [task.name for task in needs.tasks] == ["adding"]
    assert "# What goes wrong" in out.read_text()
    assert any("To show more than 2 points" in note for note in found.notes)


def test_flags_say_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    given = InitConfig(out=out, name="n", about="a", scorer="exact", at_least=0.8, gain=0.05, errors=("rude:2", "lie:5:veto"), skills=())
    needs = propose(given).requirements
    assert (needs.name, needs.about, needs.primary.scorer, needs.primary.at_least, needs.decision.gain) == ("n", "a", "exact", 0.8, 0.05)
    assert needs.errors[-2:] == (ErrorType(name="rude", severity=2), ErrorType(name="lie", severity=5, veto=True))
    assert needs.general == ()
    with pytest.raises(ConfigError, match="is there and is not written over"):
        propose(given)
    assert propose(InitConfig(out=out, overwrite=True)).requirements.name == "my-use-case"


def test_a_person_is_asked(tmp_path: Path) -> None:
    answers: Sequence[str] = ("refunds", "Grant it or not.", "3", "wrong amount:5:veto", "")
    waiting, asked = iter(answers), list[str]()

    def ask(question: str, otherwise: str) -> str:
        asked.append(question)
        return next(waiting) or otherwise

    needs = propose(InitConfig(out=tmp_path / "r.yaml"), ask).requirements
    assert (needs.name, needs.about, needs.decision.gain) == ("refunds", "Grant it or not.", 0.03)
    assert [error.name for error in needs.vetoes] == ["wrong amount"]
    assert len(asked) == 5
    untouched = propose(InitConfig(out=tmp_path / "s.yaml", yes=True), lambda *_: pytest.fail("asked"))
    assert untouched.requirements.name == "my-use-case"


@pytest.mark.parametrize("error", ["", "a:b", "a:0", "a:1:2", ":3"])
def test_odd_errors_are_refused(tmp_path: Path, error: str) -> None:
    with pytest.raises(ConfigError, match="NAME:SEVERITY"):
        propose(InitConfig(out=tmp_path / "r.yaml", errors=(error,)))


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.chdir(tmp_path)
    rows(Path("my.jsonl"))
    assert main(["eval", "init", "my.jsonl", "--errors", "rude:2", "--json"]) == 0
    said = orjson.loads(capsysbinary.readouterr().out)
    assert said["hash"] == read_requirements(Path("requirements.yaml")).hash
    assert main(["eval", "init", "my.jsonl"]) == 2
