"""The example of docs/claims.md makes its claim as printed."""

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "claims.md").read_text()


def test_the_example_is_a_claim(monkeypatch):
    module = ModuleType("claims_page")
    monkeypatch.setitem(sys.modules, "claims_page", module)  # a dataclass looks its module up
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], module.__dict__)
    assert module.__dict__["CLAIMS"][0].name == "mine-converges"
