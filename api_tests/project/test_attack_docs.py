"""docs/attacks.md lists every attack, and its figures are those of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attack_tables
from touchstone.methods import catalogue

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/attacks.md"

MACHINE = {"date": "2026-01-02", "threads": 2, "processor": "Abacus"}
ATTACKS = {
    "machine": MACHINE,
    "networks": {
        "net": {
            "eps": 0.1,
            "attacks": {
                "pgd": {
                    "norm": "linf", "images": 7, "fooled": 0.25, "distance": 0.0987654, "forward": 1234.4,
                    "backward": 12.0, "surrogate": 0.0, "seconds": 0.0123,
                },
                "zoo": {
                    "norm": "l2", "images": 7, "fooled": 0.0, "distance": None, "forward": 9.0,
                    "backward": 0.0, "surrogate": 8.0, "seconds": 1.0,
                },
            },
        }
    },
}  # fmt: skip
PEERS = {
    "machine": MACHINE,
    "networks": {
        "net": {
            "eps": 0.1,
            "pairs": [
                {
                    "attack": "ddn", "norm": "l2", "peer": "adv-lib", "images": 7, "speed_ratio": 2.5,
                    "speed_ratio_plain": 3.5, "turns": 3,
                    "ours": {"distance": 0.5, "seconds": 1.0}, "theirs": {"distance": 0.625, "seconds": 2.5},
                },
                {
                    "attack": "apgd", "norm": "linf", "peer": "authors", "images": 7, "speed_ratio": 3.0,
                    "speed_ratio_plain": 4.0, "turns": 1,
                    "ours": {"robust_accuracy": 0.5, "seconds": 1.0},
                    "theirs": {"robust_accuracy": 0.625, "seconds": 3.0},
                },
            ],
        }
    },
}  # fmt: skip
NEAR = {
    "machine": MACHINE,
    "networks": {
        "net": {
            "pairs": [
                {
                    "attack": "ddn", "norm": "l2", "peer": "adv-lib", "images": 7, "distance": 0.625,
                    "ours": {"steps": 30, "seconds": 0.5}, "theirs": {"steps": 100, "seconds": 2.5},
                    "speed_ratio": 5.0,
                },
            ],
        }
    },
}  # fmt: skip


@pytest.fixture
def write_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a record where the tables look for it."""
    monkeypatch.setattr(attack_tables, "RESULTS", tmp_path)
    return lambda name, record: (tmp_path / f"{name}.json").write_text(json.dumps(record))


def test_attack_docs_tables_match_catalogue_and_records() -> None:
    text = DOCUMENT.read_text()
    assert attack_tables.fill_tables(text) == text, "run `python -m benchmarks.attacks --write-docs`"


def test_catalogue_table_has_one_row_for_each_attack() -> None:
    text = DOCUMENT.read_text()
    inside = text.partition("<!-- catalogue -->")[2].partition("<!-- end of catalogue -->")[0]
    assert sorted(re.findall(r"^\| `([^`]+)`", inside, re.MULTILINE)) == list(catalogue("attack"))


def test_changelog_names_every_attack_and_readme_links_the_page() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in catalogue("attack") if f"`{name}`" not in changes] == []
    assert "(docs/attacks.md)" in (ROOT / "README.md").read_text()


def test_figures_are_empty_without_records(write_record: Any) -> None:
    assert attack_tables.result_tables() == ""
    text = attack_tables.fill_tables("a\n<!-- figures -->\nold\n<!-- end of figures -->\nb\n")
    assert text == "a\n<!-- figures -->\n<!-- end of figures -->\nb\n"


def test_figures_match_the_records(write_record: Any) -> None:
    write_record(attack_tables.TABLE, ATTACKS)
    table = attack_tables.result_tables()
    assert "| `pgd` | L∞ | 7 | 25 % | 0.0988 | 1,234 | 12 | 12.3 |" in table
    assert "| `zoo` | L2 | 7 | 0 % | none | 9 | 0 (8 of surrogates) | 1,000.0 |" in table
    assert "speedup" not in table
    write_record(attack_tables.PEERS, PEERS)
    table = attack_tables.result_tables()
    assert "| `net` | `ddn` | L2 | adv-lib | 7 | 0.5000 | 0.6250 | 3 | 1.00 | 2.50 | 2.5 | 3.5 |" in table
    assert (
        "| `net` | `apgd` | L∞ | authors | 7 | 50.0 % robust | 62.5 % robust | 1 | 1.00 | 3.00 | 3 | 4 |"
        in table
    )
    write_record(attack_tables.EQUALLY_NEAR, NEAR)
    table = attack_tables.result_tables()
    assert "| `net` | `ddn` | L2 | adv-lib | 7 | 0.6250 | 30 | 100 | 0.50 | 2.50 | 5 |" in table
