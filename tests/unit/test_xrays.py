"""X-rays that are kept, and the threads that they take."""

import subprocess
import sys
from dataclasses import replace

import pytest

from registry.errors import NotFound
from registry.records import Adapter, Base
from studio import xrays
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


def add(ws, name, seed):
    from registry.hashing import hash_adapter

    path = write_run_file(make_form(seed=seed), ws.home / "adapters" / f"{name}.safetensors")
    hashes = hash_adapter(path)
    return ws.catalog.add(
        Adapter(
            name=name, tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256,
            path=ws.relative(path), family="sd15", origin="import",
        )
    )  # fmt: skip


def test_what_was_seen_is_kept_by_the_weights(ws):
    ink = add(ws, "ink", 1)
    assert xrays.kept(ws, [ink]) is None
    found = xrays.look(ws, [ink])
    assert len(found["adapters"][0]["modules"]) == xrays.STRONGEST
    assert found["adapters"][0]["count"] > xrays.STRONGEST
    assert sum(block["share"] for block in found["adapters"][0]["blocks"]) == pytest.approx(1)
    ws.resolve(ink.path).unlink()
    renamed = ws.catalog.update(Adapter, ink.id, name="other")
    assert xrays.kept(ws, [renamed]) == found
    assert xrays.look(ws, [renamed]) == found
    with pytest.raises(NotFound):
        xrays.look(ws, [replace(renamed, tensor_sha256="0" * 64)])


def test_two_are_compared_and_the_order_counts(ws):
    ink, oil = add(ws, "ink", 1), add(ws, "oil", 2)
    found = xrays.look(ws, [ink, oil])
    assert abs(found["similarity"][0]["overall"]) < 0.2
    assert xrays.kept(ws, [ink, oil]) == found
    assert xrays.kept(ws, [oil, ink]) is None


def test_a_base_counts_where_the_method_depends_on_it(ws):
    ink = add(ws, "ink", 1)
    pocket = ws.catalog.get(Base, "pocket")
    places = {xrays._place(ws, [ink], base) for base in ("", pocket.id)}
    assert len(places) == 1
    dora = replace(ink, method="dora")
    assert len({xrays._place(ws, [dora], base) for base in ("", pocket.id)}) == 2


def test_what_is_damaged_in_the_cache_is_looked_at_again(ws):
    ink = add(ws, "ink", 1)
    found = xrays.look(ws, [ink])
    xrays._place(ws, [ink], "").write_text("{")
    assert xrays.kept(ws, [ink]) is None
    assert xrays.look(ws, [ink]) == found


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_products_take_one_thread_and_children_do_not_inherit_it():
    code = (
        "import os; os.environ.pop('OPENBLAS_NUM_THREADS', None)\n"
        "from studio.blas import one_thread; one_thread()\n"
        "import numpy as np; a = np.ones((800, 800)); a @ a\n"
        "print(len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ)"
    )
    assert run(code).split() == ["1", "False"]


@pytest.mark.parametrize("module", ["studio.app.server", "studio.commands.operations"])
def test_numpy_is_not_loaded_before_the_threads_are_set(module):
    assert run(f"import sys, {module}; print('numpy' in sys.modules)").strip() == "False"
