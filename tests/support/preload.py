"""What a trainer imports; loaded once by the fork server of `tests.support.runs`: trainers start at once."""

import diffusers.models.autoencoders.autoencoder_kl
import diffusers.models.unets.unet_2d_condition
import diffusers.schedulers.scheduling_ddim
import diffusers.schedulers.scheduling_ddpm
import prodigyopt
import schedulefree
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip

import trainers.run
import trainers.session

__all__ = ["diffusers", "prodigyopt", "schedulefree", "trainers", "transformers"]
