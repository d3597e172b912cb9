"""Settings every test runs under: no network, no telemetry, one thread per worker, repeatable sums."""

import os
import signal

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Without it MKL adds in an order that depends on where in memory a matrix happens to lie, and one sampled
# token in a million differs between two runs with the same seed.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# A run in the background of a script (`make test &`) is born ignoring Ctrl-C, and so would be the commands
# that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run of the suite; `make explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
