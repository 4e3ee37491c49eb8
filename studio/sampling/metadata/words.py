"""What other programs call samplers and schedules."""

from collections.abc import Mapping

from studio.sampling.schedulers import scheduler_from_a1111

# ComfyUI's, SwarmUI's and InvokeAI's names of a sampler -> A1111's.
SAMPLERS: Mapping[str, str] = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "heunpp2": "Heun",
    "lms": "LMS",
    "dpm_2": "DPM2",
    "kdpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "kdpm_2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PNDM",
    "deis": "DEIS",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "align_your_steps": "Align Your Steps",
    "ays": "Align Your Steps",
}  # "normal" and the others: what the base has


def our_scheduler(sampler: str, schedule: str = "") -> str:
    """Our name; "default" when we have no such sampler."""
    name = sampler.casefold().removesuffix("_gpu")
    return scheduler_from_a1111(SAMPLERS.get(name, ""), SCHEDULES.get(schedule.casefold(), "Automatic"))
