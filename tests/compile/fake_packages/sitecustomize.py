"""Read at Python's start: where the real cutlass is installed, its .pth file puts it in front of PYTHONPATH."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
