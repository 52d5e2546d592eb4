"""What the README shows works as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


async def test_the_example_of_a_test(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    shown: dict[str, Any] = {}
    exec(compile(example, str(README), "exec"), shown)
    (test,) = (value for name, value in shown.items() if name.startswith("test_"))
    await test(tmp_path)
