"""Settings every test runs under: no network, no telemetry, one thread per worker, repeatable sums."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Without it MKL adds in an order that depends on where in memory a matrix happens to lie, and one sampled
# token in a million differs between two runs with the same seed.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
