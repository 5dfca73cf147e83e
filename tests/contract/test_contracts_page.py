"""docs/contracts.md tells what the code does: its tables are those that the code makes, and each of them is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract_tables", DOCS / "contract_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code(tables: ModuleType) -> None:
    page = (DOCS / "contracts.md").read_text()
    assert tables.renewed(page) == page, "run: python docs/contract_tables.py"


def test_every_table_is_on_the_page(tables: ModuleType) -> None:
    named = re.findall(r"<!-- made by contract_tables\.py: (\w+) -->", (DOCS / "contracts.md").read_text())
    assert sorted(named) == sorted(tables.TABLES)


def test_every_contract_has_a_section() -> None:
    sections = re.findall(r"^## (.*)$", (DOCS / "contracts.md").read_text(), re.MULTILINE)
    assert sections == ["All contracts", "jobs", "ai", "compute", "gpu", "hpc"]
