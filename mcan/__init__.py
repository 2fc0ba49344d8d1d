"""Visual question answering with Modular Co-Attention Networks (Yu et al., CVPR 2019)."""

import os
import sys

__version__ = "0.1.0"

# A log file gets a line of progress now and then, a terminal a moving bar. tqdm reads this when it
# is first imported.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")
