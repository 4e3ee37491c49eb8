"""Libraries that a process does without."""

import subprocess
import sys


def test_what_diffusers_knows_already_is_not_taken_from_it():
    code = (
        "import gc; gc.disable()\n"  # 3 of 15 CPU s
        "import diffusers\n"
        "from trainers.spared import spare\n"
        "spare('bitsandbytes')\n"
        "import diffusers.quantizers\n"  # what every model of diffusers imports, and who needs bitsandbytes
    )
    subprocess.run([sys.executable, "-c", code], check=True)
