"""Libraries that are loaded when they are used."""

import subprocess
import sys


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scipys_statistics_wait_until_a_sampler_asks_for_beta():
    """diffusers imports it with every UNet: more CPU time than torch itself."""
    run(
        "import sys, trainers.families.base\n"
        "from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler\n"
        "loaded = lambda: 'scipy.stats._continuous_distns' in sys.modules\n"
        "EulerDiscreteScheduler().set_timesteps(3)\n"
        "assert not loaded()\n"
        "EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(3)\n"
        "assert loaded()\n"
        "import scipy.stats\n"
        "assert type(scipy.stats).__name__ == 'module'\n"
    )


def test_scipys_integrals_wait_until_lms_draws():
    run(
        "import sys, trainers.families.base\n"
        "from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler\n"
        "loaded = lambda: 'scipy.integrate._quadpack_py' in sys.modules\n"
        "scheduler = LMSDiscreteScheduler()\n"
        "scheduler.set_timesteps(3)\n"
        "assert not loaded()\n"
        "assert scheduler.get_lms_coefficient(1, 0, 0) != 0\n"
        "assert loaded()\n"
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


def test_a_function_taken_on_sight_loads_its_library_when_it_is_called():
    """transformers takes one of scipy's with every model, for losses of object detectors."""
    run(
        "import sys, trainers.families.base\n"
        "import transformers.models.clip.modeling_clip\n"
        "from transformers.loss import loss_for_object_detection\n"
        "loaded = lambda: 'scipy.optimize._lsap' in sys.modules\n"
        "assert not loaded()\n"
        "rows, columns = loss_for_object_detection.linear_sum_assignment([[2, 1], [1, 2]])\n"
        "assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])\n"
        "assert loaded()\n"
        "from scipy.optimize import linear_sum_assignment, minimize\n"
        "assert type(sys.modules['scipy.optimize']).__name__ == 'module'\n"
    )
