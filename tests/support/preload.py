"""What trainers and samplers import; loaded once, by the server that `tests.support.forked` forks from."""

import trainers.families.base  # first: it defers libraries

# isort: split
import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import diffusers.schedulers.scheduling_ddim
import diffusers.schedulers.scheduling_ddpm
import diffusers.schedulers.scheduling_deis_multistep
import diffusers.schedulers.scheduling_dpmsolver_sde
import diffusers.schedulers.scheduling_dpmsolver_singlestep
import diffusers.schedulers.scheduling_edm_euler
import diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete
import diffusers.schedulers.scheduling_k_dpm_2_discrete
import diffusers.schedulers.scheduling_unipc_multistep
import PIL.Image
import prodigyopt
import schedulefree
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip

import studio.pocket.build.worker
import studio.sampling.engine
import studio.sampling.server
import tests.support.supervision
import trainers.run
import trainers.session

PIL.Image.preinit()

__all__ = ["PIL", "diffusers", "prodigyopt", "schedulefree", "studio", "tests", "trainers", "transformers"]
