"""`dump_by_sglang.py CAPTURE DIR`: the tensors of a captured layer, dumped by SGLang's own dumper."""

import os
import sys
from pathlib import Path

os.environ |= {"DUMPER_ENABLE": "1", "DUMPER_DIR": sys.argv[2], "DUMPER_ENABLE_OUTPUT_CONSOLE": "0"}

from harness.candidates.engines.engine import Engine
from harness.replay.reading import read_capture

MODULE = "sglang.srt.debug_utils.dumper"
engine = Engine("sglang", (MODULE,))
(process,) = read_capture(Path(sys.argv[1]))
with engine.running():
    dumper = engine.get(f"{MODULE}:dumper")
    for call in process.calls:
        if call.parent is not None:
            for part, values in (("inputs", call.inputs), ("outputs", call.outputs)):
                for name, value in values.items():
                    dumper.dump(f"{call.stage}.{part}.{name}", value, layer_id=call.layer)
    dumper.step()
