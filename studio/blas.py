"""How many threads numpy's products of matrices take."""

import os
from importlib import import_module

THREADS = "OPENBLAS_NUM_THREADS"


def one_thread() -> None:
    """Load numpy with one thread for products, unless the environment says a number.

    Adapters are thousands of small products: one thread is done with them sooner, and ten times sooner beside
    other work. OpenBLAS reads the variable once, when it is loaded, so it is taken back: what is started
    from here, trainers and samplers, shall not inherit it.
    """
    if THREADS in os.environ:
        return
    os.environ[THREADS] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[THREADS]
