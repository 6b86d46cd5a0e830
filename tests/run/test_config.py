"""Knobs to YAML and back, and what is said about a wrong one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from sapwood.config import did_you_mean, from_dict, known_keys, load_yaml, save_yaml, to_dict
from sapwood.errors import ConfigError
from sapwood.recipes import QUICKSTART, TuneConfig
from sapwood.recipes.api import with_knobs


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    names: tuple[str, ...] = ()
    steps: int | None = None
    out: Path | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = Outer(names=("x", "y"), steps=3, out=Path("a/b"), flag=True, inner=Inner(lr=1e-4, kind="b"))
    save_yaml(config, tmp_path / "c.yaml")
    assert load_yaml(Outer, tmp_path / "c.yaml") == config
    save_yaml(QUICKSTART, tmp_path / "q.yaml")
    assert load_yaml(TuneConfig, tmp_path / "q.yaml") == QUICKSTART


def test_what_yaml_reads_as_text_becomes_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("inner:\n  lr: 1e-4\nnames: one\n")
    assert load_yaml(Outer, tmp_path / "c.yaml") == Outer(names=("one",), inner=Inner(lr=1e-4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"inner": {"rl": 1}}, "unknown option `inner.rl`"),
        ({"inners": {}}, "Known here: flag, inner, names, out, steps"),
        ({"inner": {"kind": "c"}}, "`inner.kind` is 'c'; allowed: 'a', 'b'"),
        ({"steps": "many"}, "`steps` should be int, found 'many'"),
        ({"steps": True}, "`steps` should be int"),
        ({"flag": "yes please"}, "`flag` should be bool"),
        ({"inner": 3}, "`inner` should hold keys"),
    ],
)
def test_a_wrong_key_or_value_is_named(content: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, content, "run.yaml")
    assert str(caught.value).startswith("run.yaml: ")
    assert words in str(caught.value)


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: [a\nsteps: 1\n")
    with pytest.raises(ConfigError, match=r"c.yaml:2: not valid YAML"):
        load_yaml(Outer, tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="key: value"):
        load_yaml(Outer, tmp_path / "c.yaml")


def test_suggestions() -> None:
    assert did_you_mean("lrr", known_keys(Outer)) == " Did you mean 'inner.lr'?"
    assert did_you_mean("zzz", known_keys(Outer)) == ""


def test_knobs_by_their_plain_names() -> None:
    config = with_knobs(TuneConfig(), {"lr": 1e-5, "held_out": 7, "train.lora.r": 4, "out": Path("x")})
    assert (config.train.optim.lr, config.rows.held_out, config.train.lora.r, config.out) == (1e-5, 7, 4, Path("x"))
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        with_knobs(TuneConfig(), {"epoch": 1})


def test_leaf_names_are_unique_so_that_flags_need_no_prefix() -> None:
    leaves = [key.rsplit(".", 1)[-1] for key in known_keys(TuneConfig)]
    assert len(leaves) == len(set(leaves))
    assert to_dict(TuneConfig()).keys() == {key.split(".")[0] for key in known_keys(TuneConfig)}
