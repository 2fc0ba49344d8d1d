"""`python tests/faults [OPTIONS]`: compile `faults.c` and start `harness.py` under it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
IMPORTED = (TESTS, TESTS / "preparation", TESTS.parent)

with tempfile.TemporaryDirectory() as folder:
    library = Path(folder) / "faults.so"
    build = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(build, check=True)
    env = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([*map(str, IMPORTED), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    program = [sys.executable, HERE / "harness.py", *sys.argv[1:]]
    sys.exit(subprocess.run(program, env=env).returncode)
