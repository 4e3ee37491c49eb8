"""Libraries that are loaded when they are used."""

import subprocess
import sys


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scipy_waits_until_something_of_it_is_used():
    """diffusers and transformers import it with every model: more CPU time than torch itself."""
    run(
        "import gc, sys, trainers.families.base\n"
        "gc.disable()\n"
        "from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler\n"
        "from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler\n"
        "import transformers.models.clip.modeling_clip\n"
        "from transformers.loss import loss_for_object_detection\n"
        "loaded = lambda *parts: [f'scipy.{part}' in sys.modules for part in parts]\n"
        "parts = 'optimize._lsap', 'integrate._quadpack_py', 'stats._continuous_distns'\n"
        "scheduler = LMSDiscreteScheduler()\n"
        "scheduler.set_timesteps(3)\n"
        "EulerDiscreteScheduler().set_timesteps(3)\n"
        "assert loaded(*parts) == [False, False, False]\n"
        # taken on sight, for losses of object detectors
        "rows, columns = loss_for_object_detection.linear_sum_assignment([[2, 1], [1, 2]])\n"
        "assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])\n"
        "assert loaded(parts[0]) == [True]\n"
        "assert scheduler.get_lms_coefficient(1, 0, 0) != 0\n"
        "assert loaded(parts[1]) == [True]\n"
        "EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(3)\n"
        "assert loaded(*parts) == [True, True, True]\n"
        "import scipy.stats, scipy.integrate\n"
        "from scipy.optimize import linear_sum_assignment, minimize\n"
        "for module in (scipy.stats, scipy.integrate, sys.modules['scipy.optimize']):\n"
        "    assert type(module).__name__ == 'module'\n"
    )


def test_a_deferred_package_gives_way_to_its_submodules():
    run(
        "import sys\n"
        "from trainers.deferred import defer\n"
        "defer('xml.dom')\n"
        "import xml.dom\n"
        "assert not hasattr(sys.modules['xml.dom'], '__wrapped__')\n"
        "from xml.dom import minidom\n"
        "assert minidom.parseString('<a/>').documentElement.tagName == 'a'\n"
        "assert sys.modules['xml.dom'].Node is xml.dom.Node\n"
        "defer('xml.dom'); defer('no_such_library.part')\n"
        "assert 'no_such_library.part' not in sys.modules\n"
    )
